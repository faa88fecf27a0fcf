"""What must not be trained or measured on, unless the user says so: the check before train and evaluate.

A prepared data set carries its own leaks in its manifest. A bundle that is measured on another data set than it was trained
on is checked against the inventory of that one, as long as it can be reached.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from skinray.audit import examine, leaks_in_words
from skinray.bundle import Bundle
from skinray.config import SplitName
from skinray.dicom import is_pseudonym
from skinray.duplicates import find_duplicates
from skinray.errors import LeakError, SkinrayError
from skinray.shards import PreparedDataset, open_dataset, read_photos
from skinray.splits import group_photos, names

_OF_ISIC = frozenset({"ham10000", "isic2019", "isic2020", "isic"})


def check_no_leaks(dataset: PreparedDataset, allowed: bool) -> None:
    """Refuses a data set with photos of one patient or lesion, or one photo, on both sides of a split.

    Raises:
        LeakError: The data set has leaks, and they were not allowed.
    """
    if dataset.manifest.leaks and not allowed:
        listed = ", ".join(leaks_in_words(dataset.manifest.leaks))
        raise LeakError(
            f"{dataset.uri} leaks: {listed}; figures measured on it would be too high. Prepare it to a new output without "
            "--keep-split and --previous, or go on with --allow-leaks, which is then written on everything made from it"
        )


@dataclass(frozen=True)
class Overlap:
    """What a bundle is to be measured on and was trained or chosen on.

    Attributes:
        counts: What stands on both sides, in words -> how many.
        image_ids: Photos to be measured that share a patient, a lesion or a picture with the training data, also through
            others.
        namesakes: Patient ids that stand on both sides, but come from another source on each: the same people, if both number
            their patients alike, or others. They are in neither of the above.
    """

    counts: dict[str, int]
    image_ids: frozenset[str]
    namesakes: int = 0


def find_overlap(bundle: Bundle, dataset: PreparedDataset, split: SplitName | Literal["all"]) -> Overlap | None:
    """Looks for what a bundle was trained or chosen on in what it is to be measured on.

    Args:
        bundle: The model.
        dataset: What it is to be measured on.
        split: Which part of it, or all.

    Returns:
        None when the training data cannot be reached any more.
    """
    trained_sha256 = bundle.metadata.get("dataset", {}).get("sha256")
    if trained_sha256 == dataset.sha256:
        # Its own splits: `check_no_leaks` knows what crosses them.
        photos = read_photos(dataset)
        learnt = frozenset(photos["image_id"][_measured(photos, split) & (photos["split"] != "test")])
        return Overlap({"photos": len(learnt)} if learnt else {}, learnt)
    try:
        trained_on = open_dataset(bundle.metadata.get("training_settings", {}).get("data", ""))
        # One that has grown since holds what it held, where it was; one of other settings is another one.
        if trained_on.manifest.settings != bundle.metadata["dataset"]["settings"]:
            return None
        seen = read_photos(trained_on)
    except SkinrayError:
        return None
    measured = read_photos(dataset)
    return _overlap(
        _with_qualified_ids(seen[seen["split"] != "test"], trained_on),
        _with_qualified_ids(measured[_measured(measured, split)], dataset),
    )


def _measured(photos: pd.DataFrame, split: SplitName | Literal["all"]) -> "pd.Series[bool]":
    return (photos["split"] == split) | (split == "all")


def check_no_overlap(
    overlap: Overlap | None,
    bundle: Bundle,
    dataset: PreparedDataset,
    split: SplitName | Literal["all"],
    allowed: bool,
    left_out: bool = False,
) -> None:
    """Refuses to measure a bundle on photos, lesions or patients that it was trained or chosen on.

    Args:
        overlap: From `find_overlap`, for the same bundle, data set and split.
        bundle: The model.
        dataset: What it is to be measured on.
        split: Which part of it, or all.
        allowed: Go on all the same.
        left_out: What overlaps is left out.

    Raises:
        LeakError: There is an overlap, and it was neither allowed nor left out; or it is to be left out and cannot be known.
    """
    if allowed:
        return
    if overlap is None and left_out:
        trained_on = bundle.metadata.get("training_settings", {}).get("data", "")
        raise LeakError(
            f"--leave-out-overlap: what {bundle.uri} was trained on ({trained_on}) is not there any more, or is another data set "
            "now, so nobody knows what to leave out. Bring it back there, or measure on all photos with --allow-leaks"
        )
    if overlap is None or not overlap.counts or left_out:
        return
    where = f"{'all splits' if split == 'all' else f'the {split} split'} of {dataset.uri}"
    listed = ", ".join(leaks_in_words(overlap.counts))
    if bundle.metadata["dataset"]["sha256"] == dataset.sha256:
        raise LeakError(
            f"{where}: {bundle.uri} was trained on {listed} of it, or its epoch, calibration and thresholds were chosen on them; "
            "its figures there would be too high. --split test measures on what it has not seen; --allow-leaks on these too, and "
            "says so"
        )
    raise LeakError(
        f"{bundle.uri} was trained on data that shares with {where}: {listed}; its figures there would be too high. "
        "--leave-out-overlap measures on the other photos; --allow-leaks on all of them, and says so"
    )


def _with_qualified_ids(photos: pd.DataFrame, dataset: PreparedDataset) -> pd.DataFrame:
    """Makes ids comparable across data sets: patient 7 of one hospital's table is not patient 7 of another's.

    What the data set itself calls the patient is kept as `own_id`.
    """
    photos = photos.assign(own_id=photos["patient_id"])
    for name in ("patient_id", "lesion_id"):
        # The ISIC archive numbers patients and lesions once, for all the data sets that were taken from it.
        where = ["isic" if source in _OF_ISIC else dataset.manifest.settings["source"] for source in photos["source"]]
        photos[name] = [own and f"{place}:{own}" for place, own in zip(where, names(photos[name]), strict=True)]
    # A patient has one pseudonym in all DICOM archives.
    everywhere = [bool(own and is_pseudonym(own)) for own in names(photos["own_id"])]
    photos.loc[everywhere, "patient_id"] = photos["own_id"]
    return photos


def _overlap(seen: pd.DataFrame, measured: pd.DataFrame) -> Overlap:
    both = pd.concat([seen.assign(split="trained on"), measured.assign(split="measured on")], ignore_index=True)
    both["fold"] = None
    both["file_bytes"] = both["stored_bytes"]
    duplicates = find_duplicates(both["image_sha256"].tolist(), both["fingerprint"].tolist())
    counts = examine(both, duplicates, (), ()).leak_counts
    # Numbered, because both may call different photos the same.
    numbers = [f"{number:09d}" for number in range(len(both))]
    groups = np.array(group_photos(numbers, names(both["patient_id"]), names(both["lesion_id"]), duplicates.pairs))
    shared = np.isin(groups, groups[both["split"] == "trained on"]) & (both["split"] == "measured on").to_numpy(bool)
    others = measured[~measured["patient_id"].isin(seen["patient_id"])]
    return Overlap(
        {what.removesuffix(" across splits"): count for what, count in counts.items()},
        frozenset(both["image_id"][shared]),
        namesakes=len(({*names(others["own_id"])} & {*names(seen["own_id"])}) - {None}),
    )
