"""Predictions in, figures out: scikit-learn's, drawn by patient or lesion, for two classes and for many."""

import json

import numpy as np
import pandas as pd
import pytest
import scipy.special
import sklearn.metrics

from skinray.bundle import Labels, OperatingPoint, OperatingPoints
from skinray.calibration import Calibration
from skinray.measurement import clusters_of, figures_in_words, measure_predictions, named_figures, uncalibrated_scores

BINARY = Labels(codes=("benign", "malignant"), malignant=("malignant",))
MANY = Labels(codes=("bcc", "mel", "nv", "vasc"), malignant=("bcc", "mel"))
POINTS = OperatingPoints(
    default="youden",
    points={
        "youden": OperatingPoint(threshold=0.3, sensitivity=0.9, specificity=0.8, measured_on="validation"),
        "sensitivity_95": OperatingPoint(threshold=0.1, sensitivity=0.95, specificity=0.5, measured_on="validation"),
    },
)


def predictions(labels: Labels, photos: int = 600, seed: int = 0) -> pd.DataFrame:
    """Two photos a lesion, some patients unknown, scores that know something."""
    generator = np.random.default_rng(seed)
    truth = np.repeat(generator.integers(len(labels.codes), size=photos // 2), 2)
    logits = generator.normal(size=(photos, len(labels.codes))) + 1.5 * np.eye(len(labels.codes))[truth]
    probabilities = scipy.special.softmax(logits, axis=1)
    malignant = [labels.codes.index(code) for code in labels.malignant]
    return pd.DataFrame(
        {
            "image_id": [f"photo{number}" for number in range(photos)],
            "label": np.array(labels.codes)[truth],
            **{f"prob_{code}": probabilities[:, number].astype(np.float32) for number, code in enumerate(labels.codes)},
            "malignancy_score": probabilities[:, malignant].sum(axis=1).astype(np.float32),
            "patient_id": None,
            "lesion_id": [f"lesion{number // 2}" for number in range(photos)],
            "group": [f"group{number // 2}" for number in range(photos)],
            "age": generator.uniform(20, 90, photos),
            "sex": generator.choice(["male", "female", ""], photos),
            "site": generator.choice(["face", "back", "foot"], photos),
            "skin_type": None,
            "source": "HAM10000",
            "ita_degrees": np.float32(30.0),
        }
    )


@pytest.mark.parametrize("labels", [BINARY, MANY], ids=["binary", "many"])
def test_the_names_of_the_figures_are_known_before_there_is_any_photo(labels: Labels) -> None:
    about = (Calibration(1.0, (0.0,) * len(labels.codes)), dict.fromkeys(labels.codes, 10.0))
    found, named = (
        measure_predictions(predictions(labels), labels, POINTS, *about, rounds=2),
        named_figures(labels, POINTS, *about),
    )
    assert named["figures"].keys() == found["figures"].keys()
    for point, figures in found["operating_points"].items():
        assert named["operating_points"][point].keys() == figures.keys()


@pytest.mark.parametrize("labels", [BINARY, MANY], ids=["binary", "many"])
def test_the_figures_are_scikit_learns(labels: Labels) -> None:
    rows = predictions(labels)
    metrics = measure_predictions(rows, labels, POINTS, rounds=100)
    positive, scores = rows["label"].isin(list(labels.malignant)), rows["malignancy_score"]
    expected = {
        "roc_auc": sklearn.metrics.roc_auc_score(positive, scores),
        "pr_auc": sklearn.metrics.average_precision_score(positive, scores),
        "brier": sklearn.metrics.brier_score_loss(positive, scores),
    }
    if len(labels.codes) > 2:
        probabilities = rows[[f"prob_{code}" for code in labels.codes]].to_numpy(np.float64)
        probabilities = probabilities / probabilities.sum(axis=1, keepdims=True)
        said = np.array(labels.codes)[probabilities.argmax(axis=1)]
        expected |= {
            "macro_roc_auc": sklearn.metrics.roc_auc_score(
                rows["label"], probabilities, multi_class="ovr", labels=list(labels.codes)
            ),
            "class_accuracy": sklearn.metrics.accuracy_score(rows["label"], said),
            "class_balanced_accuracy": sklearn.metrics.balanced_accuracy_score(rows["label"], said),
            "macro_f1": sklearn.metrics.f1_score(rows["label"], said, average="macro"),
        }
        matrix = sklearn.metrics.confusion_matrix(rows["label"], said, labels=list(labels.codes))
        assert metrics["confusion_matrix"]["rows_true_columns_predicted"] == matrix.tolist()
    assert {name: metrics["figures"][name]["value"] for name in expected} == pytest.approx(expected, rel=1e-5)
    for figure in metrics["figures"].values():
        assert figure["low"] <= figure["value"] <= figure["high"] or figure["value"] == pytest.approx(figure["low"], abs=0.05)
    for name, point in metrics["operating_points"].items():
        flagged = scores >= POINTS.points[name].threshold
        assert point["recall"]["value"] == pytest.approx(sklearn.metrics.recall_score(positive, flagged))
        assert point["at_prevalence"][0]["prevalence"] == pytest.approx(positive.mean())
        assert point["at_prevalence"][0]["ppv"] == pytest.approx(point["precision"]["value"])
    json.dumps(metrics, allow_nan=False)


def test_what_is_probable_for_its_frequency_is_taken_where_rarity_counts() -> None:
    rows = predictions(MANY)
    frequencies = dict(zip(MANY.codes, (0.1, 0.2, 0.6, 0.1), strict=True))
    figures = measure_predictions(rows, MANY, POINTS, frequencies=frequencies, rounds=10)["figures"]
    weighed = rows[[f"prob_{code}" for code in MANY.codes]].to_numpy() / list(frequencies.values())
    said = np.array(MANY.codes)[weighed.argmax(axis=1)]
    balanced = sklearn.metrics.balanced_accuracy_score(rows["label"], said)
    assert figures["by rarity.class_balanced_accuracy"]["value"] == pytest.approx(balanced)
    assert figures["by rarity.class_balanced_accuracy"]["value"] != figures["class_balanced_accuracy"]["value"]


def test_patients_are_drawn_where_all_are_known_else_what_was_kept_together() -> None:
    rows = predictions(BINARY, 8)
    assert clusters_of(rows)[0] == "patient, lesion or picture"
    assert clusters_of(rows)[1].tolist() == rows["group"].tolist()
    rows.loc[0, "group"] = None
    assert clusters_of(rows)[1].tolist()[:2] == ["lesion0", "group0"]
    rows.loc[0, "lesion_id"] = None
    assert clusters_of(rows)[1].tolist()[:2] == ["photo photo0", "group0"]
    numbered_anew = rows.assign(group=None, lesion_id="1", patient_id=[None, None, *"aaabbb"])
    assert clusters_of(numbered_anew)[1].tolist() == ["1", "1", *["1 of a"] * 3, *["1 of b"] * 3]
    rows["patient_id"] = "somebody"
    assert clusters_of(rows)[0] == "patient"
    assert set(clusters_of(rows)[1]) == {"somebody"}


def test_what_calibration_does_is_undone() -> None:
    rows = predictions(MANY)
    logits = np.log(rows[[f"prob_{code}" for code in MANY.codes]].to_numpy(np.float64))
    calibration = Calibration(1.7, (0.5, -0.2, 0.3, -0.6))
    changed = scipy.special.softmax(calibration.applied(logits), axis=1)
    after = rows.assign(**{f"prob_{code}": changed[:, number] for number, code in enumerate(MANY.codes)})
    np.testing.assert_allclose(uncalibrated_scores(after, MANY, calibration), rows["malignancy_score"], atol=1e-6)
    metrics = measure_predictions(after, MANY, POINTS, calibration, rounds=10)
    before = measure_predictions(rows, MANY, POINTS, rounds=10)
    assert metrics["figures"]["uncalibrated.ece"]["value"] == pytest.approx(before["figures"]["ece"]["value"], abs=1e-4)


def test_a_stated_prevalence_changes_what_a_flag_means_and_nothing_else() -> None:
    rows = predictions(BINARY)
    metrics = measure_predictions(rows, BINARY, POINTS, prevalences=(0.01, 0.5), calibrated_at=0.5, rounds=10)
    shares = metrics["operating_points"]["youden"]["at_prevalence"]
    assert [share["prevalence"] for share in shares[1:]] == [0.01, 0.5]
    assert shares[1]["ppv"] < shares[2]["ppv"]
    assert shares[1]["number_needed_to_refer"] == pytest.approx(1 / shares[1]["ppv"])
    threshold = POINTS.points["youden"].threshold
    assert shares[2]["risk_at_threshold"] == pytest.approx(threshold), "calibrated where half are malignant"
    odds = threshold / (1 - threshold) * 0.01 / 0.99
    assert shares[1]["risk_at_threshold"] == pytest.approx(odds / (1 + odds))


def test_the_headline_names_figures_intervals_and_warnings() -> None:
    rows = predictions(BINARY)
    # Of women everything is said at random.
    women = rows["sex"] == "female"
    rows.loc[women, "malignancy_score"] = np.random.default_rng(0).random(women.sum()).astype(np.float32)
    metrics = measure_predictions(rows, BINARY, POINTS, rounds=50)
    lines = figures_in_words(metrics)
    assert (
        lines[0]
        == "600 photos, " + f"{metrics['malignant_photos']} malignant; 95 % intervals drawn by patient, lesion or picture (300)"
    )
    assert any(line.startswith("roc_auc") and " to " in line for line in lines)
    assert any(line.startswith("warning: sex female: ROC-AUC") for line in lines)
