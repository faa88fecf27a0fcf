"""The audit's findings, on small tables whose faults are known."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from skinray.audit import MOST_LISTED, Audit, examine
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


def test_a_clean_data_set_has_no_findings() -> None:
    found = audit(table(split=["train", "test"], lesion_id=["L1", "L2"], patient_id=["P1", "P2"]))
    assert found.leak_counts == {}
    assert found.leaks == found.conflicts == found.pairs == ()
    assert "no leaks" in found.summary()


@pytest.mark.parametrize(("column", "words"), [("patient_id", "patients"), ("lesion_id", "lesions")])
def test_a_patient_or_lesion_in_two_splits_is_a_leak(column: str, words: str) -> None:
    found = audit(table(split=["train", "test", "test"], **{column: ["X", "X", "Y"]}))
    assert found.leak_counts == {f"{words} across splits": 1}
    (leak,) = found.leaks
    assert (leak.name, leak.sides, leak.image_ids) == ("X", ("test", "train"), ("a", "b"))


def test_a_lesion_in_two_folds_is_a_leak_and_test_has_no_fold() -> None:
    found = audit(table(split=["train", "train", "test"], fold=[0, 1, None], lesion_id=["L", "L", "M"]))
    assert found.leak_counts == {"lesions across folds": 1}


def test_duplicates_leak_through_chains() -> None:
    found = audit(table(split=["train", "train", "test", "test"]), (0, 1, "near"), (1, 2, "exact"))
    assert found.leak_counts == {"duplicate clusters across splits": 1}
    assert found.leaks[0].image_ids == ("a", "b", "c")
    assert found.counts["clusters"] == 1
    assert found.counts["photos_in_clusters"] == 3


def test_photos_without_ids_are_no_group() -> None:
    assert audit(table(split=["train", "test"])).leak_counts == {}


def test_duplicates_under_two_labels_are_a_conflict_and_no_leak() -> None:
    found = audit(table(label=["nv", "mel", "nv", "nv"], lesion_id=[None, None, "L", "L"]), (0, 1, "exact"), (2, 3, "near"))
    assert found.leak_counts == {}
    (conflict,) = found.conflicts
    assert (conflict.kind, conflict.labels, conflict.image_ids) == ("duplicates", ("mel", "nv"), ("a", "b"))
    assert found.counts["conflicts_duplicates"] == 1


def test_a_lesion_under_two_labels_is_a_conflict() -> None:
    (conflict,) = audit(table(label=["nv", "mel"], lesion_id=["L", "L"])).conflicts
    assert (conflict.kind, conflict.name) == ("lesion", "L")


def test_pairs_carry_their_labels_splits_and_similarity() -> None:
    found = audit(table(label=["nv", "mel"], split=["train", "test"]), (0, 1, "listed"))
    (pair,) = found.pairs
    assert (pair.kind, pair.labels, pair.splits, pair.similarity) == ("listed", ("nv", "mel"), ("train", "test"), None)


def test_classes_sizes_gaps_and_unreadable_files_are_counted() -> None:
    photos = table(
        label=["nv", "nv", "mel"], split=["train", "test", "train"], age=[40.0, float("nan"), 50.0], width_px=[600, 600, 300]
    )
    found = audit(photos, unreadable=({"image_id": "z", "error_code": "truncated", "error_detail": "cut"},))
    assert found.class_counts == {"train": {"nv": 1, "mel": 1}, "test": {"nv": 1, "mel": 0}}
    assert found.sizes == {"600x100": 2, "300x100": 1}
    assert found.missing["age"] == pytest.approx(1 / 3, abs=1e-3)
    assert found.missing["lesion_id"] == 1
    assert found.counts["unreadable"] == 1


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


def test_lists_are_cut_and_counts_are_not() -> None:
    count = 2 * (MOST_LISTED + 5)
    photos = table(split=["train", "test"] * (count // 2), lesion_id=[f"L{number // 2}" for number in range(count)])
    found = audit(photos)
    assert len(found.leaks) == MOST_LISTED
    assert found.leak_counts == {"lesions across splits": MOST_LISTED + 5}


def test_an_audit_survives_json() -> None:
    found = audit(table(split=["train", "test"], lesion_id=["L", "L"]), (0, 1, "near"))
    assert Audit.model_validate_json(found.model_dump_json()) == found
