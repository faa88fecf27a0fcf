"""Chooses the thresholds of a bundle, on photos that it was not fitted to; they are frozen with it and reported on others."""

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.stats

from skinray.bundle import OperatingPoint, OperatingPoints
from skinray.counts import Measure, ThresholdCounts
from skinray.intervals import Clusters, estimates
from skinray.metrics import threshold_for_sensitivity, threshold_for_specificity, threshold_youden

# Thresholds stand this far on the safe side of a photo, because the same photo may come out 1e-6 apart on another machine.
_MARGIN = 1e-5
# Of the point with a guarantee: at most this share of malignant lesions is missed, unless validation was unlucky, which it is
# in at most one of twenty cases.
MISS_RATE, CONFIDENCE = 0.10, 0.95


def threshold_for_miss_rate(scores: npt.NDArray[np.floating[Any]], miss_rate: float, confidence: float) -> float | None:
    """The highest threshold that, whatever the scores' distribution, misses no larger share of further positives.

    Args:
        scores: float [N], of independent positives.
        miss_rate: Largest share of positives below the threshold, above 0 and below 1.
        confidence: How often, over draws of such scores, the threshold keeps to it.

    Returns:
        The threshold; None when there are too few scores for any.

    Source: Wilks 1941, doi:10.1214/aoms/1177731788 (tolerance limits); as risk control, Bates et al. 2021, arXiv:2101.02703.
    """
    allowed = np.arange(len(scores))
    kept = scipy.stats.binom.cdf(allowed, len(scores), miss_rate) <= 1 - confidence
    # So many may lie below: were the true share larger, so few below would be that rare.
    return float(np.sort(scores)[np.count_nonzero(kept) - 1]) if kept.any() else None


def choose_operating_points(
    positive: npt.NDArray[np.bool_],
    scores: npt.NDArray[np.float64],
    clusters: npt.NDArray[Any],
    measured_on: str,
    *,
    own_scores: bool = True,
) -> OperatingPoints:
    """Thresholds on the malignancy score.

    Args:
        positive: bool [N], malignant; both kinds must be there.
        scores: float64 [N], 0 to 1, calibrated.
        clusters: [N], the lesion (or patient) of each photo.
        measured_on: Which photos these are.
        own_scores: They are the model's that the points are for; False: of models like it, whose scores guarantee nothing of its.

    Returns:
        sensitivity_95 and specificity_90 (at least that, on these photos), youden (the default), and miss_rate_10: with a
        guarantee for further lesions of the same kind, where the scores are the model's own and these are enough for one
        (29 malignant lesions).
    """
    # A lesion is missed when a single photo of it is.
    _, lesion = np.unique(clusters[positive], return_inverse=True)
    lowest = np.full(lesion.max() + 1, np.inf)
    np.minimum.at(lowest, lesion, scores[positive])
    guaranteed = threshold_for_miss_rate(lowest, MISS_RATE, CONFIDENCE) if own_scores else None
    rules = {
        "sensitivity_95": f"at least 95 % sensitivity on {measured_on}",
        "specificity_90": f"at least 90 % specificity on {measured_on}",
        "youden": f"the largest sensitivity + specificity on {measured_on}",
        "miss_rate_10": f"at most {MISS_RATE:.0%} of malignant lesions missed, with {CONFIDENCE:.0%} confidence, where lesions "
        f"are like the {len(lowest)} of {measured_on}",
    }
    thresholds = {
        "sensitivity_95": max(0.0, threshold_for_sensitivity(positive, scores, 0.95) - _MARGIN),
        "specificity_90": threshold_for_specificity(positive, scores, 0.90) + _MARGIN,
        "youden": max(0.0, threshold_youden(positive, scores) - _MARGIN),
        **({"miss_rate_10": max(0.0, guaranteed - _MARGIN)} if guaranteed is not None else {}),
    }
    measures = [Measure(name, ThresholdCounts(positive, scores >= threshold)) for name, threshold in thresholds.items()]
    found = estimates(measures, Clusters(clusters))

    def point(name: str) -> OperatingPoint:
        sensitivity, specificity = found[f"{name}.recall"], found[f"{name}.specificity"]
        return OperatingPoint(
            threshold=thresholds[name],
            rule=rules[name],
            sensitivity=sensitivity.value,
            sensitivity_interval=(sensitivity.low, sensitivity.high),
            specificity=specificity.value,
            specificity_interval=(specificity.low, specificity.high),
            measured_on=measured_on,
            miss_rate_bound=MISS_RATE if name == "miss_rate_10" else None,
        )

    return OperatingPoints(default="youden", points={name: point(name) for name in thresholds})
