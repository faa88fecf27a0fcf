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
    for stratum in sorted(strata):
        sizes = {group: len(photos_of[group]) for group in strata[stratum]}
        place_of |= _fill(sizes, {group: place_of[group] for group in sizes if group in place_of}, rule)
    placements = [own or place_of[group] for own, group in zip(before, groups, strict=True)]
    return [split for split, _ in placements], [fold for _, fold in placements]


def _fill(sizes: dict[str, int], placed: dict[str, Placement], rule: SplitRule) -> dict[str, Placement]:
    """Places the groups of one stratum that have no place yet; `sizes` is group -> number of photos."""
    new = sorted(sizes.keys() - placed.keys(), key=lambda group: _hash(rule.seed, group))
    if not new:
        return {}
    have = Counter({"test": 0, "validation": 0, "train": 0})
    in_fold = [0] * rule.folds
    for group, (split, fold) in placed.items():
        have[split] += sizes[group]
        if fold is not None and fold < rule.folds:
            in_fold[fold] += sizes[group]
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
        emptiest = in_fold.index(min(in_fold))
        in_fold[emptiest] += sizes[group]
        places[group] = ("validation" if middle < validation_ends else "train", emptiest)
    return places


def check_filled(splits: Sequence[str], groups: Sequence[str]) -> None:
    """Raises CatalogError when a split has no photo: there are too few groups."""
    for split in ("train", "validation", "test"):
        if split not in splits:
            raise CatalogError(
                f"{len(splits)} photos in {len(set(groups))} groups are too few for a {split} split: "
                "add photos or raise its fraction"
            )


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
    carve = "validation" not in given
    inside = [position for position, split in enumerate(given) if split != "test"]
    cut = SplitRule(rule.validation_fraction if carve else 0.0, 0.0, rule.folds, rule.seed)
    before = None if placed is None else [placed[position] for position in inside]
    carved, folded = assign_splits([labels[i] for i in inside], [groups[i] for i in inside], cut, before)
    splits, folds = [str(split) for split in given], [None] * len(given)  # type: list[str], list[int | None]
    for position, split, fold in zip(inside, carved, folded, strict=True):
        splits[position] = split if carve else splits[position]
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
