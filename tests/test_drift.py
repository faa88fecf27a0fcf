"""The verdict finds changes, never without one, and never from too few photos."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from skinray.drift import (
    LEAST_PHOTOS,
    bin_edges,
    compare_shares,
    effective_number,
    measure_drift,
    population_stability_index,
    share_interval,
)

counts = arrays(np.int64, 6, elements=st.integers(0, 10_000))
finite = st.floats(-1e6, 1e6, allow_nan=False)


@given(counts, counts)
def test_the_index_is_never_negative_and_the_same_both_ways(first: np.ndarray, second: np.ndarray) -> None:
    index = population_stability_index(first, second)
    assert index >= 0
    assert index == pytest.approx(population_stability_index(second, first))
    assert population_stability_index(first, first) == 0


def test_the_index_of_large_counts_is_that_of_the_formula() -> None:
    p, q = np.array([0.2, 0.3, 0.5]), np.array([0.25, 0.35, 0.4])
    found = population_stability_index(np.int64(q * 1e8), np.int64(p * 1e8))
    assert found == pytest.approx(float(((p - q) * np.log(p / q)).sum()), rel=1e-6)


@given(arrays(np.float64, st.integers(LEAST_PHOTOS, 200), elements=finite))
def test_a_sample_has_not_drifted_from_itself(values: np.ndarray) -> None:
    drift = measure_drift(values, values)
    assert (drift.verdict, drift.psi, drift.ks) == ("none", 0, 0)


@example(np.array([0.0] * 9 + [0.5, 1.0, 1.0]))
@given(arrays(np.float64, st.integers(1, 200), elements=st.one_of(finite, st.sampled_from([0.0, 0.5, 1.0]))))
def test_edges_ascend_and_a_value_that_many_share_has_its_own_bin(values: np.ndarray) -> None:
    edges = bin_edges(values)
    assert (np.diff(edges) > 0).all()
    named, alike = np.unique(values, return_counts=True)
    for value in named[alike * 10 > len(values)]:
        inside = np.searchsorted(edges, values, "right") == np.searchsorted(edges, value, "right")
        assert set(values[inside]) == {value}


@pytest.mark.parametrize("reference", [50, 500, 5000])
@pytest.mark.parametrize("photos", [50, 500, 5000])
@pytest.mark.parametrize("digits", [1, 12], ids=["tied", "continuous"])
def test_nothing_is_found_where_nothing_changed(reference: int, photos: int, digits: int) -> None:
    generator = np.random.default_rng([reference, photos, digits])
    draw = lambda count: np.round(generator.beta(0.4, 4, count), digits)  # noqa: E731
    found = [measure_drift(draw(reference), draw(photos)) for _ in range(100)]
    assert sum(drift.verdict == "none" for drift in found) >= 95
    # And what the index is said to be by chance, it is: that is what it must not be blamed for.
    if digits > 1:
        assert np.mean([drift.psi for drift in found]) == pytest.approx(found[0].psi_by_chance, rel=0.2)


@pytest.mark.parametrize(("shift", "verdict"), [(0.2, "none"), (0.42, "moderate"), (0.8, "large")])
@pytest.mark.parametrize("photos", [2000, 20_000])
def test_a_change_is_found_and_graded_by_its_size_and_not_by_the_number_of_photos(
    shift: float, verdict: str, photos: int
) -> None:
    generator = np.random.default_rng(photos)
    drift = measure_drift(generator.normal(size=20_000), generator.normal(size=photos) + shift)
    assert drift.verdict == verdict
    assert drift.p_value < 0.01, "even a small one is beyond chance"
    assert drift.median == pytest.approx(shift, abs=0.1)


def test_too_few_photos_are_said_to_be_and_so_are_many_of_few_lesions() -> None:
    generator = np.random.default_rng(0)
    before, after = generator.normal(size=500), generator.normal(size=500) + 3
    assert measure_drift(before, after[: LEAST_PHOTOS - 1]).verdict == "too few"
    assert measure_drift(before, after).verdict == "large"
    assert measure_drift(before, after, size=20).verdict == "too few"
    assert measure_drift(before, np.array([])).median is None
    with_gaps = np.concatenate([after, np.full(500, np.nan)])
    assert measure_drift(before, with_gaps, size=500) == measure_drift(before, after, size=250)


def test_a_constant_that_changes_either_way_is_found() -> None:
    for value in (450.0, 1024.0):
        drift = measure_drift(np.full(200, 600.0), np.full(200, value))
        assert drift.verdict == "large"


@given(arrays(np.int64, st.integers(1, 60), elements=st.integers(-1, 8)))
def test_clusters_are_worth_between_one_photo_and_all(clusters: np.ndarray) -> None:
    worth = effective_number(clusters)
    assert 1 <= worth <= len(clusters) + 1e-9


def test_photos_of_their_own_are_worth_themselves() -> None:
    assert effective_number(np.full(7, -1)) == 7
    assert effective_number(np.array([0, 0, 1, 1, 2, 2])) == pytest.approx(3)
    assert effective_number(np.array([], np.int64)) == 0


@given(st.integers(0, 500), st.integers(1, 500))
def test_a_share_lies_in_its_interval(hits: int, more: int) -> None:
    total = hits + more
    share = share_interval(hits, total)
    assert 0 <= share["low"] <= share["value"] <= share["high"] <= 1


def test_shares_are_those_of_newcombe() -> None:
    # Newcombe 1998, table II, example (a): 56/70 - 48/80, method 10, 95 %; here the parts of it.
    assert share_interval(56, 70) == pytest.approx({"value": 0.8, "low": 0.6922, "high": 0.8767}, abs=2e-3)
    found = compare_shares((480, 800), (560, 700))
    assert found.change == "higher"
    assert found.difference["value"] == pytest.approx(0.2)
    assert compare_shares((560, 700), (480, 800)).change == "lower"
    assert compare_shares((60, 100), (65, 100)).change == "none"
    assert compare_shares((6, 10), (0, 1000)).change == "too few"
    assert compare_shares((200_000, 1_000_000), (203_000, 1_000_000)).change == "none", "beyond chance, but what of it"
    assert compare_shares((0, 100), (0, 100)).change == "none"


@settings(max_examples=50)
@given(st.floats(0.02, 0.6), st.integers(0, 2**32 - 1))
def test_the_same_share_is_hardly_ever_another(share: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    found = [
        compare_shares((k, 300), (m, 200)) for k, m in zip(generator.binomial(300, share, 40), generator.binomial(200, share, 40))
    ]
    assert sum(each.change != "none" for each in found) <= 4
