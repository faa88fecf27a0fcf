"""Figures of a classifier's quality as functions of counts, so that a bootstrap is a matrix product.

A photo falls into a cell: how high it scores and what it is, or its true class and the predicted one. Every figure here
follows from how much weight each cell holds. A bootstrap draws clusters (patients, lesions) with replacement; how often each
was drawn, times the cells of its photos, gives the counts of that draw. Nothing is sorted or looked at a second time.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import scipy.sparse

# Scores are cut into so many bins of equally many photos when more of them differ: fine enough that the ROC-AUC of a million
# photos stays within 1e-5 (tested).
MOST_BINS = 1 << 14
# ISIC 2024's partial area is the part of the area under the ROC curve that lies above this sensitivity.
LEAST_SENSITIVITY = 0.8
# Bins of the expected calibration error, of equal width (Guo et al. 2017, arXiv:1706.04599).
CALIBRATION_BINS = 15

Figures = dict[str, npt.NDArray[np.float64]]


class Counts(Protocol):
    """What photos are counted by, and the figures that follow from the counts.

    Attributes:
        cells: float32 sparse [cells, photos], what each photo adds to each cell.
    """

    cells: scipy.sparse.csr_array

    def figures(self, counts: npt.NDArray[np.floating[Any]]) -> Figures:
        """Figures of several draws.

        Args:
            counts: [cells, draws].

        Returns:
            Name -> float64 [draws]; NaN where a draw has no such figure.
        """
        ...


def _one_each(cell: npt.NDArray[np.integer[Any]], cells: int) -> scipy.sparse.csr_array:
    """Every photo adds one to one cell."""
    photos = np.arange(len(cell))
    return scipy.sparse.csr_array((np.ones(len(cell), np.float32), (cell, photos)), shape=(cells, len(cell)))


def _divided(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """part / whole, NaN where the whole is 0."""
    divided: npt.NDArray[np.float64] = np.full(np.broadcast(part, whole).shape, np.nan)
    np.divide(part, whole, out=divided, where=whole != 0)
    return divided


class ThresholdCounts:
    """Flagged or not, malignant or not: accuracy, balanced_accuracy, precision, recall, specificity, f1.

    Args:
        positive: bool [N], malignant.
        flagged: bool [N].
    """

    def __init__(self, positive: npt.NDArray[np.bool_], flagged: npt.NDArray[np.bool_]) -> None:
        self.cells = _one_each(2 * positive.astype(np.int64) + flagged, 4)

    def figures(self, counts: npt.NDArray[np.floating[Any]]) -> Figures:
        """See `Counts`; recall is the sensitivity."""
        passed, false_alarms, missed, found = counts.astype(np.float64)
        recall, specificity = _divided(found, found + missed), _divided(passed, passed + false_alarms)
        # As scikit-learn has it with zero_division=0: what flags nothing is right about nothing.
        precision = np.where(found + false_alarms > 0, _divided(found, found + false_alarms), 0.0)
        return {
            "accuracy": _divided(passed + found, counts.sum(axis=0)),
            "balanced_accuracy": (recall + specificity) / 2,
            "precision": precision,
            "recall": recall,
            "specificity": specificity,
            "f1": np.where(found + false_alarms + missed > 0, _divided(2 * found, 2 * found + false_alarms + missed), 0.0),
        }


class ScoreCounts:
    """How scores rank the positives: roc_auc, pr_auc (average precision), partial_auc (above 80 % sensitivity, at most 0.2).

    Args:
        positive: bool [N].
        scores: float [N], higher for positive.
        most_bins: Scores that differ are told apart while they are no more than this; None: always.

    Source: partial_auc, ISIC 2024 challenge (Kurtansky et al. 2024, doi:10.1038/s41597-024-03743-w).
    """

    def __init__(
        self, positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating[Any]], most_bins: int | None = MOST_BINS
    ) -> None:
        different, rank = np.unique(scores, return_inverse=True)
        if most_bins is not None and len(different) > most_bins:
            middles = (np.cumsum(np.bincount(rank)) - np.bincount(rank) / 2) / len(scores)
            rank = (middles * most_bins).astype(np.int64)[rank]
            rank = np.unique(rank, return_inverse=True)[1]
        self._bins = int(rank.max()) + 1 if len(rank) else 0
        self.cells = _one_each(rank + self._bins * positive, 2 * self._bins)

    def figures(self, counts: npt.NDArray[np.floating[Any]]) -> Figures:
        """See `Counts`."""
        # From the highest score down, as a threshold that is lowered meets them.
        negatives, positives = counts.reshape(2, self._bins, -1)[:, ::-1].astype(np.float64)
        found, false_alarms = np.cumsum(positives, axis=0), np.cumsum(negatives, axis=0)
        all_positives, all_negatives = found[-1], false_alarms[-1]
        # A pair counts when the negative scores lower, and half when both score the same.
        pairs = (positives * (all_negatives - false_alarms + negatives / 2)).sum(axis=0)
        precision = np.divide(found, found + false_alarms, out=np.zeros_like(found), where=found + false_alarms > 0)
        return {
            "roc_auc": _divided(pairs, all_positives * all_negatives),
            "pr_auc": np.where(all_negatives > 0, _divided((positives * precision).sum(axis=0), all_positives), np.nan),
            "partial_auc": _partial_area(_divided(found, all_positives), _divided(false_alarms, all_negatives)),
        }


def _partial_area(sensitivity: npt.NDArray[np.float64], false_alarm_rate: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The area right of the ROC curve above LEAST_SENSITIVITY, by trapezoids: float64 [draws].

    Args:
        sensitivity: [bins, draws], as the threshold is lowered.
        false_alarm_rate: The same.
    """
    zero = np.zeros((1, sensitivity.shape[1]))
    high, far_high = sensitivity, false_alarm_rate
    low, far_low = np.concatenate([zero, high[:-1]]), np.concatenate([zero, far_high[:-1]])
    start = np.clip(low, LEAST_SENSITIVITY, None)
    part = np.clip(high - start, 0, None)  # of the step up that lies above the least sensitivity
    share = np.divide(start - low, high - low, out=np.zeros_like(low), where=high > low)
    far_start = far_low + share * (far_high - far_low)
    return np.asarray((part * (1 - (far_start + far_high) / 2)).sum(axis=0))


class CalibrationCounts:
    """How far probabilities can be taken at their word: brier, ece (expected calibration error).

    Args:
        positive: bool [N].
        probabilities: float [N], 0 to 1, of being positive.

    Source: Brier 1950, doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2; Guo et al. 2017, arXiv:1706.04599.
    """

    def __init__(self, positive: npt.NDArray[np.bool_], probabilities: npt.NDArray[np.floating[Any]]) -> None:
        values = probabilities.astype(np.float64)
        bins = np.minimum((values * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
        in_bin = _one_each(bins, CALIBRATION_BINS)
        # Photos alone in rows of their own: [count; gap by bin; squared error].
        gaps = in_bin.multiply((values - positive).astype(np.float32)[np.newaxis, :])
        squares = scipy.sparse.csr_array(((values - positive) ** 2).astype(np.float32)[np.newaxis, :])
        self.cells = scipy.sparse.csr_array(scipy.sparse.vstack([in_bin, gaps, squares]))

    def figures(self, counts: npt.NDArray[np.floating[Any]]) -> Figures:
        """See `Counts`."""
        photos = counts[:CALIBRATION_BINS].sum(axis=0, dtype=np.float64)
        gaps = np.abs(counts[CALIBRATION_BINS:-1].astype(np.float64)).sum(axis=0)
        return {"brier": _divided(counts[-1].astype(np.float64), photos), "ece": _divided(gaps, photos)}


class ClassCounts:
    """True class by predicted class: class_accuracy, class_balanced_accuracy, and of each class recall_CODE, precision_CODE,
    specificity_CODE, f1_CODE, and macro_f1.

    Args:
        labels: Int [N], positions among `codes`.
        predicted: Int [N].
        codes: Class codes.
    """

    def __init__(
        self, labels: npt.NDArray[np.integer[Any]], predicted: npt.NDArray[np.integer[Any]], codes: tuple[str, ...]
    ) -> None:
        self._codes = codes
        self.cells = _one_each(labels.astype(np.int64) * len(codes) + predicted, len(codes) ** 2)

    def figures(self, counts: npt.NDArray[np.floating[Any]]) -> Figures:
        """See `Counts`."""
        classes = len(self._codes)
        matrix = counts.reshape(classes, classes, -1).astype(np.float64)
        photos, actual, said = matrix.sum(axis=(0, 1)), matrix.sum(axis=1), matrix.sum(axis=0)
        right = matrix[np.arange(classes), np.arange(classes)]
        recall = _divided(right, actual)
        precision = np.where(said > 0, _divided(right, said), 0.0)
        f1 = np.where(actual + said > 0, _divided(2 * right, actual + said), 0.0)
        specificity = _divided(photos - actual - said + right, photos - actual)
        figures = {
            "class_accuracy": _divided(right.sum(axis=0), photos),
            # Of the classes that occur in the draw, as scikit-learn has it.
            "class_balanced_accuracy": _divided(np.nansum(recall, axis=0), (actual > 0).sum(axis=0)),
            "macro_f1": f1.mean(axis=0),
        }
        for name, values in (("recall", recall), ("precision", precision), ("specificity", specificity), ("f1", f1)):
            figures |= {f"{name}_{code}": values[number] for number, code in enumerate(self._codes)}
        return figures


@dataclass(frozen=True)
class Measure:
    """Counts whose figures get a name of their own.

    Attributes:
        name: Before the figures' names; "" leaves them as they are.
        counts: What is counted.
        rows: Int [N], which photos of all the counts are about; None: all.
    """

    name: str
    counts: Counts
    rows: npt.NDArray[np.int64] | None = None
