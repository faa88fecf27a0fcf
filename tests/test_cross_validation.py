"""Every fold once, figures with intervals, and one model that is the mean of all."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skinray.bundle import load_bundle
from skinray.classifier import Classifier
from skinray.config import PrepareSettings
from skinray.cross_validation import RESULTS_NAME, CrossValidation, cross_validate, mean_interval
from skinray.errors import DatasetError, SkinrayError
from skinray.preparation import prepare_dataset
from skinray.shards import PreparedDataset, read_photos
from skinray.training_config import CrossValidateSettings
from tests.conftest import toy_settings


@pytest.fixture(scope="module")
def halves(ray_cluster: None, drawn_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """The drawn photos in two folds."""
    output = tmp_path_factory.mktemp("halves") / "dataset"
    return prepare_dataset(PrepareSettings(catalog="synthetic", source=str(drawn_photos), output=str(output), folds=2))


@pytest.fixture(scope="module")
def settings(halves: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> CrossValidateSettings:
    toy = toy_settings(halves.uri, tmp_path_factory.mktemp("folds") / "run", epochs=1, num_workers=1, steps_per_epoch=2)
    return CrossValidateSettings(**toy.model_dump())


@pytest.fixture(scope="module")
def found(settings: CrossValidateSettings) -> CrossValidation:
    return cross_validate(settings)


@pytest.mark.ray
@pytest.mark.slow
def test_every_photo_that_is_not_test_is_unseen_by_one_model(found: CrossValidation, halves: PreparedDataset) -> None:
    run = Path(found.bundle_uri).parent
    parts = [pd.read_parquet(run / f"fold={fold}" / "validation.parquet") for fold in range(2)]
    unseen = pd.concat(parts)
    assert unseen["image_id"].is_unique
    assert len(unseen) == halves.rows("train") + halves.rows("validation") == found.pooled["photos"]
    lesions = [set(part["lesion_id"]) - {""} for part in parts]
    assert sum(map(len, lesions)) == len(set.union(*lesions)), "no lesion stands in two folds"
    assert [fold["photos"] for fold in found.folds] == [len(part) for part in parts]


@pytest.mark.ray
@pytest.mark.slow
def test_figures_have_means_and_intervals(found: CrossValidation) -> None:
    stored = json.loads((Path(found.bundle_uri).parent / RESULTS_NAME).read_text())
    assert stored["summary"] == found.summary
    for name in ("roc_auc", "balanced_accuracy", "sensitivity", "specificity", "accuracy"):
        each = found.summary[name]
        assert each["low"] <= each["mean"] <= each["high"]
        assert each["mean"] == pytest.approx(np.mean([fold[name] for fold in found.folds]))
    low, high = found.pooled["roc_auc_interval"]
    assert low < found.pooled["roc_auc"] < high


@pytest.mark.ray
@pytest.mark.slow
def test_the_bundle_is_the_mean_of_the_folds(found: CrossValidation) -> None:
    run = Path(found.bundle_uri).parent
    bundle = load_bundle(found.bundle_uri)
    assert bundle.model_id == found.model_id
    photos = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3), dtype=np.uint8)
    members = [Classifier(load_bundle(str(run / f"fold={fold}" / "bundle"))).probabilities(photos) for fold in range(2)]
    np.testing.assert_allclose(Classifier(bundle).probabilities(photos), np.mean(members, axis=0), atol=1e-6)
    assert len(set(bundle.metadata["ensemble"]["members"])) == 2
    assert "miss_rate_10" not in bundle.operating_points.points, "it was not shown for the mean's scores"


@pytest.mark.ray
@pytest.mark.slow
def test_a_finished_cross_validation_reruns_as_a_no_op(found: CrossValidation, settings: CrossValidateSettings) -> None:
    started = time.monotonic()
    assert cross_validate(settings) == found
    assert time.monotonic() - started < 5


@pytest.mark.ray
def test_all_folds_are_checked_before_the_first_is_trained(
    prepared: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = read_photos(prepared)
    photos.loc[photos["fold"] == 4, "label"] = "benign"
    monkeypatch.setattr("skinray.division.read_photos", lambda _: photos)
    monkeypatch.setattr("skinray.cross_validation.train", lambda _: pytest.fail("a fold was trained"))
    with pytest.raises(DatasetError, match=r"fold 4 of .* has no malignant photo to validate on"):
        cross_validate(CrossValidateSettings(**toy_settings(prepared.uri, tmp_path / "run").model_dump()))
    assert not (tmp_path / "run").exists()


@pytest.mark.ray
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_workers": 64, "global_batch_size": 64}, "has room for"),
        ({"model": {"name": "mobilenet", "weights": "/nowhere/x.weights.h5"}}, "/nowhere/x"),
        ({"model": {"name": "mobilenet", "mobilenet_alpha": 0.25}, "transfer": {"from_layer": "conv_pw_14"}}, "conv_pw_13"),
    ],
)
def test_what_no_fold_could_be_trained_with_is_refused_before_the_output_is_claimed(
    changes: dict[str, Any], words: str, prepared: PreparedDataset, tmp_path: Path
) -> None:
    toy = toy_settings(prepared.uri, tmp_path / "run").model_dump()
    with pytest.raises(SkinrayError, match=words):
        cross_validate(CrossValidateSettings(**{**toy, **changes}))
    assert not (tmp_path / "run").exists()


def test_a_single_fold_is_not_cross_validation() -> None:
    with pytest.raises(ValueError, match="trains every fold"):
        CrossValidateSettings(data="d", output="o", fold=1)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_the_interval_holds_the_mean_and_is_wider_than_that_of_independent_values(values: list[float]) -> None:
    import scipy.stats

    each = mean_interval(values)
    assert each["low"] <= each["mean"] <= each["high"]
    naive = scipy.stats.sem(values) * scipy.stats.t.ppf(0.975, len(values) - 1)
    assert each["high"] - each["mean"] >= naive - 1e-12
