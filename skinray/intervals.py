"""Intervals by bootstrap, clustered: what is drawn are patients or lesions, because photos of one are not independent.

Source: Field and Welsh 2007, doi:10.1111/j.1467-9868.2007.00593.x; percentile intervals: Efron 1979, doi:10.1214/aos/1176344552.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse

from skinray.counts import Measure

# Numbers held at a time while drawing, so that a million clusters need no gigabytes.
_HELD = 1 << 23


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval; NaN where there is none.

    Attributes:
        value: On all photos.
        low, high: Ends of the interval.
    """

    value: float
    low: float
    high: float

    def recorded(self) -> dict[str, float | None]:
        """As JSON values: what is no number becomes null."""
        return {name: None if np.isnan(value) else float(value) for name, value in self.__dict__.items()}


class Clusters:
    """What is drawn.

    Args:
        ids: [N], the patient, lesion or group of each photo.
        seed: Of the draws.
    """

    def __init__(self, ids: npt.NDArray[Any], seed: int = 0) -> None:
        names, self.of_photo = np.unique(ids, return_inverse=True)
        self.number = len(names)
        self._seed = seed

    def at_once(self, rounds: int) -> list[range]:
        """The rounds, cut into runs that are drawn together."""
        step = max(1, _HELD // max(1, self.number))
        return [range(first, min(first + step, rounds)) for first in range(0, rounds, step)]

    def drawn(self, rounds: range) -> npt.NDArray[np.float32]:
        """How often each cluster is drawn in some rounds, float32 [clusters, rounds]; the same whenever it is asked."""
        drawn = np.empty((self.number, len(rounds)), np.float32)
        for column, number in enumerate(rounds):
            generator = np.random.default_rng([self._seed, number])
            drawn[:, column] = np.bincount(generator.integers(self.number, size=self.number), minlength=self.number)
        return drawn

    def cells(self, measure: Measure) -> scipy.sparse.csr_array:
        """What each cluster adds to the measure's cells, float32 sparse [cells, clusters]."""
        of_photo = self.of_photo if measure.rows is None else self.of_photo[measure.rows]
        ones = np.ones(len(of_photo), np.float32)
        belongs = scipy.sparse.csr_array((ones, (np.arange(len(of_photo)), of_photo)), shape=(len(of_photo), self.number))
        return scipy.sparse.csr_array(measure.counts.cells @ belongs)


@dataclass(frozen=True, eq=False)
class Resampled:
    """A figure, and what it was in every draw; figures of the same draws can be subtracted.

    Attributes:
        value: On all photos.
        draws: float64 [rounds], NaN where a draw has none.
    """

    value: float
    draws: npt.NDArray[np.float64]

    def __sub__(self, other: "Resampled") -> "Resampled":
        return Resampled(self.value - other.value, self.draws - other.draws)

    def estimate(self, confidence: float = 0.95) -> Estimate:
        """The figure with its percentile interval."""
        known = self.draws[~np.isnan(self.draws)]
        if not len(known):
            return Estimate(self.value, float("nan"), float("nan"))
        low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
        return Estimate(self.value, float(low), float(high))


def resample(measures: Sequence[Measure], clusters: Clusters, rounds: int = 1000) -> dict[str, Resampled]:
    """Every figure of every measure, on all photos and in every draw; all of them see the same draws.

    Args:
        measures: What to count.
        clusters: What to draw.
        rounds: How often.

    Returns:
        "NAME.FIGURE" (or "FIGURE" for a measure without a name) -> the figure.
    """
    by_cluster = [clusters.cells(measure) for measure in measures]

    def figures(weights: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float64]]:
        return {
            f"{measure.name}.{name}".lstrip("."): values
            for measure, cells in zip(measures, by_cluster, strict=True)
            for name, values in measure.counts.figures(cells @ weights).items()
        }

    whole = figures(np.ones((clusters.number, 1), np.float32))
    # Sparse products and sums let other threads go on.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        parts = list(threads.map(lambda some: figures(clusters.drawn(some)), clusters.at_once(rounds)))
    return {name: Resampled(float(value[0]), np.concatenate([part[name] for part in parts])) for name, value in whole.items()}


def estimates(
    measures: Sequence[Measure], clusters: Clusters, rounds: int = 1000, confidence: float = 0.95
) -> dict[str, Estimate]:
    """Every figure of every measure with its interval; arguments and names as `resample` has them."""
    return {name: found.estimate(confidence) for name, found in resample(measures, clusters, rounds).items()}
