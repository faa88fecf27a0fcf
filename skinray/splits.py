"""Grouped, stratified splits and folds: photos of one patient, one lesion or one duplicate cluster stand on one side.

Which side a group takes follows from a hash of its name and the seed, not from the order of the photos. Photos that were
placed before stay where they are: exact shares and sides that never change exclude each other for a rule without memory, so
the memory is the data set that was prepared before.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from skinray.duplicates import clusters
from skinray.errors import CatalogError

Placement = tuple[str, int | None]


@dataclass(frozen=True)
class SplitRule:
    """How photos are divided.

    Attributes:
        validation_fraction: Share of the photos for validation.
        test_fraction: Share of the photos for test.
        folds: Number of cross-validation folds over what is not test.
        seed: Another seed is another split.
    """

    validation_fraction: float
    test_fraction: float
    folds: int
    seed: int


def group_of(patient_id: str | None, lesion_id: str | None, image_id: str) -> str:
    """The name of the group that one photo alone belongs to: the patient, else the lesion, else the photo itself."""
    if patient_id:
        return f"patient:{patient_id}"
    if lesion_id:
        return f"lesion:{lesion_id}"
    return f"image:{image_id}"


def names(values: Iterable[object]) -> list[str | None]:
    """Names as they are; None, NaN and what else pandas has for a gap as None."""
    return [value if isinstance(value, str) and value else None for value in values]


def lesion_names(lesion_ids: Sequence[str | None], patient_ids: Sequence[str | None]) -> list[str | None]:
    """Lesions by names that are theirs alone: numbers that start anew with each patient are told apart by the patient."""
    patients: dict[str, set[str]] = defaultdict(set)
    for lesion, patient in zip(lesion_ids, patient_ids, strict=True):
        if lesion and patient:
            patients[lesion].add(patient)
    return [
        f"{lesion} of {patient}" if lesion and patient and len(patients[lesion]) > 1 else lesion
        for lesion, patient in zip(lesion_ids, patient_ids, strict=True)
    ]


def group_photos(
    image_ids: Sequence[str],
    patient_ids: Sequence[str | None],
    lesion_ids: Sequence[str | None],
    duplicates: npt.NDArray[np.int64],
) -> list[str]:
    """Joins photos that share a patient, a lesion or a duplicate, also through others, into groups that must not be divided.

    Args:
        image_ids: One a photo.
        patient_ids: One a photo, None when unknown.
        lesion_ids: One a photo, None when unknown.
        duplicates: Positions of photos that are duplicates of each other, int64 [pairs, 2].

    Returns:
        The group of each photo, named after its first patient, else its first lesion, else its first photo.
    """
    pairs: list[tuple[int, int]] = []
    lesion_ids = lesion_names(lesion_ids, patient_ids)
    for values in (patient_ids, lesion_ids):
        first: dict[str, int] = {}
        pairs += [(first.setdefault(value, position), position) for position, value in enumerate(values) if value]
    joined = np.concatenate([np.array(pairs, np.int64).reshape(-1, 2), duplicates])
    number = clusters(len(image_ids), joined)
    name: dict[int, str] = {}
    for component, own in zip(number.tolist(), map(group_of, patient_ids, lesion_ids, image_ids), strict=True):
        name[component] = min(name.get(component, own), own, key=_rank)
    return [name[component] for component in number.tolist()]


def _rank(group: str) -> tuple[int, str]:
    return ("patient", "lesion", "image").index(group.split(":", 1)[0]), group


def assign_splits(
    labels: Sequence[str], groups: Sequence[str], rule: SplitRule, placed: Sequence[Placement | None] | None = None
) -> tuple[list[str], list[int | None]]:
    """Divides photos into train, validation and test, and what is not test into folds.

    Within each stratum (groups that share their rarest label) the groups are taken in the order of their hash; test is
    filled first, then validation, and the rest is train. Folds are filled evenly in the same order. Where photos are placed
    already, new groups fill up what is missing to the wanted shares, and new photos of a placed group follow it.

    Args:
        labels: Class code of each photo.
        groups: Group of each photo.
        rule: Fractions, folds and seed.
        placed: Split and fold of each photo that has them already; None for the others.

    Returns:
        The split of each photo, and its fold (None in test).
    """
    photos_of: dict[str, list[int]] = defaultdict(list)
    for position, group in enumerate(groups):
        photos_of[group].append(position)
    counts = Counter(labels)
    strata: dict[str, list[str]] = defaultdict(list)
    for group, positions in photos_of.items():
        strata[min({labels[position] for position in positions}, key=lambda label: (counts[label], label))].append(group)

    before = placed or [None] * len(groups)
    place_of: dict[str, Placement] = {}
    for group, placement in sorted((group, placement) for group, placement in zip(groups, before, strict=True) if placement):
        place_of.setdefault(group, placement)
    fold_sizes = [0] * rule.folds
    for stratum in sorted(strata):
        sizes = {group: len(photos_of[group]) for group in strata[stratum]}
        place_of |= _fill(sizes, {group: place_of[group] for group in sizes if group in place_of}, rule, fold_sizes)
    placements = [own or place_of[group] for own, group in zip(before, groups, strict=True)]
    return [split for split, _ in placements], [fold for _, fold in placements]


def _fill(sizes: dict[str, int], placed: dict[str, Placement], rule: SplitRule, fold_sizes: list[int]) -> dict[str, Placement]:
    """Places the groups of one stratum that have no place yet.

    Args:
        sizes: Group -> number of photos.
        placed: Groups of the stratum that have a place.
        rule: Shares, folds and seed.
        fold_sizes: Photos of each fold in all strata so far; counted on. Of folds that are level in this stratum, the one
            that is smallest as a whole is next, or many small strata would all fill the first folds only.
    """
    have = Counter({"test": 0, "validation": 0, "train": 0})
    in_fold = [0] * rule.folds
    for group, (split, fold) in placed.items():
        have[split] += sizes[group]
        if fold is not None:
            in_fold[fold] += sizes[group]
            fold_sizes[fold] += sizes[group]
    new = sorted(sizes.keys() - placed.keys(), key=lambda group: _hash(rule.seed, group))
    if not new:
        return {}
    total = sum(sizes.values())
    share = {"test": rule.test_fraction, "validation": rule.validation_fraction}
    share["train"] = 1 - sum(share.values())
    missing = {split: max(0.0, share[split] * total - have[split]) for split in share}
    # Nothing is placed: what is missing is the shares themselves.
    test_ends = missing["test"] / sum(missing.values())
    validation_ends = test_ends + missing["validation"] / sum(missing.values())

    size_of_new = sum(sizes[group] for group in new)
    taken = 0
    places: dict[str, Placement] = {}
    for group in new:
        middle = (taken + sizes[group] / 2) / size_of_new
        taken += sizes[group]
        if middle < test_ends:
            places[group] = ("test", None)
            continue
        emptiest = min(range(rule.folds), key=lambda fold: (in_fold[fold], fold_sizes[fold]))
        in_fold[emptiest] += sizes[group]
        fold_sizes[emptiest] += sizes[group]
        places[group] = ("validation" if middle < validation_ends else "train", emptiest)
    return places


def check_filled(splits: Sequence[str], folds: Sequence[int | None], groups: Sequence[str], rule: SplitRule, kept: bool) -> None:
    """Raises CatalogError when a split or a fold has no photo.

    Args:
        splits: Split of each photo.
        folds: Fold of each photo.
        groups: Group of each photo.
        rule: What was asked for.
        kept: Whether the split came with the data.
    """
    absent = [split for split in ("train", "validation", "test") if split not in splits]
    if absent and kept:
        raise CatalogError(f"--keep-split: the split that came with the data has no {absent[0]} photos; leave the flag out")
    few = f"{len(splits)} photos in {len(set(groups))} groups are too few for"
    if absent:
        raise CatalogError(f"{few} a {absent[0]} split: add photos or raise its fraction")
    filled = len({fold for fold in folds if fold is not None})
    if filled < rule.folds:
        raise CatalogError(f"{few} {rule.folds} folds, only {filled} would have any: add photos or lower --folds")


def keep_splits(
    given: Sequence[str | None],
    labels: Sequence[str],
    groups: Sequence[str],
    rule: SplitRule,
    placed: Sequence[Placement | None] | None = None,
) -> tuple[list[str], list[int | None]]:
    """The split that came with the data set; where it has no validation, that is taken from train, group by group.

    Args:
        given: Split of each photo as it came.
        labels: Class code of each photo.
        groups: Group of each photo.
        rule: Folds and seed, and the share of train that becomes validation if there is none.
        placed: Split and fold of each photo that has them already; None for the others.

    Returns:
        The split of each photo, and its fold (None in test).

    Raises:
        CatalogError: Photos came without a split.
    """
    unsaid = sum(not split for split in given)
    if unsaid:
        raise CatalogError(f"--keep-split: {unsaid} of {len(given)} photos came without a split")
    before = placed or [None] * len(given)
    # Whether validation was taken from train is decided once: photos that have a place keep it.
    deciding = [split for split, place in zip(given, before, strict=True) if place] or given
    carve = "validation" not in deciding
    inside = [position for position, split in enumerate(given) if split != "test"]
    cut = SplitRule(rule.validation_fraction if carve else 0.0, 0.0, rule.folds, rule.seed)
    carved, folded = assign_splits(
        [labels[i] for i in inside], [groups[i] for i in inside], cut, [before[position] for position in inside]
    )
    splits, folds = [str(split) for split in given], [None] * len(given)  # type: list[str], list[int | None]
    for position, split, fold in zip(inside, carved, folded, strict=True):
        if before[position] or (carve and given[position] == "train"):
            splits[position] = split
        folds[position] = fold
    return splits, folds


def divided_groups(groups: Sequence[str | None], sides: Sequence[object]) -> list[str]:
    """The groups that stand on more than one side, sorted: each one is a leak. None is no group."""
    seen: dict[str, set[object]] = defaultdict(set)
    for group, side in zip(groups, sides, strict=True):
        if group:
            seen[group].add(side)
    return sorted(group for group, found in seen.items() if len(found) > 1)


def _hash(seed: int, group: str) -> bytes:
    return hashlib.sha256(f"{seed}:{group}".encode()).digest()
