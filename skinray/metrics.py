"""Figures of a classifier's quality from labels and scores: numpy and scikit-learn, neither Ray nor TensorFlow."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.special
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


def malignancy(logits: npt.NDArray[np.floating[Any]], malignant: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """The summed softmax probability of the malignant classes, float64 [N]."""
    probabilities = scipy.special.softmax(logits.astype(np.float64), axis=1)
    return np.asarray(probabilities[:, list(malignant)].sum(axis=1))


def cross_entropy(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int32]) -> float:
    """The mean negative log-likelihood of the labels, in nats."""
    return -float(scipy.special.log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels].mean())


def balanced_accuracy(labels: npt.NDArray[np.integer[Any]], predicted: npt.NDArray[np.integer[Any]]) -> float:
    """The mean over the classes that occur of the share of their photos that is recognised, 0 to 1.

    Args:
        labels: Int [N], the true classes.
        predicted: Int [N].
    """
    return float(np.mean([np.mean(predicted[labels == code] == code) for code in np.unique(labels)]))


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


def threshold_for_specificity(
    positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating[Any]], specificity: float
) -> float:
    """The lowest threshold at which at least this share of the negatives is not flagged.

    Args:
        positive: bool [N], with at least one False.
        scores: float [N].
        specificity: 0 to 1.
    """
    ordered = np.sort(scores[~positive])
    needed = int(np.ceil(specificity * len(ordered) - 1e-9))
    # A hair above the last negative that must pass, because a photo at the threshold is flagged.
    return float(np.nextafter(ordered[needed - 1], np.inf)) if needed else 0.0


def threshold_youden(positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating[Any]]) -> float:
    """The threshold with the largest sensitivity + specificity - 1 (Youden 1950, doi:10.1002/1097-0142(1950)3:1)."""
    false_positive_rate, true_positive_rate, thresholds = sklearn.metrics.roc_curve(positive, scores)
    return float(thresholds[1:][np.argmax((true_positive_rate - false_positive_rate)[1:])])
