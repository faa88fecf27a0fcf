"""Which photos a run has is known, and refused where it cannot be trained, from the manifest and the inventory alone."""

from typing import Any

import pandas as pd
import pytest

from skinray import division
from skinray.division import Division, divide
from skinray.errors import ConfigError, DatasetError
from skinray.shards import DatasetManifest, PreparedDataset
from skinray.training_config import TrainSettings

# Fold -> the labels of its photos.
FOLDS = ("bbbm", "bbmm", "bbbbm")


@pytest.fixture
def folds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The labels of each fold, which a test may change; with one test photo, that no fold may count."""
    labels = list(FOLDS)

    def read_photos(dataset: PreparedDataset) -> pd.DataFrame:
        rows = [("train", fold, label) for fold, each in enumerate(labels) for label in each] + [("test", None, "m")]
        return pd.DataFrame(rows, columns=["split", "fold", "label"]).astype({"fold": "Int8"})

    monkeypatch.setattr(division, "read_photos", read_photos)
    return labels


def dataset(**split_classes: dict[str, int]) -> PreparedDataset:
    splits = {"train": {"b": 8, "m": 3}, "validation": {"b": 1, "m": 1}, "test": {"b": 0, "m": 1}, **split_classes}
    manifest = DatasetManifest.model_construct(classes=("b", "m"), split_classes=splits, settings={"folds": 3})  # type: ignore[arg-type]
    return PreparedDataset("/data", manifest, "")


def settings(**changes: Any) -> TrainSettings:
    return TrainSettings(data="/data", output="/run", **{"global_batch_size": 4, **changes})


def test_a_run_has_the_splits_or_a_fold_against_the_others(folds: list[str]) -> None:
    assert divide(dataset(), settings(), [None]) == [Division(None, {"b": 8, "m": 3}, {"b": 1, "m": 1})]
    first, last = divide(dataset(), settings(), [0, 2])
    assert first == Division(0, {"b": 6, "m": 3}, {"b": 3, "m": 1})
    assert last == Division(2, {"b": 5, "m": 3}, {"b": 4, "m": 1})
    assert (first.steps_per_epoch(settings()), first.steps_per_epoch(settings(steps_per_epoch=1))) == (2, 1)


def test_a_fold_without_a_class_is_refused_whichever_it_is(folds: list[str]) -> None:
    folds[2] = "bbbb"
    divide(dataset(), settings(), [0, 1])
    with pytest.raises(DatasetError, match="fold 2 of /data has no m photo to validate on; prepare with fewer folds"):
        divide(dataset(), settings(), range(3))
    folds[:] = ["bbb", "bbm", "bbb"]
    with pytest.raises(DatasetError, match="fold 1 of /data has no m photo to learn from"):
        divide(dataset(), settings(), [1])


def test_folds_do_not_need_every_class_in_the_validation_split(folds: list[str]) -> None:
    small = dataset(validation={"b": 2, "m": 0})
    divide(small, settings(), range(3))
    with pytest.raises(DatasetError, match="/data has no m photo to validate on; prepare with another split"):
        divide(small, settings(), [None])


def test_a_fold_that_is_not_there_or_too_small_is_refused(folds: list[str]) -> None:
    with pytest.raises(ConfigError, match="fold 3: /data has the folds 0 to 2"):
        divide(dataset(), settings(), [3])
    with pytest.raises(DatasetError, match="fold 2 of /data has 8 training photos, fewer than one global batch of 10"):
        divide(dataset(), settings(global_batch_size=10), [2])
