"""Intervals hold the truth as often as they say, on clusters too; a draw takes clusters whole."""

import numpy as np
import numpy.typing as npt
import pytest

from skinray.counts import Measure, ScoreCounts, ThresholdCounts
from skinray.intervals import Clusters, Estimate, estimates


def test_a_draw_takes_clusters_whole_and_as_many_as_there_are() -> None:
    clusters = Clusters(np.array(["b", "a", "b", "c"]))
    drawn = clusters.drawn(range(200))
    assert drawn.shape == (3, 200)
    assert (drawn.sum(axis=0) == 3).all()
    assert abs(drawn.mean() - 1) < 1e-6
    assert len(np.unique(drawn, axis=1).T) == 10, "every way to draw three of three"
    np.testing.assert_array_equal(clusters.drawn(range(50, 60)), drawn[:, 50:60], "however many are drawn at once")
    assert [number for some in clusters.at_once(200) for number in some] == list(range(200))


def test_all_figures_see_the_same_draws_and_a_seed_repeats_them() -> None:
    generator = np.random.default_rng(3)
    positive, scores = generator.random(200) < 0.3, generator.random(200)
    measures = [Measure(name, ScoreCounts(positive, scores)) for name in ("one", "other")]
    ids = generator.integers(80, size=200)
    found = estimates(measures, Clusters(ids, seed=1), rounds=50)
    assert found["one.roc_auc"] == found["other.roc_auc"]
    assert estimates(measures, Clusters(ids, seed=1), rounds=50) == found
    assert estimates(measures, Clusters(ids, seed=2), rounds=50) != found


def test_some_of_the_photos_are_measured_as_if_they_were_all() -> None:
    generator = np.random.default_rng(4)
    positive, scores = generator.random(300) < 0.3, generator.random(300)
    rows = np.flatnonzero(generator.random(300) < 0.5)
    some = estimates([Measure("", ScoreCounts(positive[rows], scores[rows]), rows)], Clusters(np.arange(300)), rounds=400)[
        "roc_auc"
    ]
    alone = estimates([Measure("", ScoreCounts(positive[rows], scores[rows]))], Clusters(rows), rounds=400)["roc_auc"]
    assert some.value == alone.value
    assert (some.low, some.high) == pytest.approx((alone.low, alone.high), abs=0.02)


def test_what_has_no_figure_has_no_interval() -> None:
    nothing = ThresholdCounts(np.zeros(5, np.bool_), np.ones(5, np.bool_))
    found = estimates([Measure("", nothing)], Clusters(np.arange(5)), rounds=10)
    assert found["recall"].recorded() == {"value": None, "low": None, "high": None}
    assert found["specificity"] == Estimate(0.0, 0.0, 0.0)


def clustered_photos(
    generator: np.random.Generator, clusters: int, each: int, alike: float
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Lesions with `each` photos; the photos of one share so much of their score's variance. The true AUC is known."""
    ids = np.repeat(np.arange(clusters), each)
    malignant = generator.random(clusters) < 0.3
    shared = generator.normal(size=clusters)[ids] * np.sqrt(alike)
    scores = shared + generator.normal(size=len(ids)) * np.sqrt(1 - alike) + 1.5 * malignant[ids]
    return malignant[ids], scores, ids


@pytest.mark.parametrize(("each", "alike"), [(1, 0.0), (3, 0.8)], ids=["photos", "lesions"])
def test_intervals_hold_the_true_auc_in_95_of_100_draws(each: int, alike: float) -> None:
    import scipy.stats

    truth = scipy.stats.norm.cdf(1.5 / np.sqrt(2))
    generator = np.random.default_rng(7)
    held = 0
    for draw in range(500):
        positive, scores, ids = clustered_photos(generator, 150, each, alike)
        interval = estimates([Measure("", ScoreCounts(positive, scores))], Clusters(ids, seed=draw), rounds=400)["roc_auc"]
        held += interval.low <= truth <= interval.high
    assert 0.93 <= held / 500 <= 0.97
    if each > 1:
        naive = estimates([Measure("", ScoreCounts(positive, scores))], Clusters(np.arange(len(ids))), rounds=400)["roc_auc"]
        assert naive.high - naive.low < 0.8 * (interval.high - interval.low), "photos drawn one by one look too sure"
