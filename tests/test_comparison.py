"""A difference is seen when there is one, and not much more often than it should be when there is none."""

import itertools

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from skinray.comparison import compare_scores, delong, mcnemar
from skinray.intervals import Clusters


def judged(generator: np.random.Generator, photos: int, gain: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two models that see partly the same; the second separates by so much more."""
    positive = np.arange(photos) < photos // 3
    shared = generator.normal(size=photos)
    first = positive * 1.0 + shared + generator.normal(size=photos)
    second = positive * (1.0 + gain) + shared + generator.normal(size=photos)
    return positive, first, second


def test_delong_is_the_difference_of_areas_and_its_jackknife() -> None:
    positive, first, second = judged(np.random.default_rng(0), 300, 0.4)
    found = delong(positive, first, second)
    areas = [sklearn.metrics.roc_auc_score(positive, scores) for scores in (first, second)]
    assert found.difference == pytest.approx(areas[1] - areas[0])
    assert found.low < found.difference < found.high

    def difference(kept: np.ndarray) -> float:
        return float(
            sklearn.metrics.roc_auc_score(positive[kept], second[kept])
            - sklearn.metrics.roc_auc_score(positive[kept], first[kept])
        )

    # Leaving out one photo at a time, of each kind: what DeLong's variance is to first order.
    variance = 0.0
    for kind in (positive, ~positive):
        left_out = [difference(np.delete(np.arange(300), place)) for place in np.flatnonzero(kind)]
        variance += (kind.sum() - 1) ** 2 / kind.sum() * np.var(left_out, ddof=1)
    assert (found.high - found.low) / 2 / 1.96 == pytest.approx(np.sqrt(variance), rel=0.02)


def test_delong_is_wrong_once_in_twenty_where_there_is_no_difference() -> None:
    generator = np.random.default_rng(1)
    p_values = [delong(*judged(generator, 200, 0.0)).p_value for _ in range(400)]
    assert 0.02 <= np.mean(np.array(p_values) < 0.05) <= 0.08


def test_the_same_scores_do_not_differ() -> None:
    positive, first, _ = judged(np.random.default_rng(2), 60, 0.0)
    found = delong(positive, first, 2 * first)
    assert (found.difference, found.p_value) == (0.0, 1.0)


@pytest.mark.parametrize(("one", "other"), list(itertools.product((0, 1, 5, 12), repeat=2)))
def test_mcnemar_is_the_sign_test_of_those_who_changed(one: int, other: int) -> None:
    expected = min(1.0, 2 * scipy.stats.binom.cdf(min(one, other), one + other, 0.5)) if one + other else 1.0
    assert mcnemar(one, other) == pytest.approx(expected)


def test_who_changes_sides_is_counted() -> None:
    positive = np.array([True, True, True, False, False, False])
    scores = np.linspace(0, 1, 6)
    first = np.array([True, False, True, True, False, False])
    second = np.array([True, True, False, False, True, True])
    found = compare_scores(positive, (scores, scores), (first, second), Clusters(np.arange(6)), rounds=20)
    assert (found.newly_found, found.newly_missed, found.newly_flagged, found.newly_passed) == (1, 1, 2, 1)
    assert found.differences["roc_auc"].value == 0
    assert found.differences["specificity"].value == pytest.approx(-1 / 3)


def test_a_better_model_is_seen_to_be_better_by_every_measure() -> None:
    positive, first, second = judged(np.random.default_rng(3), 900, 1.0)
    found = compare_scores(positive, (first, second), (first > 1, second > 1), Clusters(np.arange(900)), rounds=300)
    assert found.differences["roc_auc"].low > 0
    assert found.delong.p_value < 0.001
    assert found.malignant_p_value < 0.001
    # Photos are independent here: both ways to the interval agree.
    bootstrap = found.differences["roc_auc"]
    assert (bootstrap.high - bootstrap.low) == pytest.approx(found.delong.high - found.delong.low, rel=0.2)
