"""How many photos a run will learn from and how many will choose its epoch, looked up and checked before one is read.

That is the data set's train and validation splits, or a fold of both against its other folds.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from skinray.errors import ConfigError, DatasetError
from skinray.shards import PreparedDataset, read_photos
from skinray.training_config import TrainSettings


@dataclass(frozen=True)
class Division:
    """The photos of one run.

    Attributes:
        fold: Which fold chooses the epoch; None: the validation split.
        train: Class -> photos to learn from.
        validation: Class -> photos that choose the epoch.
    """

    fold: int | None
    train: Mapping[str, int]
    validation: Mapping[str, int]

    def steps_per_epoch(self, settings: TrainSettings) -> int:
        """Whole global batches of an epoch, and no more than are wanted."""
        whole = sum(self.train.values()) // settings.global_batch_size
        return min(whole, settings.steps_per_epoch or whole)


def all_folds(dataset: PreparedDataset) -> range:
    """The numbers of a data set's folds."""
    return range(dataset.manifest.settings["folds"])


def divide(dataset: PreparedDataset, settings: TrainSettings, folds: Sequence[int | None]) -> list[Division]:
    """Divides a data set for some runs.

    Args:
        dataset: What they are to be trained on.
        settings: Theirs.
        folds: The fold that each validates on; None: its validation split.

    Raises:
        ConfigError: The data set has no such fold.
        DatasetError: Too few photos for one step, or none of some class to learn from or to validate on.
    """
    for fold in folds:
        if fold is not None and fold not in all_folds(dataset):
            raise ConfigError(f"fold {fold}: {dataset.uri} has the folds 0 to {all_folds(dataset)[-1]}")
    by_fold = _classes_by_fold(dataset) if any(fold is not None for fold in folds) else {}
    divisions = []
    for fold in folds:
        if fold is None:
            splits = dataset.manifest.split_classes
            divisions.append(Division(None, splits["train"], splits["validation"]))
        else:
            held_out = by_fold[fold]
            divisions.append(Division(fold, sum((by_fold[other] for other in by_fold if other != fold), Counter()), held_out))
    for division in divisions:
        _check(division, dataset, settings)
    return divisions


def _classes_by_fold(dataset: PreparedDataset) -> dict[int, Counter[str]]:
    """Fold -> class -> photos, of those that are not test."""
    photos = read_photos(dataset)
    photos = photos[photos["split"] != "test"]
    return {fold: Counter(photos["label"][photos["fold"] == fold]) for fold in all_folds(dataset)}


def _check(division: Division, dataset: PreparedDataset, settings: TrainSettings) -> None:
    in_folds = division.fold is not None
    where = f"fold {division.fold} of {dataset.uri}" if in_folds else dataset.uri
    for counts, purpose in ((division.train, "learn from"), (division.validation, "validate on")):
        absent = [code for code in dataset.manifest.classes if not counts.get(code)]
        if absent:
            instead = "fewer folds" if in_folds else "another split"
            raise DatasetError(f"{where} has no {', '.join(absent)} photo to {purpose}; prepare with {instead}")
    rows = sum(division.train.values())
    if rows < settings.global_batch_size:
        raise DatasetError(f"{where} has {rows} training photos, fewer than one global batch of {settings.global_batch_size}")
