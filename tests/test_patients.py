"""Photos become lesions, lesions stand beside the patient's others."""

import numpy as np
import pandas as pd
import pytest

from skinray.patients import lesion_table, measure_lesions


@pytest.fixture
def rows() -> pd.DataFrame:
    """Patient p has four lesions, one of two photos and one that differs; q has two; one photo is of nobody known."""
    return pd.DataFrame(
        {
            "image_id": list("abcdefgh"),
            "lesion_id": ["p1", "p1", "p2", "p3", "p4", "q1", "q2", None],
            "patient_id": ["p", "p", "p", "p", "p", "q", "q", None],
            "label": ["benign", "benign", "benign", "benign", "malignant", "malignant", "benign", "benign"],
            "malignancy_score": np.array([0.10, 0.12, 0.11, 0.09, 0.70, 0.2, 0.4, 0.5], np.float32),
        }
    )


def test_a_lesion_scores_what_its_highest_photo_does(rows: pd.DataFrame) -> None:
    lesions = lesion_table(rows, ("malignant",)).set_index("lesion")
    assert lesions.loc["p1", ["photos", "malignancy_score"]].tolist() == pytest.approx([2, 0.12])
    assert lesions.index.tolist() == ["p1", "p2", "p3", "p4", "photo h", "q1", "q2"]
    assert lesions["malignant"].sum() == 2


def test_the_lesion_that_differs_is_the_ugly_duckling(rows: pd.DataFrame) -> None:
    lesions = lesion_table(rows, ("malignant",)).set_index("lesion")
    ducklings = lesions["ugly_duckling"]
    assert ducklings.idxmax() == "p4"
    assert ducklings["p4"] > 5
    assert ducklings[["p1", "p2", "p3"]].abs().max() < 2
    assert ducklings[["q1", "q2", "photo h"]].isna().all(), "too few others"


def test_an_ugly_duckling_is_one_among_its_own_patient_alone(rows: pd.DataFrame) -> None:
    # With q's lesions as high as p's highest, p's highest still differs from p's others.
    higher = rows.assign(malignancy_score=rows["malignancy_score"].where(rows["patient_id"] != "q", 0.9))
    before, after = (lesion_table(each, ("malignant",)).set_index("lesion")["ugly_duckling"] for each in (rows, higher))
    assert before["p4"] == after["p4"]


def test_top_k_counts_patients_with_more_lesions_than_that(rows: pd.DataFrame) -> None:
    lesions = lesion_table(rows, ("malignant",))
    found = measure_lesions(lesions, rounds=20)
    assert (found["lesions"], found["malignant_lesions"]) == (7, 2)
    patients = found["patients"]
    # p's malignant lesion comes first, q's second of two.
    assert patients["top_sensitivity"] == {"1": 0.5, "3": 1.0, "5": None}
    assert (patients["patients"], patients["with_malignant"]) == (2, 2)


def test_without_patients_there_is_no_patient_view(rows: pd.DataFrame) -> None:
    lesions = lesion_table(rows.assign(patient_id=None), ("malignant",))
    assert measure_lesions(lesions, rounds=5)["patients"] is None
    assert lesions["ugly_duckling"].isna().all()
