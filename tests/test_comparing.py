"""Two evaluations of the same photos are compared; of different ones they are not."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from skinray.cli import main
from skinray.comparing import compare_evaluations
from skinray.config import CompareSettings
from skinray.errors import DatasetError, OutputExistsError, StorageError

NO_LEAKS: dict[str, Any] = {"leaks": {}, "leaks_in_training": {}, "overlap_with_training": {}}


def evaluation(
    folder: Path, model_id: str, seed: int, gain: float = 0.0, leaks: dict[str, Any] = NO_LEAKS, **changes: Any
) -> str:
    """What evaluate leaves that compare reads."""
    generator = np.random.default_rng(0)
    malignant = np.arange(300) < 90
    shared = generator.normal(size=300)
    scores = 1 / (1 + np.exp(-(shared + np.random.default_rng(seed).normal(size=300) + (1 + gain) * malignant)))
    judged = pd.DataFrame(
        {
            "image_id": [f"photo{number}" for number in range(300)],
            "image_sha256": [f"hash{number}" for number in range(300)],
            "label": np.where(malignant, "malignant", "benign"),
            "malignant": malignant,
            "malignancy_score": scores.astype(np.float32),
            "flagged": scores >= 0.5,
            "patient_id": None,
            "lesion_id": [f"lesion{number // 2}" for number in range(300)],
            "group": [f"lesion{number // 2}" for number in range(300)],
        }
    ).assign(**changes)
    folder.mkdir()
    judged.to_parquet(folder / "judged.parquet")
    metrics = {"model_id": model_id, "default_operating_point": "youden", **leaks}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return str(folder)


def test_a_better_model_is_told_with_who_changed_sides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = evaluation(tmp_path / "a", "aaa", 1), evaluation(tmp_path / "b", "bbb", 2, gain=2.0)
    output = tmp_path / "out"
    assert main(["compare", "--first", first, "--second", second, "--output", str(output)]) == 0
    told = capsys.readouterr().out
    result = json.loads((output / "comparison.json").read_text())
    assert (result["first"]["model_id"], result["second"]["model_id"]) == ("aaa", "bbb")
    assert result["clusters_by"] == "patient, lesion or picture"
    assert result["differences"]["roc_auc"]["low"] > 0
    assert "roc_auc      +" in told
    assert "beyond chance" in told
    assert "LEAK" not in told
    changes = pd.read_parquet(output / "changes.parquet")
    changed = sum(result[name] for name in ("newly_found", "newly_missed", "newly_flagged", "newly_passed"))
    assert len(changes) == changed
    assert (changes["flagged_first"] != changes["flagged_second"]).all()
    with pytest.raises(OutputExistsError):
        compare_evaluations(CompareSettings(first=first, second=second, output=str(output)))


def test_what_leaks_is_written_on_the_comparison_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leaks = {"leaks": {"patients across splits": 1}, "leaks_in_training": {}, "overlap_with_training": None}
    first = evaluation(tmp_path / "a", "aaa", 1, leaks=leaks)
    trained_on = {**NO_LEAKS, "leaks_in_training": {"lesions across splits": 3}, "overlap_with_training": {"photos": 1200}}
    second = evaluation(tmp_path / "b", "bbb", 2, leaks=trained_on)
    assert main(["compare", "--first", first, "--second", second, "--output", str(tmp_path / "out")]) == 0
    assert [line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines() if line.startswith("LEAK")] == [
        "aaa: the data set leaks: 1 patient across splits; its figures are too high",
        "aaa: whether it was trained on these photos could not be looked for",
        "bbb: what it was trained on leaks: 3 lesions across splits; its figures are too high",
        "bbb: trained on, or chosen on: 1,200 photos; its figures are too high",
    ]
    result = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert {name: result["first"][name] for name in NO_LEAKS} == leaks
    assert {name: result["second"][name] for name in NO_LEAKS} == trained_on


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_id": [f"other{number}" for number in range(300)]}, "0 of them both"),
        ({"image_sha256": "changed"}, "different photos under the same image_id"),
        ({"malignant": np.arange(300) < 91}, "do not agree on which photos are malignant"),
    ],
)
def test_evaluations_of_different_photos_are_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    first, second = evaluation(tmp_path / "a", "aaa", 1), evaluation(tmp_path / "b", "bbb", 1, **changes)
    with pytest.raises(DatasetError, match=words):
        compare_evaluations(CompareSettings(first=first, second=second, output=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_what_is_no_evaluation_is_an_error_that_names_it(tmp_path: Path) -> None:
    first = evaluation(tmp_path / "a", "aaa", 1)
    with pytest.raises(StorageError, match="nowhere"):
        compare_evaluations(CompareSettings(first=first, second=str(tmp_path / "nowhere"), output=str(tmp_path / "out")))
