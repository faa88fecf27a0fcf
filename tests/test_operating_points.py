"""Thresholds keep what their names promise, and the guarantee holds on photos that nobody has seen."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from skinray.metrics import threshold_for_specificity
from skinray.operating_points import CONFIDENCE, MISS_RATE, choose_operating_points, threshold_for_miss_rate


@pytest.mark.parametrize(("lesions", "each"), [(60, 1), (150, 1), (60, 3)])
def test_the_miss_rate_stays_under_its_bound_in_95_of_100_splits(lesions: int, each: int) -> None:
    generator = np.random.default_rng(5)
    kept = 0
    for _ in range(200):
        # Photos of a lesion score alike; benign ones play no part.
        shared = np.repeat(generator.normal(size=lesions), each)
        scores = scipy.stats.norm.cdf(0.8 * shared + 0.6 * generator.normal(size=len(shared)) + 1)
        positive = np.concatenate([np.ones(len(scores), np.bool_), np.zeros(100, np.bool_)])
        everything = np.concatenate([scores, generator.random(100)])
        clusters = np.concatenate([np.repeat(np.arange(lesions), each), lesions + np.arange(100)])
        threshold = choose_operating_points(positive, everything, clusters, "validation").points["miss_rate_10"].threshold
        missed = scipy.stats.norm.cdf(scipy.stats.norm.ppf(threshold) - 1)  # of all photos that could ever come
        kept += missed <= MISS_RATE
    assert kept / 200 >= CONFIDENCE


@pytest.mark.parametrize(("positives", "missed"), [(28, None), (29, 0), (46, 1), (100, 4)])
def test_so_many_may_be_missed_where_it_is_chosen(positives: int, missed: int | None) -> None:
    scores = np.linspace(0.1, 0.9, positives)
    threshold = threshold_for_miss_rate(scores, 0.10, 0.95)
    assert (None if threshold is None else int((scores < threshold).sum())) == missed


def test_too_few_lesions_give_no_guarantee() -> None:
    positive = np.arange(100) < 40
    scores = np.random.default_rng(0).random(100)
    assert "miss_rate_10" in choose_operating_points(positive, scores, np.arange(100), "validation").points
    # The same photos as those of ten lesions.
    assert "miss_rate_10" not in choose_operating_points(positive, scores, np.arange(100) % 10, "validation").points


def test_scores_of_other_models_give_no_guarantee() -> None:
    positive, scores = np.arange(100) < 40, np.random.default_rng(0).random(100)
    own, others = (choose_operating_points(positive, scores, np.arange(100), "folds", own_scores=own) for own in (True, False))
    assert own.points.keys() - others.points.keys() == {"miss_rate_10"}


@given(st.integers(0, 1000), st.integers(2, 80))
def test_points_keep_what_they_promise_where_they_were_chosen(seed: int, photos: int) -> None:
    generator = np.random.default_rng(seed)
    positive = np.arange(photos) < max(1, photos // 3)
    # Further apart than the margin, as photos are.
    scores = np.round(generator.random(photos), 3)
    points = choose_operating_points(positive, scores, np.arange(photos), "validation").points
    for point in points.values():
        assert point.sensitivity == pytest.approx(np.mean(scores[positive] >= point.threshold))
        assert point.specificity == pytest.approx(np.mean(scores[~positive] < point.threshold))
        assert point.sensitivity_interval is not None
        assert point.sensitivity_interval[0] <= point.sensitivity <= point.sensitivity_interval[1]
    assert points["sensitivity_95"].sensitivity >= 0.95
    assert points["specificity_90"].specificity >= 0.90
    best = max(points.values(), key=lambda point: point.sensitivity + point.specificity)
    assert points["youden"].sensitivity + points["youden"].specificity == pytest.approx(best.sensitivity + best.specificity)


@given(st.lists(st.integers(0, 20), min_size=1), st.floats(0, 1))
def test_no_lower_threshold_has_the_specificity(values: list[int], wanted: float) -> None:
    scores = np.array(values) / 20
    negatives = np.zeros(len(scores), np.bool_)
    threshold = threshold_for_specificity(negatives, scores, wanted)
    assert np.mean(scores < threshold) >= wanted - 1e-9
    lower = scores[scores < threshold]
    if len(lower):
        assert np.mean(scores < lower.max()) < wanted
