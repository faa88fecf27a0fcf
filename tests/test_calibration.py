"""Calibration finds what distorted the probabilities, and keeps to what is expected where it sees nothing."""

import numpy as np
import numpy.typing as npt
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st

from skinray.calibration import (
    Calibration,
    at_prevalence,
    expected_calibration_error_by_chance,
    fit_calibration,
    predictive_values,
    reliability,
)
from skinray.counts import CalibrationCounts


def drawn(photos: int, classes: int, seed: int = 0) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Logits that are right, and labels drawn from them."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(photos, classes)) * 2 + np.linspace(1, -1, classes)
    probabilities = scipy.special.softmax(logits, axis=1)
    return logits, np.array([generator.choice(classes, p=row) for row in probabilities])


@pytest.mark.parametrize("classes", [2, 5])
def test_what_distorted_the_logits_is_found(classes: int) -> None:
    logits, labels = drawn(20_000, classes)
    bias = np.linspace(-1.5, 1.5, classes)
    distorted = (logits - bias) * 2.5
    found = fit_calibration(distorted, labels, np.zeros(classes))
    assert found.temperature == pytest.approx(2.5, rel=0.05)
    np.testing.assert_allclose(found.bias, bias - bias.mean(), atol=0.1)
    probabilities = scipy.special.softmax(found.applied(distorted), axis=1)[:, 1]
    counts = CalibrationCounts(labels == 1, probabilities)
    assert counts.figures(counts.cells @ np.ones((len(labels), 1)))["ece"][0] < 0.02


def test_a_class_that_validation_has_not_stays_where_it_is_expected() -> None:
    logits, _ = drawn(40, 3)
    found = fit_calibration(logits, np.zeros(40, np.int64) + np.arange(40) % 2, np.array([0.0, 0.0, -2.0]))
    assert found.bias[2] < min(found.bias[:2])
    assert np.isfinite([found.temperature, *found.bias]).all()


def test_two_photos_that_are_told_apart_do_not_make_it_certain() -> None:
    found = fit_calibration(np.array([[5.0, -5.0], [-5.0, 5.0]]), np.array([0, 1]), np.zeros(2))
    assert 0.1 < found.temperature < 2


def test_order_stays_with_two_classes() -> None:
    logits, _ = drawn(100, 2)
    changed = Calibration(3.0, (0.7, -0.7)).applied(logits)
    assert (np.argsort(logits[:, 1] - logits[:, 0]) == np.argsort(changed[:, 1] - changed[:, 0])).all()


@given(st.floats(0.01, 0.99), st.floats(0.01, 0.99), st.lists(st.floats(0, 1), min_size=2))
def test_prevalence_there_and_back(share: float, prevalence: float, values: list[float]) -> None:
    probabilities = np.array(values)
    there = at_prevalence(probabilities, share, prevalence)
    assert ((there >= 0) & (there <= 1)).all()
    np.testing.assert_allclose(at_prevalence(there, prevalence, share), probabilities, atol=1e-9)
    order = np.argsort(probabilities, kind="stable")
    assert (np.diff(there[order]) >= -1e-12).all()


def test_predictive_values_are_bayes_rule() -> None:
    # 1,000 people, 20 ill: 18 found, 2 missed; of 980 healthy 98 flagged.
    found = predictive_values(0.9, 0.9, 0.02)
    assert found == pytest.approx({"ppv": 18 / 116, "npv": 882 / 884, "number_needed_to_refer": 116 / 18})
    assert np.isnan(predictive_values(0.0, 1.0, 0.02)["ppv"])


@pytest.mark.parametrize("photos", [100, 800, 20_000])
def test_what_chance_alone_makes_of_right_probabilities(photos: int) -> None:
    generator = np.random.default_rng(photos)
    probabilities = generator.beta(0.5, 1.0, photos)
    shown = []
    for _ in range(200):
        counts = CalibrationCounts(generator.random(photos) < probabilities, probabilities)
        shown.append(counts.figures(counts.cells @ np.ones((photos, 1)))["ece"][0])
    assert expected_calibration_error_by_chance(probabilities) == pytest.approx(np.mean(shown), rel=0.06)


def test_reliability_has_every_photo_once() -> None:
    generator = np.random.default_rng(0)
    probabilities = generator.random(500) ** 2
    positive = generator.random(500) < probabilities
    found = reliability(positive, probabilities)
    assert found.photos.sum() == 500
    assert (found.promised * found.photos).sum() == pytest.approx(probabilities.sum())
    assert (found.came * found.photos).sum() == pytest.approx(positive.sum())
    assert np.abs(found.promised - found.came).max() < 0.35
