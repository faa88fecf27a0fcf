"""Figures of a classifier's quality from labels and scores: numpy and scikit-learn, neither Ray nor TensorFlow."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import sklearn.metrics


def roc_auc(positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating[Any]]) -> float:
    """The area under the ROC curve, 0 to 1: the chance that a positive scores higher than a negative.

    Args:
        positive: bool [N].
        scores: float [N], higher for positive.

    Returns:
        The area; NaN when only one kind is there.
    """
    if positive.all() or not positive.any():
        return float("nan")
    return float(sklearn.metrics.roc_auc_score(positive, scores))


def binary_figures(positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating[Any]], threshold: float) -> dict[str, float]:
    """What a threshold gives on the malignancy score.

    Args:
        positive: bool [N], malignant.
        scores: float [N], 0 to 1.
        threshold: A photo at or above it counts as malignant.

    Returns:
        accuracy, precision, recall (sensitivity), specificity and f1, 0 to 1, at the threshold; roc_auc over all thresholds.
    """
    flagged = scores >= threshold
    precision, recall, f1, _ = sklearn.metrics.precision_recall_fscore_support(
        positive, flagged, average="binary", zero_division=0.0
    )
    negatives = np.count_nonzero(~positive)
    return {
        "accuracy": float(np.mean(positive == flagged)),
        "precision": float(precision),
        "recall": float(recall),
        "specificity": float(np.count_nonzero(~positive & ~flagged) / negatives) if negatives else float("nan"),
        "f1": float(f1),
        "roc_auc": roc_auc(positive, scores),
    }


def confusion_matrix(labels: Sequence[str], predicted: Sequence[str], codes: Sequence[str]) -> npt.NDArray[np.int64]:
    """Counts of true class (rows) by predicted class (columns), int64 [C, C], in the order of `codes`."""
    matrix: npt.NDArray[np.int64] = sklearn.metrics.confusion_matrix(labels, predicted, labels=list(codes))
    return matrix


def threshold_for_sensitivity(
    positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating[Any]], sensitivity: float
) -> float:
    """The highest threshold at which at least this share of the positives is flagged.

    Args:
        positive: bool [N], with at least one True.
        scores: float [N].
        sensitivity: 0 to 1.
    """
    ordered = np.sort(scores[positive])[::-1]
    # 0.07 * 100 is a hair above 7 in binary.
    needed = int(np.ceil(sensitivity * len(ordered) - 1e-9))
    return float(ordered[max(0, needed - 1)])


def threshold_youden(positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating[Any]]) -> float:
    """The threshold with the largest sensitivity + specificity - 1 (Youden 1950, doi:10.1002/1097-0142(1950)3:1)."""
    false_positive_rate, true_positive_rate, thresholds = sklearn.metrics.roc_curve(positive, scores)
    return float(thresholds[1:][np.argmax((true_positive_rate - false_positive_rate)[1:])])
