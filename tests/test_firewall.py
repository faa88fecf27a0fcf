"""What must not be measured: a bundle on photos of its own training data, under whatever name or split."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from skinray import storage
from skinray.bundle import Bundle, load_bundle
from skinray.config import EvaluateSettings, PrepareSettings, SplitName
from skinray.errors import DatasetError, LeakError
from skinray.evaluation import evaluate
from skinray.firewall import Overlap, check_no_leaks, check_no_overlap, find_overlap
from skinray.preparation import prepare_dataset
from skinray.shards import PreparedDataset, open_dataset, read_photos
from skinray.synthetic import draw_dataset
from skinray.training import TrainedModel, train
from tests.conftest import toy_settings

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def resplit(ray_cluster: None, drawn_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """The photos of `prepared`, divided anew."""
    output = tmp_path_factory.mktemp("resplit") / "dataset"
    settings = {"catalog": "synthetic", "source": str(drawn_photos), "validation_fraction": 0.2}
    return prepare_dataset(PrepareSettings(**settings, output=str(output), seed=99))


@pytest.fixture
def bundle(trained: TrainedModel) -> Bundle:
    return load_bundle(trained.bundle_uri)


def test_a_bundle_is_measured_on_the_test_split_of_its_own_data(bundle: Bundle, prepared: PreparedDataset) -> None:
    assert find_overlap(bundle, prepared, "test") == Overlap({}, frozenset())


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_split_that_it_was_trained_or_chosen_on_is_refused(bundle: Bundle, prepared: PreparedDataset, split: SplitName) -> None:
    photos = read_photos(prepared)
    overlap = find_overlap(bundle, prepared, split)
    assert overlap == Overlap({"photos": prepared.rows(split)}, frozenset(photos["image_id"][photos["split"] == split]))
    with pytest.raises(
        LeakError, match=rf"the {split} split .*: .* was trained on {prepared.rows(split)} photos of it, or its epoch"
    ):
        check_no_overlap(overlap, bundle, prepared, split, allowed=False)
    check_no_overlap(overlap, bundle, prepared, split, allowed=True)


def test_the_same_photos_under_another_split_are_refused(bundle: Bundle, resplit: PreparedDataset) -> None:
    overlap = find_overlap(bundle, resplit, "test")
    assert overlap is not None
    with pytest.raises(LeakError, match=r"was trained on .* shares with the test split .*patients.*--leave-out-overlap"):
        check_no_overlap(overlap, bundle, resplit, "test", allowed=False)
    check_no_overlap(overlap, bundle, resplit, "test", allowed=True)
    assert set(overlap.counts) == {"patients", "lesions", "duplicate clusters"}


def test_what_overlaps_is_every_photo_of_a_patient_that_was_trained_on(
    bundle: Bundle, prepared: PreparedDataset, resplit: PreparedDataset
) -> None:
    overlap = find_overlap(bundle, resplit, "all")
    assert overlap is not None
    photos = read_photos(prepared).set_index("image_id")
    measured = read_photos(resplit)["image_id"]
    learnt = set(photos.loc[photos["split"] != "test", "patient_id"])
    assert overlap.image_ids == {image_id for image_id in measured if photos.loc[image_id, "patient_id"] in learnt}
    assert 0 < len(overlap.image_ids) < len(measured)


def test_other_photos_with_the_same_patient_numbers_in_another_data_set_are_fine(
    bundle: Bundle, prepared: PreparedDataset, tmp_path: Path
) -> None:
    learnt = read_photos(prepared)
    draw_dataset(tmp_path / "others", 90, seed=1234)
    table = pd.read_csv(tmp_path / "others" / "metadata.csv", dtype=str)
    patients = learnt["patient_id"][learnt["split"] == "train"].unique()
    renamed = dict(zip(table["patient_id"].unique(), patients, strict=False))
    table.assign(patient_id=table["patient_id"].map(renamed)).to_csv(tmp_path / "others" / "metadata.csv", index=False)
    settings = {"catalog": "csv", "source": str(tmp_path / "others"), "output": str(tmp_path / "out")}
    columns = {"image": "image_id", "label": "label", "patient_id": "patient_id", "lesion_id": "lesion_id"}
    others = prepare_dataset(PrepareSettings(**settings, csv=columns))
    measured = read_photos(others)
    overlap = find_overlap(bundle, others, "test")
    assert overlap == Overlap({}, frozenset(), measured["patient_id"][measured["split"] == "test"].nunique())
    assert overlap.namesakes > 1


def test_a_patient_of_two_dicom_archives_is_one_and_other_numbers_may_be_anybodys(monkeypatch: pytest.MonkeyPatch) -> None:
    patients = {
        "/clinic/2024": ["0123456789abcdef", "0000000000000007", "P1", None],
        "/clinic/2025": ["0123456789abcdef", "0000000000000007", "P2", None],
    }

    def photos_of(dataset: Any) -> pd.DataFrame:
        own = patients[dataset.uri]
        unknown = dict.fromkeys(("lesion_id", "age", "sex", "site", "jpeg_quality", "removed"))
        sides = {"split": "train" if dataset.uri == "/clinic/2024" else "test", "source": "csv", "label": "nv"}
        sizes = {"width_px": 600, "height_px": 450, "stored_bytes": 1000}
        photos = pd.DataFrame({"image_id": [f"{dataset.uri}/{number}" for number in range(len(own))], "patient_id": own})
        return photos.assign(image_sha256=photos["image_id"], fingerprint=b"", **unknown, **sides, **sizes)

    def prepared_from(source: str) -> Any:
        return SimpleNamespace(uri=source, sha256=source, manifest=SimpleNamespace(settings={"source": source}))

    monkeypatch.setattr("skinray.firewall.read_photos", photos_of)
    monkeypatch.setattr("skinray.firewall.open_dataset", prepared_from)
    dataset = {"sha256": "/clinic/2024", "settings": {"source": "/clinic/2024"}}
    bundle: Any = SimpleNamespace(metadata={"dataset": dataset, "training_settings": {"data": "/clinic/2024"}})
    overlap = find_overlap(bundle, prepared_from("/clinic/2025"), "test")
    assert overlap == Overlap({"patients": 1}, frozenset({"/clinic/2025/0"}), namesakes=1)


def test_training_data_that_has_grown_is_still_checked(
    bundle: Bundle, resplit: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(bundle.metadata["dataset"], "sha256", "of a smaller data set")
    overlap = find_overlap(bundle, resplit, "test")
    assert overlap is not None
    assert overlap.image_ids
    monkeypatch.setitem(bundle.metadata["dataset"], "settings", {"another": "data set"})
    assert find_overlap(bundle, resplit, "test") is None


def test_training_data_that_is_gone_cannot_be_checked(
    bundle: Bundle, resplit: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(bundle.metadata["training_settings"], "data", "/nowhere/at/all")
    assert find_overlap(bundle, resplit, "test") is None
    check_no_overlap(None, bundle, resplit, "test", allowed=False)
    with pytest.raises(LeakError, match=r"--leave-out-overlap: .*\(/nowhere/at/all\) is not there any more"):
        check_no_overlap(None, bundle, resplit, "test", allowed=False, left_out=True)
    check_no_overlap(None, bundle, resplit, "test", allowed=True, left_out=True)


def test_metrics_say_what_overlaps(bundle: Bundle, prepared: PreparedDataset, resplit: PreparedDataset, tmp_path: Path) -> None:
    settings = EvaluateSettings(bundle=bundle.uri, data=resplit.uri, output=str(tmp_path / "evaluation"), allow_leaks=True)
    metrics = evaluate(settings)
    assert metrics["overlap_with_training"]["patients"] > 0
    assert metrics["leaks"] == {}
    with pytest.raises(LeakError):
        evaluate(settings.model_copy(update={"allow_leaks": False, "output": str(tmp_path / "other")}))
    assert not (tmp_path / "other").exists()
    changes = {"allow_leaks": False, "leave_out_overlap": True, "split": "all", "output": str(tmp_path / "clean")}
    clean = evaluate(settings.model_copy(update=changes))
    assert clean["overlap_with_training"] == {}
    # What is left is the test split of the data that the bundle was trained on.
    assert clean["left_out_for_overlap"] == prepared.rows("train") + prepared.rows("validation")
    assert clean["photos"] == prepared.rows("test")
    with pytest.raises(DatasetError, match="shared with the training data apart"):
        evaluate(settings.model_copy(update={**changes, "split": "test", "output": str(tmp_path / "none")}))


def test_a_leaky_data_set_is_not_trained_on_unless_told_and_the_card_says_so(
    ray_cluster: None, prepared: PreparedDataset, tmp_path: Path
) -> None:
    leaky = _with_leaks(prepared, tmp_path / "leaky")
    settings = toy_settings(leaky.uri, tmp_path / "run", epochs=1, num_workers=1, steps_per_epoch=1)
    with pytest.raises(LeakError, match="3 lesions across splits"):
        train(settings)
    assert not (tmp_path / "run").exists()
    bundle = load_bundle(train(settings.model_copy(update={"allow_leaks": True})).bundle_uri)
    assert bundle.metadata["leaks"] == {"lesions across splits": 3}
    assert "**The data set leaks: 3 lesions across splits." in (tmp_path / "run" / "bundle" / "README.md").read_text()
    with pytest.raises(LeakError):
        check_no_leaks(leaky, allowed=False)


def _with_leaks(dataset: PreparedDataset, folder: Path) -> PreparedDataset:
    """A copy whose manifest says that it leaks."""
    shutil.copytree(dataset.uri, folder)
    manifest = storage.read_json(str(folder / storage.MANIFEST_NAME))
    storage.write_json(str(folder / storage.MANIFEST_NAME), manifest | {"leaks": {"lesions across splits": 3}})
    return open_dataset(str(folder))
