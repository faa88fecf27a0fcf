"""Splits: no group on two sides, whatever the order of the photos, and shares that are kept."""

from collections import Counter
from collections.abc import Callable
from itertools import product
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skinray.errors import CatalogError
from skinray.splits import (
    Placement,
    SplitRule,
    assign_splits,
    check_filled,
    divided_groups,
    group_of,
    group_photos,
    keep_splits,
    lesion_names,
)

Photos = list[tuple[str, str]]  # label and group of each photo
RULE = SplitRule(validation_fraction=0.1, test_fraction=0.2, folds=5, seed=0)


def lesions(count: int, seed: int = 0, mixed: bool = False) -> Photos:
    """Photos of this many lesions, one to four of each; the photos of a mixed one may have different labels."""
    random = Random(seed)
    photos: Photos = []
    for lesion in range(count):
        size = random.choice([1, 1, 1, 2, 4])
        labels = random.choices(["nv", "mel", "df"], [80, 15, 5], k=size if mixed else 1) * (1 if mixed else size)
        photos += [(label, f"lesion:{lesion}") for label in labels]
    return photos


some_photos = st.builds(lesions, st.integers(1, 60), st.integers(0, 10_000), st.booleans())
rules = st.builds(
    SplitRule,
    validation_fraction=st.floats(0.05, 0.4),
    test_fraction=st.floats(0.05, 0.4),
    folds=st.integers(2, 8),
    seed=st.integers(0, 1000),
)


def split(photos: Photos, rule: SplitRule, placed: list[Placement | None] | None = None) -> tuple[list[str], list[int | None]]:
    groups = [group for _, group in photos]
    splits, folds = assign_splits([label for label, _ in photos], groups, rule, placed)
    check_filled(splits, folds, groups, rule, kept=False)
    return splits, folds


@settings(deadline=None)
@given(photos=some_photos, rule=rules)
def test_no_group_is_divided_and_only_test_has_no_fold(photos: Photos, rule: SplitRule) -> None:
    groups = [group for _, group in photos]
    try:
        splits, folds = split(photos, rule)
    except CatalogError as error:
        message = str(error)
    else:
        assert len(set(zip(groups, splits, folds, strict=True))) == len(set(groups))
        assert divided_groups(groups, splits) == []
        assert set(splits) == {"train", "validation", "test"}
        assert all((fold is None) == (side == "test") for side, fold in zip(splits, folds, strict=True))
        assert {fold for fold in folds if fold is not None} == set(range(rule.folds))
        return
    assert f"{len(photos)} photos in {len(set(groups))} groups are too few" in message


@settings(deadline=None, max_examples=50)
@given(photos=some_photos, rule=rules, random=st.randoms(use_true_random=False))
def test_the_order_of_the_photos_does_not_matter(photos: Photos, rule: SplitRule, random: Random) -> None:
    shuffled = random.sample(photos, len(photos))

    def by_group(order: Photos) -> dict[str, tuple[str, int | None]] | str:
        try:
            splits, folds = split(order, rule)
        except CatalogError as error:
            return str(error)
        return {group: (side, fold) for (_, group), side, fold in zip(order, splits, folds, strict=True)}

    assert by_group(shuffled) == by_group(photos)


@pytest.mark.parametrize("rule", [RULE, SplitRule(0.25, 0.25, 3, 7), SplitRule(0.05, 0.5, 10, 1)])
def test_shares_of_every_label_are_kept_within_two_points(rule: SplitRule) -> None:
    photos = lesions(3000)
    splits, _ = split(photos, rule)
    for label in ("nv", "mel", "df"):
        sides = Counter(side for (own, _), side in zip(photos, splits, strict=True) if own == label)
        total = sum(sides.values())
        assert sides["test"] / total == pytest.approx(rule.test_fraction, abs=0.02), label
        assert sides["validation"] / total == pytest.approx(rule.validation_fraction, abs=0.02), label


def test_folds_are_even_in_size_and_labels() -> None:
    photos = lesions(3000)
    _, folds = split(photos, RULE)
    counts = Counter((label, fold) for (label, _), fold in zip(photos, folds, strict=True) if fold is not None)
    for label in ("nv", "mel", "df"):
        sizes = [counts[label, fold] for fold in range(5)]
        assert max(sizes) - min(sizes) <= 4, label  # the largest lesion has four photos


def test_a_rare_class_stands_on_every_side() -> None:
    photos = [*lesions(500), *(("rare", f"lesion:rare{number}") for number in range(10))]
    splits, _ = split(photos, RULE)
    sides = Counter(side for (label, _), side in zip(photos, splits, strict=True) if label == "rare")
    assert sides == {"train": 7, "validation": 1, "test": 2}


def test_another_seed_is_another_split() -> None:
    photos = lesions(200)
    one, two = (split(photos, SplitRule(0.1, 0.2, 5, seed))[0] for seed in (0, 1))
    assert one != two
    assert one == split(photos, RULE)[0]


def test_without_memory_more_photos_leave_most_groups_where_they_were() -> None:
    before, after = lesions(1000), lesions(1020)
    sides = dict(zip((group for _, group in before), split(before, RULE)[0], strict=True))
    moved = {group for (_, group), side in zip(after, split(after, RULE)[0], strict=True) if sides.get(group, side) != side}
    assert len(moved) < 50


@settings(deadline=None, max_examples=50)
@given(photos=some_photos, rule=rules, known=st.floats(0.2, 0.9), seed=st.integers(0, 1000))
def test_a_photo_that_has_a_place_keeps_it_and_new_photos_of_its_group_follow(
    photos: Photos, rule: SplitRule, known: float, seed: int
) -> None:
    random = Random(seed)
    early = [position for position in range(len(photos)) if random.random() < known]
    labels, groups = [label for label, _ in photos], [group for _, group in photos]
    splits, folds = assign_splits([labels[i] for i in early], [groups[i] for i in early], rule)
    placed: list[Placement | None] = [None] * len(photos)
    for position, side, fold in zip(early, splits, folds, strict=True):
        placed[position] = (side, fold)
    later = list(zip(*assign_splits(labels, groups, rule, placed), strict=True))
    assert [later[position] for position in early] == list(zip(splits, folds, strict=True))
    assert len(set(zip(groups, later, strict=True))) == len(set(groups))


def test_new_photos_fill_up_what_is_missing_to_the_wanted_shares() -> None:
    photos = lesions(3000)
    groups = [group for _, group in photos]
    # The first third all went to train.
    placed: list[Placement | None] = [("train", 0) if int(group.split(":")[1]) < 1000 else None for group in groups]
    splits, folds = split(photos, RULE, placed)
    shares = Counter(splits)
    assert shares["test"] / len(photos) == pytest.approx(0.2, abs=0.01)
    assert shares["validation"] / len(photos) == pytest.approx(0.1, abs=0.01)
    assert Counter(folds)[0] > Counter(folds)[1]  # what was placed is counted, and never moved
    assert max(Counter(folds)[fold] for fold in range(1, 5)) - min(Counter(folds)[fold] for fold in range(1, 5)) <= 12


def test_photos_placed_on_two_sides_stay_there() -> None:
    labels, groups = ["nv"] * 3, ["lesion:1"] * 3
    placed: list[Placement | None] = [("train", 1), ("test", None), None]
    splits, _ = assign_splits(labels, groups, RULE, placed)
    assert splits[:2] == ["train", "test"]
    assert splits[2] in ("train", "test")


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_groups_are_an_error(count: int) -> None:
    with pytest.raises(CatalogError, match=f"{count} photos in {count} groups are too few for a"):
        split([("nv", f"lesion:{number}") for number in range(count)], RULE)


def test_one_group_cannot_be_split() -> None:
    with pytest.raises(CatalogError, match="100 photos in 1 groups"):
        split([("nv", "patient:1")] * 100, RULE)


@pytest.mark.parametrize(
    ("patient", "lesion", "group"),
    [
        ("P1", "L1", "patient:P1"),
        ("P1", None, "patient:P1"),
        (None, "L1", "lesion:L1"),
        (None, None, "image:I1"),
        ("", "", "image:I1"),
    ],
)
def test_a_group_is_the_patient_else_the_lesion_else_the_photo(patient: str | None, lesion: str | None, group: str) -> None:
    assert group_of(patient, lesion, "I1") == group


def test_equal_names_of_a_patient_a_lesion_and_a_photo_are_three_groups() -> None:
    assert len({group_of("1", None, "x"), group_of(None, "1", "x"), group_of(None, None, "1")}) == 3


def test_groups_join_through_patients_lesions_and_duplicates() -> None:
    groups = group_photos(
        ["a", "b", "c", "d", "e", "f"],
        ["P2", None, None, "P1", None, None],
        ["L1", "L1", None, None, "L2", None],
        np.array([[1, 2], [2, 3]]),
    )
    assert groups == ["patient:P1"] * 4 + ["lesion:L2", "image:f"]


@settings(deadline=None, max_examples=50)
@given(data=st.data(), count=st.integers(1, 30))
def test_no_group_is_smaller_than_what_it_must_hold_together(data: st.DataObject, count: int) -> None:
    name = st.sampled_from([None, "1", "2", "3", "4"])
    patients, lesion_ids = (data.draw(st.lists(name, min_size=count, max_size=count)) for _ in range(2))
    position = st.integers(0, count - 1)
    pairs = data.draw(st.lists(st.tuples(position, position), max_size=10))
    groups = group_photos([f"i{n}" for n in range(count)], patients, lesion_ids, np.array(pairs, np.int64).reshape(-1, 2))
    lesion_of = lesion_names(lesion_ids, patients)
    for one, other in [*pairs, *product(range(count), repeat=2)]:
        same = (one, other) in pairs or (patients[one] or 0) == patients[other] or (lesion_of[one] or 0) == lesion_of[other]
        assert not same or groups[one] == groups[other]
    alone = [n for n in range(count) if not patients[n] and not lesion_ids[n] and all(n not in pair for pair in pairs)]
    assert all(groups[n] == f"image:i{n}" and groups.count(groups[n]) == 1 for n in alone)


def test_a_split_that_came_is_kept_and_validation_is_taken_from_train() -> None:
    photos = lesions(500)
    labels, groups = [label for label, _ in photos], [group for _, group in photos]
    given = ["test" if int(group.split(":")[1]) % 4 == 0 else "train" for group in groups]
    splits, folds = keep_splits(given, labels, groups, RULE)
    assert [side == "test" for side in splits] == [side == "test" for side in given]
    assert Counter(splits)["validation"] / given.count("train") == pytest.approx(0.1, abs=0.02)
    assert divided_groups(groups, splits) == []
    assert all((fold is None) == (side == "test") for side, fold in zip(splits, folds, strict=True))


def test_a_validation_that_came_is_kept_too() -> None:
    given = ["train", "validation", "test", "train"]
    splits, folds = keep_splits(given, ["nv"] * 4, ["a", "b", "c", "d"], RULE)
    assert splits == given
    assert [fold is None for fold in folds] == [False, False, True, False]


def test_new_photos_do_not_move_what_was_taken_from_train_for_validation() -> None:
    first = ["train"] * 40 + ["test"] * 10
    groups = [f"image:{number}" for number in range(60)]
    splits, folds = keep_splits(first, ["nv"] * 50, groups[:50], RULE)
    placed: list[Placement | None] = [*zip(splits, folds, strict=True), *[None] * 10]
    given = [*first, *["validation"] * 5, *["train"] * 5]  # what came later has a validation of its own
    later, later_folds = keep_splits(given, ["nv"] * 60, groups, RULE, placed)
    assert (later[:50], later_folds[:50]) == (splits, folds)
    assert later[50:55] == ["validation"] * 5
    assert set(later[55:]) <= {"train", "validation"}


@pytest.mark.parametrize("absent", ["train", "validation", "test"])
def test_a_split_that_came_without_a_part_says_so(absent: str) -> None:
    given = [side for side in ("train", "validation", "test") for _ in range(8) if side != absent]
    groups = [f"image:{number}" for number in range(len(given))]
    splits, folds = keep_splits(given, ["nv"] * len(given), groups, SplitRule(0.001, 0.2, 2, 0))
    with pytest.raises(CatalogError, match=f"--keep-split: the split that came with the data has no {absent} photos"):
        check_filled(splits, folds, groups, RULE, kept=True)


def test_many_small_classes_fill_all_folds_alike() -> None:
    labels, groups = zip(*((f"class{number // 4}", f"lesion:{number}") for number in range(9 * 4)), strict=True)
    _, folds = assign_splits(labels, groups, RULE)
    counts = Counter(fold for fold in folds if fold is not None)
    assert set(counts) == set(range(5))
    assert max(counts.values()) - min(counts.values()) <= 1


def test_too_few_groups_for_the_folds_are_an_error() -> None:
    with pytest.raises(CatalogError, match=r"12 photos in 12 groups are too few for 20 folds, only \d+ would have any"):
        split([("nv", f"lesion:{number}") for number in range(12)], SplitRule(0.1, 0.2, 20, 0))


def test_lesion_numbers_that_start_anew_with_each_patient_do_not_join_patients() -> None:
    patients = ["P1", "P1", "P2", "P2", None]
    groups = group_photos([*"abcde"], patients, ["1", "2", "1", "2", "9"], np.empty((0, 2), np.int64))
    assert groups == ["patient:P1"] * 2 + ["patient:P2"] * 2 + ["lesion:9"]
    assert lesion_names(["1", "1", None], ["P1", "P2", "P1"]) == ["1 of P1", "1 of P2", None]
    assert lesion_names(["L", "L"], ["P1", None]) == ["L", "L"]  # one photo of the lesion does not name its patient


def test_a_leak_in_a_split_that_came_is_kept_to_be_found() -> None:
    splits, _ = keep_splits(["train", "test", "train"], ["nv"] * 3, ["lesion:1", "lesion:1", "lesion:2"], RULE)
    assert divided_groups(["lesion:1", "lesion:1", "lesion:2"], splits) == ["lesion:1"]


def test_photos_that_came_without_a_split_cannot_keep_it() -> None:
    with pytest.raises(CatalogError, match="1 of 2 photos came without a split"):
        keep_splits(["train", None], ["nv", "nv"], ["a", "b"], RULE)


def test_groups_on_two_sides_are_found() -> None:
    groups = ["c", "a", "b", "a", "c", "d", "d"]
    splits = ["train", "train", "test", "test", "validation", "test", "test"]
    assert divided_groups(groups, splits) == ["a", "c"]
    assert divided_groups([], []) == []
    assert divided_groups([None, None], ["train", "test"]) == []


@settings(deadline=None, max_examples=50)
@given(sides=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["train", "test"]))))
def test_a_group_is_divided_when_two_of_its_photos_are(sides: list[tuple[str, str]]) -> None:
    found = divided_groups([group for group, _ in sides], [side for _, side in sides])
    pairs: Callable[[str], bool] = lambda name: any(  # noqa: E731
        one[0] == two[0] == name and one[1] != two[1] for one, two in product(sides, sides)
    )
    assert found == [name for name in "abc" if pairs(name)]
