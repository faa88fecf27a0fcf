"""Makes probabilities mean what they say: temperature and class biases fitted on validation, and other prevalences.

Training weights rare classes up, so that the network says what would be right if all classes were equally frequent; smoothing
and overfitting change how sure it is. Both are mended by two kinds of numbers on the logits, z / temperature + bias, which are
fitted where the truth is known and become part of the model.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.optimize
import scipy.special

from skinray.counts import CALIBRATION_BINS

# How strongly a bias is held near what the class weights explain, in photos: a class of which validation has none stays there.
_PRIOR_PHOTOS = 1.0
_TEMPERATURES = (0.05, 20.0)


@dataclass(frozen=True)
class Calibration:
    """What is done to a model's logits before the softmax.

    Attributes:
        temperature: What they are divided by.
        bias: What is then added to each class's.
    """

    temperature: float
    bias: tuple[float, ...]

    def applied(self, logits: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
        """Calibrated logits, float64 [N, C]."""
        return np.asarray(logits / np.float64(self.temperature) + np.array(self.bias), np.float64)


def fit_calibration(
    logits: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.integer[Any]], expected_bias: npt.NDArray[np.floating[Any]]
) -> Calibration:
    """The temperature and biases that make the labels most likely.

    Args:
        logits: float [N, C], of photos that the model was not fitted to.
        labels: Int [N], positions of the true classes.
        expected_bias: float [C], what is expected of the biases before anything is seen: the logarithm of how often a class
            occurs, against how often training made the model see it.

    Returns:
        The calibration; its biases have mean 0.

    Source: Guo et al. 2017, arXiv:1706.04599 (temperature); Alexandari et al. 2020, arXiv:1901.06852 (with biases).
    """
    values = logits.astype(np.float64)
    expected = np.asarray(expected_bias, np.float64) - np.mean(expected_bias)
    rows = np.arange(len(labels))

    def loss(parameters: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        sharpness, bias = np.exp(-parameters[0]), parameters[1:]
        logs = scipy.special.log_softmax(values * sharpness + bias, axis=1)
        wrong = np.exp(logs)
        wrong[rows, labels] -= 1
        away = bias - expected
        gradient = np.concatenate([[-(wrong * values).sum() * sharpness], wrong.sum(axis=0) + _PRIOR_PHOTOS * away])
        gradient[0] += _PRIOR_PHOTOS * parameters[0]
        prior = _PRIOR_PHOTOS * (float(away @ away) + parameters[0] ** 2) / 2
        return -float(logs[rows, labels].sum()) + prior, gradient

    bounds = [tuple(np.log(_TEMPERATURES)), *[(None, None)] * values.shape[1]]
    found = scipy.optimize.minimize(loss, np.concatenate([[0.0], expected]), jac=True, method="L-BFGS-B", bounds=bounds)
    bias = found.x[1:] - found.x[1:].mean()
    return Calibration(float(np.exp(found.x[0])), tuple(float(value) for value in bias))


def at_prevalence(
    probabilities: npt.NDArray[np.floating[Any]], positive_share: float, prevalence: float
) -> npt.NDArray[np.float64]:
    """Calibrated probabilities of being positive, where positives are more or less frequent than in the data.

    Args:
        probabilities: float [N], 0 to 1, right where the share of positives is `positive_share`.
        positive_share: Above 0 and below 1.
        prevalence: The share of positives where they are to be right; above 0 and below 1.

    Returns:
        float64 [N]; their order is the same.

    Source: Bayes' rule; Saerens et al. 2002, doi:10.1162/089976602753284446.
    """
    ratio = (prevalence / (1 - prevalence)) / (positive_share / (1 - positive_share))
    values = probabilities.astype(np.float64)
    return np.asarray(values * ratio / (values * ratio + (1 - values)))


def predictive_values(sensitivity: float, specificity: float, prevalence: float) -> dict[str, float]:
    """What a flag means where so many are positive.

    Args:
        sensitivity, specificity: 0 to 1.
        prevalence: Share of positives, 0 to 1.

    Returns:
        ppv: the share of those flagged that are positive; npv: the share of the others that are negative;
        number_needed_to_refer: flagged for each positive among them. NaN where nobody (or everybody) is flagged.
    """
    found, false_alarms = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
    missed, passed = (1 - sensitivity) * prevalence, specificity * (1 - prevalence)
    ppv = found / (found + false_alarms) if found + false_alarms else float("nan")
    npv = passed / (passed + missed) if passed + missed else float("nan")
    return {"ppv": ppv, "npv": npv, "number_needed_to_refer": 1 / ppv if ppv > 0 else float("nan")}


def expected_calibration_error_by_chance(probabilities: npt.NDArray[np.floating[Any]]) -> float:
    """The expected calibration error that probabilities show on so many photos although they are right.

    Args:
        probabilities: float [N], 0 to 1.

    Returns:
        Its expectation when the photos are independent (in each bin the gap is close to normal); photos of one lesion are not,
        and show more.
    """
    bins = _bins(probabilities)
    variance = np.bincount(bins, probabilities.astype(np.float64) * (1 - probabilities.astype(np.float64)), CALIBRATION_BINS)
    return float(np.sqrt(2 / np.pi * variance).sum() / len(probabilities))


def _bins(probabilities: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.int64]:
    return np.minimum((probabilities.astype(np.float64) * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)


@dataclass(frozen=True)
class Reliability:
    """What probabilities promised and what came, in bins of equal width; bins without photos are left out.

    Attributes:
        promised: Mean probability of each bin, float64 [bins].
        came: Share of positives in it.
        photos: Photos in it, int64.
    """

    promised: npt.NDArray[np.float64]
    came: npt.NDArray[np.float64]
    photos: npt.NDArray[np.int64]


def reliability(positive: npt.NDArray[np.bool_], probabilities: npt.NDArray[np.floating[Any]]) -> Reliability:
    """The points of a reliability plot (DeGroot and Fienberg 1983, doi:10.2307/2987588).

    Args:
        positive: bool [N].
        probabilities: float [N], 0 to 1.
    """
    bins = _bins(probabilities)
    photos = np.bincount(bins, minlength=CALIBRATION_BINS)
    filled = photos > 0
    promised = np.bincount(bins, probabilities, CALIBRATION_BINS)[filled] / photos[filled]
    came = np.bincount(bins, positive, CALIBRATION_BINS)[filled] / photos[filled]
    return Reliability(promised, came, photos[filled])
