"""Figures: against hand-made cases and scikit-learn, and thresholds against their own definition."""

import math

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from skinray.metrics import (
    balanced_accuracy,
    binary_figures,
    confusion_matrix,
    roc_auc,
    threshold_for_sensitivity,
    threshold_youden,
)

Booleans = NDArray[np.bool_]
Scores = NDArray[np.float64]

# Three positives and three negatives: of the nine pairs, the positive scores higher in seven.
POSITIVE = np.array([True, False, True, True, False, False])
SCORES = np.array([0.9, 0.8, 0.7, 0.4, 0.3, 0.1])


@st.composite
def scored(draw: st.DrawFn, both: bool = True) -> tuple[Booleans, Scores]:
    """Labels and scores, many of which are tied."""
    count = draw(st.integers(2, 40))
    positive = draw(arrays(np.bool_, count))
    if both:
        assume(positive.any() and not positive.all())
    scores = draw(arrays(np.float64, count, elements=st.sampled_from([0, 0.1, 0.25, 0.5, 0.75, 0.9, 1]) | st.floats(0, 1)))
    return positive, scores


def sensitivity(positive: Booleans, scores: Scores, threshold: float) -> float:
    return float(np.mean(scores[positive] >= threshold))


def youden(positive: Booleans, scores: Scores, threshold: float) -> float:
    return sensitivity(positive, scores, threshold) + float(np.mean(scores[~positive] < threshold)) - 1


# Figures


def test_the_area_is_the_share_of_pairs_in_order() -> None:
    assert roc_auc(POSITIVE, SCORES) == pytest.approx(7 / 9)
    assert roc_auc(POSITIVE, POSITIVE.astype(float)) == 1
    assert roc_auc(POSITIVE, 1 - POSITIVE.astype(float)) == 0
    assert roc_auc(POSITIVE, np.zeros(6)) == 0.5


@settings(deadline=None, max_examples=50)
@given(scored())
def test_the_area_counts_a_tie_as_half(case: tuple[Booleans, Scores]) -> None:
    positive, scores = case
    above = scores[positive][:, np.newaxis] - scores[~positive]
    assert roc_auc(positive, scores) == pytest.approx(np.mean((above > 0) + 0.5 * (above == 0)))


def test_figures_of_a_small_case() -> None:
    # At 0.7: flagged are 0.9 (malignant), 0.8 (benign) and 0.7 (malignant).
    assert binary_figures(POSITIVE, SCORES, 0.7) == pytest.approx(
        {"accuracy": 4 / 6, "precision": 2 / 3, "recall": 2 / 3, "specificity": 2 / 3, "f1": 2 / 3, "roc_auc": 7 / 9}
    )


def test_a_score_at_the_threshold_is_flagged() -> None:
    assert binary_figures(POSITIVE, SCORES, 0.4)["recall"] == 1
    assert binary_figures(POSITIVE, SCORES, np.nextafter(0.4, 1))["recall"] == pytest.approx(2 / 3)


@settings(deadline=None, max_examples=50)
@given(case=scored(), threshold=st.floats(0, 1))
def test_figures_are_scikit_learns(case: tuple[Booleans, Scores], threshold: float) -> None:
    positive, scores = case
    flagged = scores >= threshold
    figures = binary_figures(positive, scores, threshold)
    assert figures["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(positive, flagged))
    assert figures["precision"] == pytest.approx(sklearn.metrics.precision_score(positive, flagged, zero_division=0))
    assert figures["recall"] == pytest.approx(sklearn.metrics.recall_score(positive, flagged))
    assert figures["specificity"] == pytest.approx(sklearn.metrics.recall_score(~positive, ~flagged))
    assert figures["f1"] == pytest.approx(sklearn.metrics.f1_score(positive, flagged, zero_division=0))
    assert figures["roc_auc"] == pytest.approx(sklearn.metrics.roc_auc_score(positive, scores))


def test_nothing_flagged_has_precision_zero() -> None:
    figures = binary_figures(POSITIVE, SCORES, 0.95)
    assert (figures["precision"], figures["recall"], figures["f1"], figures["specificity"]) == (0, 0, 0, 1)


def test_figures_of_benign_photos_alone() -> None:
    figures = binary_figures(np.zeros(4, bool), np.array([0.1, 0.2, 0.6, 0.3]), 0.5)
    assert math.isnan(figures["roc_auc"])
    assert (figures["accuracy"], figures["specificity"], figures["precision"]) == (0.75, 0.75, 0)


def test_figures_of_malignant_photos_alone() -> None:
    figures = binary_figures(np.ones(4, bool), np.array([0.1, 0.2, 0.6, 0.3]), 0.5)
    assert math.isnan(figures["roc_auc"])
    assert math.isnan(figures["specificity"])
    assert (figures["accuracy"], figures["recall"], figures["precision"]) == (0.25, 0.25, 1)


def test_the_confusion_matrix_has_true_classes_as_rows_in_the_order_of_the_codes() -> None:
    labels = ["nv", "nv", "nv", "mel", "mel"]
    predicted = ["nv", "mel", "nv", "mel", "nv"]
    assert confusion_matrix(labels, predicted, ["mel", "nv", "df"]).tolist() == [[1, 1, 0], [1, 2, 0], [0, 0, 0]]
    assert confusion_matrix(labels, predicted, ["nv", "mel"]).tolist() == [[2, 1], [1, 1]]


# Thresholds


@settings(deadline=None, max_examples=50)
@given(case=scored(both=False), wanted=st.floats(0.01, 1) | st.sampled_from([0.5, 0.9, 0.95, 1]))
def test_the_threshold_reaches_the_sensitivity_and_no_higher_score_does(case: tuple[Booleans, Scores], wanted: float) -> None:
    positive, scores = case
    assume(positive.any())
    threshold = threshold_for_sensitivity(positive, scores, wanted)
    assert sensitivity(positive, scores, threshold) >= wanted
    higher = scores[scores > threshold]
    if len(higher):
        assert sensitivity(positive, scores, float(higher.min())) < wanted


@pytest.mark.parametrize(("wanted", "threshold"), [(0.1, 0.9), (1 / 3, 0.9), (0.34, 0.7), (2 / 3, 0.7), (0.9, 0.4), (1, 0.4)])
def test_thresholds_of_a_small_case(wanted: float, threshold: float) -> None:
    assert threshold_for_sensitivity(POSITIVE, SCORES, wanted) == threshold


@pytest.mark.parametrize("tenths", range(1, 11))
def test_tenths_are_met_exactly_in_spite_of_rounding(tenths: int) -> None:
    scores = np.arange(10) / 10
    assert (
        sensitivity(np.ones(10, bool), scores, threshold_for_sensitivity(np.ones(10, bool), scores, tenths / 10)) == tenths / 10
    )


@pytest.mark.parametrize("count", [10, 100, 1000])
def test_no_threshold_is_lower_than_it_must_be_because_of_rounding(count: int) -> None:
    scores = np.arange(count) / count
    for flagged in range(1, count + 1):
        # 0.07 * 100 is 7.000000000000001: the eighth photo is not needed for 7 %.
        threshold = threshold_for_sensitivity(np.ones(count, bool), scores, flagged / count)
        assert np.count_nonzero(scores >= threshold) == flagged


def test_the_threshold_of_single_precision_scores_flags_the_photo_it_stands_on() -> None:
    scores = np.array([0.1, 0.7, 0.3], np.float32)
    threshold = threshold_for_sensitivity(np.ones(3, bool), scores, 0.5)
    assert np.count_nonzero(scores >= threshold) == 2


@settings(deadline=None, max_examples=50)
@given(scored())
def test_no_threshold_has_a_larger_youden_index(case: tuple[Booleans, Scores]) -> None:
    positive, scores = case
    best = youden(positive, scores, threshold_youden(positive, scores))
    assert best == pytest.approx(max(youden(positive, scores, float(threshold)) for threshold in scores))


def test_youden_of_a_small_case() -> None:
    assert threshold_youden(POSITIVE, SCORES) == 0.4
    assert threshold_youden(np.array([True, False]), np.array([0.6, 0.2])) == 0.6


def test_balanced_accuracy_weighs_every_class_that_occurs_alike() -> None:
    import sklearn.metrics

    generator = np.random.default_rng(0)
    labels, predicted = generator.integers(0, 4, 200), generator.integers(0, 4, 200)
    assert balanced_accuracy(labels, predicted) == pytest.approx(sklearn.metrics.balanced_accuracy_score(labels, predicted))
    assert balanced_accuracy(np.array([0, 0, 0, 1]), np.array([0, 0, 2, 1])) == pytest.approx((2 / 3 + 1) / 2)
