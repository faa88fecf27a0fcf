"""The tour for a newcomer, as the newcomer runs it."""

from pathlib import Path

import pandas as pd
import pytest

from skinray import storage
from skinray.bundle import load_bundle
from skinray.cli import main


@pytest.mark.ray
@pytest.mark.slow
def test_the_demo_makes_all_that_its_table_says(ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "demo"
    assert main(["demo", "--output", str(output), "--photos", "700"]) == 0
    captured = capsys.readouterr()
    stages = ["draw", "prepare", "train", "evaluate", "score", "serve"]
    assert [line.split()[0] for line in captured.out.splitlines() if line.split()[:1] and line.split()[0] in stages] == stages
    assert [line[4:] for line in captured.err.splitlines() if line.startswith("--- ")] == stages
    assert "not a medical device" in captured.out
    assert captured.err.count("epoch ") >= 15, "a line an epoch"

    bundle = load_bundle(str(output / "training" / "bundle"))
    metrics = storage.read_json(str(output / "evaluation" / "metrics.json"))
    assert metrics["model_id"] == bundle.model_id
    assert metrics["figures"]["roc_auc"]["value"] >= 0.90
    assert (output / "evaluation" / "roc.png").is_file()

    rows = pd.read_parquet(output / "predictions")
    assert len(rows) == 1000
    assert rows["image_id"].is_unique
    assert rows["status"].value_counts().to_dict() == {"scored": 980, "failed": 20}
    assert rows.loc[rows["status"] == "failed", "error_code"].notna().all()
