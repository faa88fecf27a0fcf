"""Two models on the same photos: which is better, by how much, and who is judged otherwise.

Source: DeLong et al. 1988, doi:10.2307/2531595, by the midranks of Sun and Xu 2014, doi:10.1109/LSP.2014.2337313; McNemar 1947,
doi:10.1007/BF02295996, exact.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.stats

from skinray.counts import Measure, ScoreCounts, ThresholdCounts
from skinray.intervals import Clusters, Estimate, resample

Scores = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class DeLong:
    """The difference of two ROC-AUCs on the same photos, taken as independent of each other.

    Attributes:
        difference: Second minus first.
        low, high: Its 95 % interval.
        p_value: Of no difference, two-sided; 1 where the two rank alike.
    """

    difference: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class Comparison:
    """What changes from one model to another.

    Attributes:
        photos: On how many.
        differences: Second minus first of roc_auc, pr_auc, partial_auc, recall, specificity, drawn by clusters.
        delong: Of the ROC-AUC.
        newly_found, newly_missed: Malignant photos that only the second, or only the first, flags.
        newly_flagged, newly_passed: Benign ones that only the second, or only the first, flags.
        malignant_p_value, benign_p_value: McNemar's exact test on these pairs of numbers.
    """

    photos: int
    differences: dict[str, Estimate]
    delong: DeLong
    newly_found: int
    newly_missed: int
    newly_flagged: int
    newly_passed: int
    malignant_p_value: float
    benign_p_value: float

    def recorded(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def compare_scores(
    positive: Bools, scores: tuple[Scores, Scores], flagged: tuple[Bools, Bools], clusters: Clusters, rounds: int = 1000
) -> Comparison:
    """Compares two models photo by photo.

    Args:
        positive: bool [N], malignant; both kinds must be there.
        scores: float64 [N] of the first model and of the second.
        flagged: bool [N] of each, at its operating point.
        clusters: What is drawn for the intervals.
        rounds: How often.
    """
    measures = [
        measure
        for name, score, flags in zip(("first", "second"), scores, flagged, strict=True)
        for measure in (Measure(name, ScoreCounts(positive, score)), Measure(name, ThresholdCounts(positive, flags)))
    ]
    found = resample(measures, clusters, rounds)
    names = ("roc_auc", "pr_auc", "partial_auc", "recall", "specificity")
    only_second, only_first = flagged[1] & ~flagged[0], flagged[0] & ~flagged[1]
    counts = [int(np.count_nonzero(which & kind)) for kind in (positive, ~positive) for which in (only_second, only_first)]
    return Comparison(
        photos=len(positive),
        differences={name: (found[f"second.{name}"] - found[f"first.{name}"]).estimate() for name in names},
        delong=delong(positive, *scores),
        newly_found=counts[0],
        newly_missed=counts[1],
        newly_flagged=counts[2],
        newly_passed=counts[3],
        malignant_p_value=mcnemar(counts[0], counts[1]),
        benign_p_value=mcnemar(counts[2], counts[3]),
    )


def mcnemar(one_way: int, other_way: int) -> float:
    """The p-value, two-sided and exact, of as many photos changing one way as the other."""
    changed = one_way + other_way
    return float(scipy.stats.binomtest(one_way, changed).pvalue) if changed else 1.0


def delong(positive: Bools, first: Scores, second: Scores) -> DeLong:
    """DeLong's test of two ROC-AUCs on the same photos.

    Args:
        positive: bool [N], both kinds present.
        first, second: float64 [N], higher for positive.
    """
    placements = [_placements(positive, scores) for scores in (first, second)]
    # Of each positive: the share of negatives below it; of each negative: the share of positives above it.
    of_positives, of_negatives = (placements[1][kind] - placements[0][kind] for kind in (0, 1))
    difference = float(of_positives.mean())
    variance = sum(float(parts.var(ddof=1)) / len(parts) if len(parts) > 1 else np.inf for parts in (of_positives, of_negatives))
    deviation = float(np.sqrt(variance))
    if deviation == 0:
        return DeLong(difference, difference, difference, 1.0 if difference == 0 else 0.0)
    reach = 1.959963984540054 * deviation
    p_value = float(2 * scipy.stats.norm.sf(abs(difference) / deviation))
    return DeLong(difference, difference - reach, difference + reach, p_value)


def _placements(positive: Bools, scores: Scores) -> tuple[Scores, Scores]:
    ranks = scipy.stats.rankdata(scores)
    positives, negatives = scores[positive], scores[~positive]
    below = (ranks[positive] - scipy.stats.rankdata(positives)) / len(negatives)
    above = 1 - (ranks[~positive] - scipy.stats.rankdata(negatives)) / len(positives)
    return below, above
