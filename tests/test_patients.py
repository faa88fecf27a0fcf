"""Photos become lesions, lesions stand beside the patient's others."""

import numpy as np
import pandas as pd
import pytest

from skinray.bundle import OperatingPoint, OperatingPoints
from skinray.patients import broken_promises, lesion_table, measure_lesions

POINTS = OperatingPoints(
    default="youden",
    points={
        "youden": OperatingPoint(threshold=0.3, sensitivity=0.9, specificity=0.8, measured_on="validation"),
        "miss_rate_10": OperatingPoint(
            threshold=0.1, sensitivity=0.9, specificity=0.8, measured_on="validation", miss_rate_bound=0.1
        ),
    },
)


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
    found = measure_lesions(lesions, POINTS, rounds=20)
    assert (found["lesions"], found["malignant_lesions"]) == (7, 2)
    patients = found["patients"]
    # p's malignant lesion comes first, q's second of two.
    top = patients["top_sensitivity"]
    assert {first: (at["malignant_lesions"], at["value"]) for first, at in top.items()} == {
        "1": (2, 0.5),
        "3": (1, 1.0),
        "5": (0, None),
    }
    assert (patients["patients"], patients["with_malignant"]) == (2, 2)


def test_without_patients_there_is_no_patient_view(rows: pd.DataFrame) -> None:
    lesions = lesion_table(rows.assign(patient_id=None), ("malignant",))
    assert measure_lesions(lesions, POINTS, rounds=5)["patients"] is None
    assert lesions["ugly_duckling"].isna().all()


def test_patients_are_ranked_by_their_highest_lesion(rows: pd.DataFrame) -> None:
    benign = rows.assign(patient_id="r", image_id=[f"r{number}" for number in range(len(rows))], label="benign")
    benign = benign.assign(
        lesion_id="r" + benign["image_id"], malignancy_score=np.linspace(0.05, 0.3, len(rows), dtype=np.float32)
    )
    patients = measure_lesions(lesion_table(pd.concat([rows, benign]), ("malignant",)), POINTS, rounds=20)["patients"]
    # p and q score 0.7 and 0.4, r, who has nothing, 0.3.
    assert (patients["patients"], patients["with_malignant"], patients["roc_auc"]["value"]) == (3, 2, 1.0)
    assert patients["ugly_duckling"]["malignant_lesions"] == 1
    assert patients["ugly_duckling"]["roc_auc"]["value"] == 1.0


def test_a_lesion_is_missed_when_one_of_its_photos_is(rows: pd.DataFrame) -> None:
    second = rows[rows["image_id"] == "e"].assign(image_id="e2", malignancy_score=np.float32(0.25))
    found = measure_lesions(lesion_table(pd.concat([rows, second]), ("malignant",)), POINTS, rounds=5)
    youden, promised = found["missed"]["youden"], found["missed"]["miss_rate_10"]
    assert (youden["missed"], youden["miss_rate"]["value"], youden["promised"]) == (2, 1.0, None)
    assert (promised["missed"], promised["promised"]) == (0, 0.1)


@pytest.mark.parametrize(("missed", "broken"), [(2, False), (4, False), (12, True)])
def test_a_promise_is_broken_only_when_chance_does_not_explain_it(missed: int, broken: bool) -> None:
    lesions = pd.DataFrame(
        {
            "image_id": [f"photo{number}" for number in range(60)],
            "lesion_id": None,
            "patient_id": None,
            "label": ["malignant"] * 30 + ["benign"] * 30,
            "malignancy_score": np.float32([0.05] * missed + [0.5] * (60 - missed)),
        }
    )
    words = broken_promises(measure_lesions(lesion_table(lesions, ("malignant",)), POINTS, rounds=5))
    assert len(words) == broken
    if broken:
        assert words[0].startswith("miss_rate_10 promises to miss at most 10% of malignant lesions and misses 12 of 30 (")


def test_lesions_that_are_numbered_anew_with_each_patient_are_told_apart() -> None:
    number = np.arange(1000)
    anew = pd.DataFrame(
        {
            "image_id": [f"photo{each}" for each in number],
            "lesion_id": (number % 5 + 1).astype(str),
            "patient_id": [f"p{each // 5}" for each in number],
            "label": np.where(number % 25 == 0, "malignant", "benign"),
            "malignancy_score": np.where(number % 25 == 0, 0.8, 0.02 + 0.05 * (number % 5)).astype(np.float32),
        }
    )
    own = anew.assign(lesion_id=anew["lesion_id"] + " of " + anew["patient_id"])
    lesions = lesion_table(anew, ("malignant",))
    pd.testing.assert_frame_equal(lesions, lesion_table(own, ("malignant",)))
    found = measure_lesions(lesions, POINTS, rounds=5)
    assert (found["lesions"], found["malignant_lesions"], found["missed"]["youden"]["missed"]) == (1000, 40, 0)
