"""Has something changed since then? Two samples of a number, or two shares, and a verdict that small samples cannot shake.

The population stability index says how much, a test whether chance could have made it. Both are needed: of many photos every
difference is significant, and of few every index is large. No change at all gives an index of about (bins - 1)(1/n + 1/m).
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy.special
import scipy.stats

Verdict = Literal["none", "moderate", "large", "too few"]
Change = Literal["none", "higher", "lower", "too few"]
Floats = npt.NDArray[np.floating[Any]]

# Source: the convention of credit scoring, Siddiqi 2006, Credit Risk Scorecards, doi:10.1002/9781119201731.
MODERATE_PSI, LARGE_PSI = 0.1, 0.25
# What chance makes more often than this is no drift.
SIGNIFICANCE = 0.01
# Fewer independent photos than this, on either side, give no verdict.
LEAST_PHOTOS = 30
# A share that differs by less than this, of what it was, has not changed, however sure that is.
LEAST_CHANGE = 0.2
_MOST_BINS = 10
# So many of the smaller sample are to be expected in a bin, as a chi-square needs them.
_LEAST_EXPECTED = 5
# Added to every bin's count, so that an empty one has a logarithm. Source: Haldane 1956.
_PSEUDO_COUNT = 0.5


@dataclass(frozen=True)
class Drift:
    """How far a number's distribution is from that of the reference.

    Attributes:
        verdict: large or moderate: the index without what chance adds to it is above LARGE_PSI or MODERATE_PSI, and chance
            explains neither it nor the distance between the distributions; none; or too few photos to tell.
        photos, reference_photos: Those with a known value.
        median, reference_median: Of them; None without any.
        psi: Population stability index, 0 or more; None when there are too few.
        psi_by_chance: What it is on average without any change.
        bins: Of the index.
        ks: Largest distance between the two cumulative distributions, 0 to 1.
        p_value: Of both tests together (Bonferroni).
    """

    verdict: Verdict
    photos: int
    reference_photos: int
    median: float | None
    reference_median: float | None
    psi: float | None = None
    psi_by_chance: float | None = None
    bins: int = 0
    ks: float | None = None
    p_value: float | None = None

    def recorded(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class ShareDrift:
    """How far a share is from that of the reference.

    Attributes:
        change: higher or lower: beyond chance, and by LEAST_CHANGE or more of the reference; none; or too few photos to tell.
        share, reference: value, low, high, of 95 %; see `share_interval`.
        difference: share minus reference, with its interval of 1 - SIGNIFICANCE.
    """

    change: Change
    share: dict[str, float | None]
    reference: dict[str, float | None]
    difference: dict[str, float | None]

    def recorded(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def population_stability_index(reference: npt.NDArray[np.integer[Any]], counts: npt.NDArray[np.integer[Any]]) -> float:
    """The sum of (p - q) ln(p / q) over bins, 0 or more, 0 for equal counts.

    Args:
        reference: int [B], photos of the reference in each bin.
        counts: int [B], photos in each.

    Returns:
        The index (Jeffreys' divergence), of shares with half a photo added to every bin. Source: Siddiqi 2006.
    """
    q, p = ((each + _PSEUDO_COUNT) / (each.sum() + _PSEUDO_COUNT * len(each)) for each in (reference, counts))
    # Terms are never negative, but the rounding of shares that are equal may be.
    return float(np.maximum((p - q) * np.log(p / q), 0).sum())


def bin_edges(reference: Floats, most_bins: int = _MOST_BINS) -> npt.NDArray[np.float64]:
    """Inner edges of bins that hold about as many values of the reference each, float64 [bins - 1], ascending.

    Args:
        reference: float [M], at least one.
        most_bins: As many where values differ enough. A value that many share has a bin for itself.
    """
    ordered = np.sort(reference.astype(np.float64))
    edges = np.quantile(ordered, np.arange(1, most_bins) / most_bins, method="lower")
    values, alike = np.unique(ordered, return_counts=True)
    shared = values[alike * most_bins > len(ordered)]  # the quantiles may pass over one at the end
    return np.unique(np.concatenate([edges, shared, np.nextafter(shared, np.inf)]))


def effective_number(clusters: npt.NDArray[np.integer[Any]]) -> float:
    """How many independent photos some photos are worth that come in clusters, of one lesion for example.

    Args:
        clusters: int [N], the cluster of each photo, -1 for a photo that is one of its own.

    Returns:
        (sum of sizes)^2 / sum of squared sizes, as if photos of a cluster told the same. Source: Kish 1965, Survey Sampling.
    """
    if not len(clusters):
        return 0.0
    alone = int((clusters < 0).sum())
    sizes = np.bincount(clusters[clusters >= 0]).astype(np.float64)
    return len(clusters) ** 2 / float((sizes**2).sum() + alone)


def measure_drift(reference: Floats, values: Floats, reference_size: float | None = None, size: float | None = None) -> Drift:
    """Compares two samples of a number.

    Args:
        reference: float [M]; NaN is not known and left out.
        values: float [N], likewise.
        reference_size: What the reference is worth in independent photos, see `effective_number`; None: M.
        size: What the values are worth; None: N.

    Returns:
        The verdict and what it rests on. Under no change the index, divided by 1/n + 1/m, follows a chi-square of bins - 1
        degrees of freedom. Source: Yurdakul and Naranjo 2020, doi:10.21314/JRMV.2020.227; Kolmogorov and Smirnov 1939.
    """
    known = [each[~np.isnan(each)] for each in (reference, values)]
    worth = [
        len(mine) * (1.0 if given is None else min(1.0, given / max(len(each), 1)))
        for mine, each, given in zip(known, (reference, values), (reference_size, size), strict=True)
    ]
    medians = [float(np.median(mine)) if len(mine) else None for mine in known]
    about = {"photos": len(known[1]), "reference_photos": len(known[0])}
    if min(worth) < LEAST_PHOTOS:
        return Drift("too few", **about, median=medians[1], reference_median=medians[0])
    edges = bin_edges(known[0], min(_MOST_BINS, int(min(worth)) // _LEAST_EXPECTED))
    counts = [np.bincount(np.searchsorted(edges, mine, "right"), minlength=len(edges) + 1) for mine in known]
    used = (counts[0] + counts[1]) > 0
    psi = population_stability_index(counts[0][used], counts[1][used])
    freedom, scale = max(int(used.sum()) - 1, 1), 1 / worth[0] + 1 / worth[1]
    ks = float(scipy.stats.ks_2samp(known[0], known[1], method="asymp").statistic)
    p_values = (float(scipy.stats.chi2.sf(psi / scale, freedom)), float(scipy.stats.kstwo.sf(ks, max(1, round(1 / scale)))))
    p_value = min(1.0, 2 * min(p_values))
    return Drift(
        verdict=_verdict(psi - freedom * scale, p_value),
        **about,
        median=medians[1],
        reference_median=medians[0],
        psi=psi,
        psi_by_chance=freedom * scale,
        bins=int(used.sum()),
        ks=ks,
        p_value=p_value,
    )


def _verdict(excess: float, p_value: float) -> Verdict:
    """Of an index without what chance adds to it."""
    if p_value >= SIGNIFICANCE or excess < MODERATE_PSI:
        return "none"
    return "large" if excess >= LARGE_PSI else "moderate"


def share_interval(hits: float, total: float, confidence: float = 0.95) -> dict[str, float | None]:
    """A share with its interval, as JSON values; None of nothing.

    Args:
        hits: How many.
        total: Of how many; both in independent photos.
        confidence: Of the interval.

    Returns:
        value, low, high. Source: Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    if not total:
        return {"value": None, "low": None, "high": None}
    share, z = hits / total, float(scipy.special.ndtri((1 + confidence) / 2))
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    reach = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    # Exactly 0 and 1 at the ends, where rounding leaves a trace.
    low, high = (0.0 if not hits else max(0.0, middle - reach)), (1.0 if hits >= total else min(1.0, middle + reach))
    return {"value": share, "low": low, "high": high}


def compare_shares(reference: tuple[float, float], found: tuple[float, float]) -> ShareDrift:
    """Compares two shares.

    Args:
        reference: How many of how many there, in independent photos.
        found: And here.

    Returns:
        The verdict: whether the interval of the difference holds 0, and how large it is. Source: Newcombe 1998, method 10,
        doi:10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I.
    """
    shown = {"share": share_interval(*found), "reference": share_interval(*reference)}
    if min(reference[1], found[1]) < LEAST_PHOTOS:
        return ShareDrift("too few", **shown, difference={"value": None, "low": None, "high": None})
    wide = [share_interval(*each, confidence=1 - SIGNIFICANCE) for each in (reference, found)]
    (q, q_low, q_high), (p, p_low, p_high) = ([float(value or 0.0) for value in each.values()] for each in wide)
    low, high = p - q - math.hypot(p - p_low, q_high - q), p - q + math.hypot(p_high - p, q - q_low)
    change: Change = "none"
    if abs(p - q) >= LEAST_CHANGE * q:
        change = "higher" if low > 0 else "lower" if high < 0 else "none"
    return ShareDrift(change, **shown, difference={"value": p - q, "low": low, "high": high})
