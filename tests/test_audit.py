"""The audit's findings, on small tables whose faults are known."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from skinray.audit import MOST_LISTED, MOST_PHOTOS, Audit, Conflict, Leak, PhotoFact, examine
from skinray.duplicates import Duplicates


def table(**columns: list[Any]) -> pd.DataFrame:
    """Photos a, b, c...; a column that is not given is empty or the same for all."""
    count = len(next(iter(columns.values())))
    defaults: dict[str, list[Any]] = {
        "image_id": [chr(ord("a") + number) for number in range(count)] if count < 27 else [f"i{n}" for n in range(count)],
        "label": ["nv"] * count,
        "split": [None] * count,
        "fold": [None] * count,
        **{name: [None] * count for name in ("patient_id", "lesion_id", "sex", "site")},
        "age": [float("nan")] * count,
        **{name: [100] * count for name in ("width_px", "height_px", "file_bytes", "jpeg_quality")},
        "removed": [""] * count,
    }
    return pd.DataFrame({**defaults, **columns})


def pairs(*found: tuple[int, int, str]) -> Duplicates:
    positions = np.array([(one, other) for one, other, _ in found], np.int64).reshape(-1, 2)
    kinds = np.array([kind for *_, kind in found], str)
    return Duplicates(positions, kinds, np.where(kinds == "listed", np.nan, 0.99).astype(np.float32))


def audit(photos: pd.DataFrame, *found: tuple[int, int, str], unreadable: tuple[dict[str, str], ...] = ()) -> Audit:
    return examine(photos, pairs(*found), unreadable, ["mel"])


def ids(finding: Leak | Conflict) -> tuple[str, ...]:
    return tuple(photo.image_id for photo in finding.photos)


def test_a_clean_data_set_has_no_findings() -> None:
    found = audit(table(split=["train", "test"], lesion_id=["L1", "L2"], patient_id=["P1", "P2"]))
    assert found.leak_counts == {}
    assert found.leaks == found.conflicts == found.pairs == ()
    assert found.leaked_photos == found.contradicted_photos == {}
    assert "no leaks" in found.summary()


@pytest.mark.parametrize(("column", "words"), [("patient_id", "patients"), ("lesion_id", "lesions")])
def test_a_patient_or_lesion_in_two_splits_is_a_leak(column: str, words: str) -> None:
    found = audit(table(split=["train", "test", "test"], **{column: ["X", "X", "Y"]}))
    assert found.leak_counts == {f"{words} across splits": 1}
    (leak,) = found.leaks
    assert (leak.name, leak.sides, ids(leak), leak.photo_count) == ("X", ("train", "test"), ("a", "b"), 2)
    assert found.leaked_photos == {"train": 1, "test": 1}
    assert f"LEAK: 1 {words.removesuffix('s')} across splits" in found.summary()


def test_a_lesion_in_two_folds_is_a_leak_and_test_has_no_fold() -> None:
    found = audit(table(split=["train", "train", "test"], fold=[0, 1, None], lesion_id=["L", "L", "M"]))
    assert found.leak_counts == {"lesions across folds": 1}
    assert found.leaks[0].sides == ("fold 0", "fold 1")
    assert found.leaks[0].photos[1] == PhotoFact(image_id="b", label="nv", split="train", fold=1, lesion_id="L")
    assert found.leaked_photos == {}  # of splits there is none


def test_folds_stand_in_the_order_of_their_numbers() -> None:
    # Of a nullable column pandas may make floats.
    photos = table(split=["train"] * 3, lesion_id=["L"] * 3).assign(fold=[10.0, 2.0, float("nan")])
    (leak,) = audit(photos).leaks
    assert (leak.sides, ids(leak)) == (("fold 2", "fold 10"), ("b", "a"))


def test_duplicates_leak_through_chains() -> None:
    found = audit(table(split=["train", "train", "test", "test"]), (0, 1, "near"), (1, 2, "exact"))
    assert found.leak_counts == {"duplicate clusters across splits": 1}
    assert ids(found.leaks[0]) == ("a", "c", "b")  # one of each side comes first
    assert found.leaked_photos == {"train": 2, "test": 1}
    assert found.counts["clusters"] == 1
    assert found.counts["photos_in_clusters"] == 3


def test_photos_without_ids_are_no_group() -> None:
    assert audit(table(split=["train", "test"])).leak_counts == {}


def test_duplicates_under_two_labels_are_a_conflict_and_no_leak() -> None:
    found = audit(table(label=["nv", "mel", "nv", "nv"], lesion_id=[None, None, "L", "L"]), (0, 1, "exact"), (2, 3, "near"))
    assert found.leak_counts == {}
    (conflict,) = found.conflicts
    assert (conflict.kind, conflict.labels, ids(conflict)) == ("duplicates", ("mel", "nv"), ("b", "a"))
    assert found.contradicted_photos == {"mel": 1, "nv": 1}
    assert found.counts["conflicts_duplicates"] == 1


def test_a_lesion_under_two_labels_is_a_conflict() -> None:
    (conflict,) = audit(table(label=["nv", "mel"], lesion_id=["L", "L"])).conflicts
    assert (conflict.kind, conflict.name) == ("lesion", "L")


def test_pairs_carry_what_is_known_of_their_photos_and_their_similarity() -> None:
    found = audit(table(label=["nv", "mel"], split=["train", None], fold=[3, None]), (0, 1, "listed"))
    (pair,) = found.pairs
    assert (pair.kind, pair.similarity) == ("listed", None)
    assert pair.photos == (
        PhotoFact(image_id="a", label="nv", split="train", fold=3),
        PhotoFact(image_id="b", label="mel", split=None, fold=None),
    )


def test_a_photo_with_several_faults_is_counted_once() -> None:
    # Patient P and lesion L leak, both with photo a; c is a copy of a, and d has nothing to do with them.
    photos = table(
        split=["train", "test", "test", "test"],
        label=["nv", "mel", "mel", "mel"],
        patient_id=["P", "P", None, "Q"],
        lesion_id=["L", "L", None, None],
    )
    found = audit(photos, (0, 2, "near"))
    assert found.leak_counts == {"duplicate clusters across splits": 1, "lesions across splits": 1, "patients across splits": 1}
    assert found.leaked_photos == {"train": 1, "test": 2}
    assert found.contradicted_photos == {"mel": 2, "nv": 1}


def test_findings_come_in_the_order_of_their_first_photos() -> None:
    count = 12
    photos = table(
        split=["train"] * count + ["test"] * count + ["train"], lesion_id=[f"{9 - n}" for n in range(10)] + [None] * 15
    )
    photos["lesion_id"] = [*photos["lesion_id"][:10], None, None, *photos["lesion_id"][:10], None, None, None]
    found = audit(photos, *((row, row + count, "near") for row in range(count)))
    clusters = [leak.name for leak in found.leaks if leak.kind == "duplicates"]
    assert clusters == [f"cluster {number}" for number in range(1, count + 1)]
    assert [leak.name for leak in found.leaks if leak.kind == "lesion"] == [f"{9 - n}" for n in range(10)]


def test_of_many_photos_some_of_each_side_are_listed() -> None:
    count = 3 * MOST_PHOTOS
    photos = table(
        split=["train"] * (count - 1) + ["test"],
        label=["nv"] * (count - 2) + ["mel", "nv"],
        patient_id=["P"] * count,
        lesion_id=["L"] * count,
    )
    found = audit(photos)
    leak, conflict = found.leaks[0], found.conflicts[0]
    assert (leak.sides, conflict.labels) == (("train", "test"), ("mel", "nv"))
    assert ids(leak)[:3] == ("i0", f"i{count - 1}", "i1")
    assert ids(conflict)[:3] == (f"i{count - 2}", "i0", "i1")
    for finding in (leak, conflict):
        assert len(set(ids(finding))) == len(finding.photos) == MOST_PHOTOS
        assert finding.photo_count == count
    assert found.leaked_photos == {"train": count - 1, "test": 1}
    assert found.contradicted_photos == {"mel": 1, "nv": count - 1}


def test_classes_sizes_gaps_and_unreadable_files_are_counted() -> None:
    photos = table(
        label=["nv", "nv", "mel"], split=["train", "test", "train"], age=[40.0, float("nan"), 50.0], width_px=[600, 600, 300]
    )
    found = audit(photos, unreadable=({"image_id": "z", "error_code": "truncated", "error_detail": "cut"},))
    assert found.class_counts == {"train": {"nv": 1, "mel": 1}, "test": {"nv": 1, "mel": 0}}
    assert found.sizes == {"600x100": 2, "300x100": 1}
    assert found.missing["age"] == pytest.approx(1 / 3, abs=1e-3)
    assert found.missing["lesion_id"] == 1
    assert list(found.class_counts) == ["train", "test"]
    assert found.counts["unreadable"] == 1


def test_one_known_patient_among_many_photos_is_not_rounded_away() -> None:
    count = 30_000
    assert 0.9999 < audit(table(patient_id=["P"] + [None] * (count - 1))).missing["patient_id"] < 1


def test_a_file_size_that_tells_the_label_is_a_shortcut_and_chance_is_none() -> None:
    random = np.random.default_rng(0)
    malignant = random.random(400) < 0.3
    telling = table(
        label=np.where(malignant, "mel", "nv").tolist(),
        file_bytes=(random.normal(1000, 100, 400) + 300 * malignant).astype(int).tolist(),
    )
    by_name = {one.feature: one.roc_auc for one in audit(telling).shortcuts}
    assert by_name["file_bytes"] > 0.95
    assert by_name["all of them together"] > 0.9
    assert by_name["width_px"] == 0.5
    plain = telling.assign(file_bytes=random.normal(1000, 100, 400).astype(int))
    assert {one.feature: one.roc_auc for one in audit(plain).shortcuts}["all of them together"] < 0.6


def test_too_few_malignant_photos_give_no_shortcut_figure() -> None:
    assert audit(table(label=["nv"] * 50 + ["mel"] * 10)).shortcuts == ()


@pytest.mark.parametrize("patients", [1, 3])
def test_malignant_photos_of_few_patients_give_single_features_but_no_trained_figure(patients: int) -> None:
    label = ["mel"] * 25 + ["nv"] * 85
    patient_id = [f"M{number % patients}" for number in range(25)] + [f"B{number % 40}" for number in range(85)]
    features = {one.feature for one in audit(table(label=label, patient_id=patient_id)).shortcuts}
    assert "file_bytes" in features
    assert "all of them together" not in features


def test_lists_are_cut_and_counts_are_not() -> None:
    count = 2 * (MOST_LISTED + 5)
    photos = table(split=["train", "test"] * (count // 2), lesion_id=[f"L{number // 2}" for number in range(count)])
    found = audit(photos)
    assert len(found.leaks) == MOST_LISTED
    assert found.leak_counts == {"lesions across splits": MOST_LISTED + 5}
    assert found.leaked_photos == {"train": MOST_LISTED + 5, "test": MOST_LISTED + 5}
    assert f"LEAK: {MOST_LISTED + 5:,} lesions across splits" in found.summary()


def test_one_photo_under_two_lesion_ids_is_said_and_listed_first() -> None:
    photos = table(lesion_id=["L1", "L1", "L2", "L3", None], patient_id=["P", "P", "P", "P", None])
    found = audit(photos, (0, 1, "near"), (0, 4, "near"), (2, 3, "near"))
    assert found.counts["pairs_under_two_ids"] == 1
    assert [pair.ids_differ for pair in found.pairs] == [True, False, False]
    assert [photo.lesion_id for photo in found.pairs[0].photos] == ["L2", "L3"]
    assert "1 duplicate pair under two lesion_ids or patient_ids" in found.summary()


def test_an_audit_survives_json() -> None:
    found = audit(table(split=["train", "test"], lesion_id=["L", "L"]), (0, 1, "near"))
    assert Audit.model_validate_json(found.model_dump_json()) == found
