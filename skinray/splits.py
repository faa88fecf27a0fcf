"""Grouped, stratified splits: all photos of one patient (else lesion) stand on one side.

Which side a group takes follows from a hash of its name and the seed, not from the order of the photos.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from skinray.errors import CatalogError


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
    """The name of the group that must not be divided: the patient, else the lesion, else the photo itself."""
    if patient_id:
        return f"patient:{patient_id}"
    if lesion_id:
        return f"lesion:{lesion_id}"
    return f"image:{image_id}"


def assign_splits(labels: Sequence[str], groups: Sequence[str], rule: SplitRule) -> tuple[list[str], list[int | None]]:
    """Divides photos into train, validation and test, and what is not test into folds.

    Within each stratum (groups that share their rarest label) the groups are taken in the order of their hash; test is
    filled first, then validation, and the rest is train. Folds are filled evenly in the same order.

    Args:
        labels: Class code of each photo.
        groups: Group of each photo.
        rule: Fractions, folds and seed.

    Returns:
        The split of each photo, and its fold (None in test).

    Raises:
        CatalogError: A split would have no photo: there are too few groups.
    """
    photos_of: dict[str, list[int]] = defaultdict(list)
    for position, group in enumerate(groups):
        photos_of[group].append(position)
    counts = Counter(labels)
    strata: dict[str, list[str]] = defaultdict(list)
    for group, positions in photos_of.items():
        strata[min({labels[position] for position in positions}, key=lambda label: (counts[label], label))].append(group)

    split_of: dict[str, str] = {}
    fold_of: dict[str, int | None] = {}
    for stratum in sorted(strata):
        ordered = sorted(strata[stratum], key=lambda group: _hash(rule.seed, group))
        total = sum(len(photos_of[group]) for group in ordered)
        taken = 0
        in_fold = [0] * rule.folds
        for group in ordered:
            middle = (taken + len(photos_of[group]) / 2) / total
            taken += len(photos_of[group])
            if middle < rule.test_fraction:
                split_of[group], fold_of[group] = "test", None
                continue
            split_of[group] = "validation" if middle < rule.test_fraction + rule.validation_fraction else "train"
            emptiest = in_fold.index(min(in_fold))
            in_fold[emptiest] += len(photos_of[group])
            fold_of[group] = emptiest
    splits = [split_of[group] for group in groups]
    for split in ("train", "validation", "test"):
        if split not in splits:
            raise CatalogError(
                f"{len(labels)} photos in {len(photos_of)} groups are too few for a {split} split: "
                "add photos or raise its fraction"
            )
    return splits, [fold_of[group] for group in groups]


def divided_groups(groups: Sequence[str], splits: Sequence[str]) -> list[str]:
    """The groups that stand in more than one split, sorted: each one is a leak."""
    seen: dict[str, set[str]] = defaultdict(set)
    for group, split in zip(groups, splits, strict=True):
        seen[group].add(split)
    return sorted(group for group, sides in seen.items() if len(sides) > 1)


def _hash(seed: int, group: str) -> bytes:
    return hashlib.sha256(f"{seed}:{group}".encode()).digest()
