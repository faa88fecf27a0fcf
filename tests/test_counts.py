"""Figures from counts are scikit-learn's, whatever the scores, ties and weights."""

import warnings

import numpy as np
import numpy.typing as npt
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from skinray.counts import CalibrationCounts, ClassCounts, Counts, ScoreCounts, ThresholdCounts


@st.composite
def weighted_photos(draw: st.DrawFn) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Labels of both kinds, scores with many ties, and how often each photo was drawn (of each kind at least one)."""
    size = draw(st.integers(2, 60))
    positive = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    scores = np.array(draw(st.lists(st.integers(0, 12), min_size=size, max_size=size))) / 12
    weights = np.array(draw(st.lists(st.integers(0, 3), min_size=size, max_size=size)))
    positive[0], positive[1], weights[:2] = True, False, np.maximum(weights[:2], 1)
    return positive, scores, weights


def figures(counts: Counts, weights: npt.NDArray[np.int64]) -> dict[str, float]:
    # Two draws at once: the second, of every photo once, must not change the first.
    drawn = np.stack([weights, np.ones_like(weights)], axis=1).astype(np.float32)
    return {name: float(values[0]) for name, values in counts.figures(counts.cells @ drawn).items()}


@given(weighted_photos())
def test_ranking(photos: tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64], npt.NDArray[np.int64]]) -> None:
    positive, scores, weights = photos
    found = figures(ScoreCounts(positive, scores), weights)
    assert found["roc_auc"] == pytest.approx(sklearn.metrics.roc_auc_score(positive, scores, sample_weight=weights))
    average = sklearn.metrics.average_precision_score(positive, scores, sample_weight=weights)
    assert found["pr_auc"] == pytest.approx(average)
    # As the challenge computes it: classes exchanged, so that sensitivity becomes the false positive rate.
    scaled = sklearn.metrics.roc_auc_score(~positive, -scores, sample_weight=weights, max_fpr=0.2)
    least, most = 0.5 * 0.2**2, 0.2
    assert found["partial_auc"] == pytest.approx(least + (most - least) / 0.5 * (scaled - 0.5), abs=1e-9)


@given(weighted_photos(), st.floats(0, 1))
def test_thresholds(
    photos: tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64], npt.NDArray[np.int64]], threshold: float
) -> None:
    positive, scores, weights = photos
    flagged = scores >= threshold
    found = figures(ThresholdCounts(positive, flagged), weights)
    expected = {
        "accuracy": sklearn.metrics.accuracy_score(positive, flagged, sample_weight=weights),
        "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(positive, flagged, sample_weight=weights),
        "precision": sklearn.metrics.precision_score(positive, flagged, sample_weight=weights, zero_division=0),
        "recall": sklearn.metrics.recall_score(positive, flagged, sample_weight=weights),
        "specificity": sklearn.metrics.recall_score(~positive, ~flagged, sample_weight=weights),
        "f1": sklearn.metrics.f1_score(positive, flagged, sample_weight=weights, zero_division=0),
    }
    assert found == pytest.approx(expected)


@given(weighted_photos())
def test_calibration(photos: tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64], npt.NDArray[np.int64]]) -> None:
    positive, scores, weights = photos
    found = figures(CalibrationCounts(positive, scores), weights)
    brier = sklearn.metrics.brier_score_loss(positive, scores, sample_weight=weights)
    assert found["brier"] == pytest.approx(brier, rel=1e-5, abs=1e-7)
    bins = np.minimum((scores * 15).astype(int), 14)
    gaps = [abs(np.sum((weights * (scores - positive))[bins == number])) for number in range(15)]
    assert found["ece"] == pytest.approx(sum(gaps) / weights.sum(), rel=1e-5, abs=1e-6)


@given(st.data())
def test_classes(data: st.DataObject) -> None:
    codes = ("akiec", "bcc", "mel", "nv")
    size = data.draw(st.integers(1, 60))
    labels, predicted, weights = (
        np.array(data.draw(st.lists(st.integers(0, most), min_size=size, max_size=size))) for most in (3, 3, 2)
    )
    weights[0] = 1
    found = figures(ClassCounts(labels, predicted, codes), weights)
    options = {"sample_weight": weights, "labels": list(range(4)), "zero_division": 0, "average": None}
    precision, recall, f1, support = sklearn.metrics.precision_recall_fscore_support(labels, predicted, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class that is predicted and does not occur
        balanced = sklearn.metrics.balanced_accuracy_score(
            labels[weights > 0], predicted[weights > 0], sample_weight=weights[weights > 0]
        )
    assert found["class_accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(labels, predicted, sample_weight=weights))
    assert found["class_balanced_accuracy"] == pytest.approx(balanced)
    assert found["macro_f1"] == pytest.approx(f1.mean())
    for number, code in enumerate(codes):
        assert found[f"precision_{code}"] == pytest.approx(precision[number])
        assert found[f"f1_{code}"] == pytest.approx(f1[number])
        if support[number]:
            assert found[f"recall_{code}"] == pytest.approx(recall[number])
        else:
            assert np.isnan(found[f"recall_{code}"])


def test_many_scores_are_binned_finely_enough() -> None:
    generator = np.random.default_rng(0)
    positive = generator.random(300_000) < 0.1
    scores = generator.normal(positive * 1.2)
    weights = np.ones(len(scores), np.int64)
    exact, binned = (figures(ScoreCounts(positive, scores, most), weights) for most in (None, 1 << 14))
    assert exact["roc_auc"] == pytest.approx(sklearn.metrics.roc_auc_score(positive, scores), abs=1e-12)
    assert binned["roc_auc"] == pytest.approx(exact["roc_auc"], abs=1e-5)
    assert binned["partial_auc"] == pytest.approx(exact["partial_auc"], abs=1e-5)
    assert binned["pr_auc"] == pytest.approx(exact["pr_auc"], abs=5e-4)


def test_one_kind_alone_has_no_ranking() -> None:
    only = np.ones(3, np.bool_)
    found = figures(ScoreCounts(only, np.array([0.1, 0.2, 0.3])), np.ones(3, np.int64))
    assert np.isnan(found["roc_auc"])
    assert np.isnan(found["partial_auc"])
