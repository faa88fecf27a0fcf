"""The page says what metrics.json says, shows the worst errors, and lets nothing in."""

import html
from typing import Any

import pytest

from skinray.bundle import Labels
from skinray.evaluation_page import ShownPhoto, evaluation_page, headline
from skinray.measurement import measure_predictions
from skinray.patients import lesion_table, measure_lesions
from tests.test_measurement import BINARY, MANY, POINTS, predictions

PNG = b"\x89PNG\r\n\x1a\n"


def metrics_of(labels: Labels, **changes: Any) -> dict[str, Any]:
    rows = predictions(labels)
    return {
        "notice": "Research software, not a medical device.",
        "model_id": "0123456789ab",
        "bundle": "/runs/bundle",
        "operating_points_sha256": "cd" * 32,
        "trained": {
            "network": "cnn_sequential",
            "training_settings": {"seed": 7},
            "dataset": {"sha256": "ef" * 32},
            "code_commit": "1234abcd",
            "versions": {},
        },
        "settings": {"split": "test"},
        "code_commit": None,
        "dataset": "/data",
        "dataset_sha256": "ab" * 32,
        "split": "test",
        "leaks": {},
        "leaks_in_training": {},
        "overlap_with_training": {},
        "left_out_for_overlap": 0,
        "namesakes_in_training": 0,
        "contradicting_labels": 0,
        "statuses": {"scored": 600},
        "gate_failures": [],
        "external": None,
        **measure_predictions(rows, labels, POINTS, prevalences=(0.01,), rounds=50),
        "lesions": measure_lesions(lesion_table(rows, labels.malignant), POINTS, rounds=20),
        **changes,
    }


def shown(image_id: str = "photo1", label: str = "mel") -> ShownPhoto:
    return ShownPhoto(image_id, label, 0.0123, "data:image/jpeg;base64,AAAA", "data:image/jpeg;base64,BBBB")


@pytest.mark.parametrize("labels", [BINARY, MANY], ids=["binary", "many"])
def test_the_page_has_the_figures_and_the_photos(labels: Labels) -> None:
    metrics = metrics_of(labels)
    page = evaluation_page(metrics, {"ROC curve": PNG}, [shown()], [shown("photo2", "nv")])
    text = html.unescape(page)
    assert headline(metrics) in text
    auc = metrics["figures"]["roc_auc"]
    assert f"{auc['low']:.3f} to {auc['high']:.3f}" in text
    for name in metrics["operating_points"]:
        assert name in text
    for photo in ("photo1", "photo2"):
        assert photo in text
    assert text.count("data:image/jpeg;base64,") == 4
    assert ("By diagnosis" in text) == (labels is MANY)
    for name in ("sensitivity_95", "cd" * 32, "ef" * 32, "1234abcd", '"seed": 7'):
        assert name in text
    assert "where 1 % are malignant" in text
    there = metrics["operating_points"]["youden"]["at_prevalence"][1]
    assert f"<td>{there['npv']:.4f}</td>" in text
    assert f"<td>{there['risk_at_threshold']:.4f}</td>" in text
    assert "The data set names no patients." in text
    assert "not a medical device" in text


def test_the_page_tells_of_patients_where_they_are_known() -> None:
    rows = predictions(BINARY).assign(patient_id=[f"patient{number // 12}" for number in range(600)])
    lesions = measure_lesions(lesion_table(rows, BINARY.malignant), POINTS, rounds=20)
    text = html.unescape(evaluation_page(metrics_of(BINARY, lesions=lesions), {}, [], []))
    auc, first = lesions["patients"]["roc_auc"], lesions["patients"]["top_sensitivity"]["1"]
    for figure in (auc, first, lesions["patients"]["ugly_duckling"]["roc_auc"]):
        assert f"{figure['value']:.3f} <small>{figure['low']:.3f} to {figure['high']:.3f}" in text
    assert "Ugly duckling" in text


def test_an_external_test_tells_its_gap_first() -> None:
    gaps = {"roc_auc": {"internal": 0.95, "external": 0.85, "gap": 0.1, "low": 0.05, "high": 0.15}}
    metrics = metrics_of(BINARY, external={"evaluation_of": "/other", "gaps": gaps})
    assert headline(metrics).startswith("ROC-AUC 0.100 lower than on its own test photos (0.950). At youden")


def test_the_page_needs_no_network_and_runs_nothing() -> None:
    page = evaluation_page(metrics_of(BINARY), {"ROC curve": PNG}, [shown()], [])
    assert "http" not in page.replace("http-equiv", "")
    assert "<script" not in page
    assert "default-src 'none'" in page


def test_what_comes_from_the_data_is_escaped() -> None:
    evil = "<script>alert(1)</script>"
    page = evaluation_page(metrics_of(BINARY, dataset=evil), {}, [shown(evil, evil)], [])
    assert "<script" not in page
    assert html.escape(evil) in page


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gate_failures": ["roc_auc is 0.800, below 0.9"]}, "does not pass its gate: roc_auc is 0.800, below 0.9"),
        ({"leaks": {"lesions across splits": 3}}, "the data set leaks: 3 lesions across splits"),
        ({"overlap_with_training": {"patients": 2}}, "2 patients were trained on"),
        ({"contradicting_labels": 155}, "the data set contradicts itself: 155 photos or lesions"),
        ({"left_out_for_overlap": 12}, "12 photos that share something with the training data are left out"),
        ({"overlap_with_training": None}, "overlap with it could not be looked for"),
        ({"namesakes_in_training": 7}, "7 patient ids also occur in the training data, from another source"),
        ({"statuses": {"scored": 590, "failed": 10}}, "10 photos failed: they are in no figure"),
        ({"warnings": ["sex female: ROC-AUC 0.500"]}, "sex female: ROC-AUC 0.500"),
    ],
)
def test_what_spoils_the_figures_stands_under_the_headline(changes: dict[str, Any], words: str) -> None:
    page = html.unescape(evaluation_page(metrics_of(BINARY, **changes), {}, [], []))
    assert words in page.split("<h2>")[0]
