"""From photos to lesions and patients: what a lesion scores, which lesion differs from a patient's others, who is found first."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.special
import scipy.stats

from skinray.bundle import OperatingPoint, OperatingPoints
from skinray.counts import Measure, ScoreCounts, ThresholdCounts
from skinray.intervals import Clusters, estimates
from skinray.splits import lesion_names

# A patient needs so many other lesions before one of them can be an ugly duckling.
LEAST_OTHERS = 2
# A patient whose lesions score alike has no spread to measure by; so much is always assumed, in logits.
_LEAST_SPREAD = 0.25
TOP = (1, 3, 5)


def lesion_table(rows: pd.DataFrame, malignant: tuple[str, ...]) -> pd.DataFrame:
    """One row a lesion.

    Args:
        rows: One row a photo: image_id, label, malignancy_score, lesion_id and patient_id (missing where unknown).
        malignant: Labels that are.

    Returns:
        lesion (see `lesions_of`), patient_id, photos, malignant, malignancy_score (the highest of its photos: who flags any of
        them flags it), lowest_score and ugly_duckling: see `ugly_ducklings`.
    """
    grouped = rows.assign(lesion=lesions_of(rows), malignant=rows["label"].isin(list(malignant))).groupby("lesion", sort=True)
    lesions = grouped.agg(
        patient_id=("patient_id", "first"),
        photos=("image_id", "size"),
        malignant=("malignant", "any"),
        malignancy_score=("malignancy_score", "max"),
        lowest_score=("malignancy_score", "min"),
    ).reset_index()
    lesions["ugly_duckling"] = ugly_ducklings(lesions["patient_id"], lesions["malignancy_score"].to_numpy(np.float64))
    return lesions


def lesions_of(rows: pd.DataFrame) -> "pd.Series[str]":
    """The lesion of each photo, by a name that is its alone: see `skinray.splits.lesion_names`.

    Args:
        rows: One row a photo: image_id, lesion_id and patient_id (missing where unknown). A photo without a lesion_id stands for
            a lesion.
    """
    lesions, patients = (
        [str(value) if known else None for value, known in zip(rows[name], _known(rows[name]), strict=True)]
        for name in ("lesion_id", "patient_id")
    )
    named = pd.Series(lesion_names(lesions, patients), rows.index, object)
    return named.where(named.notna(), "photo " + rows["image_id"])


def ugly_ducklings(patients: "pd.Series[Any]", scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """How far each lesion lies above the same patient's others, in their spread; NaN where there are too few others.

    Args:
        patients: [N], the patient of each lesion; missing where unknown.
        scores: float64 [N], 0 to 1.

    Returns:
        float64 [N]: the lesion's logit minus the median of the others', divided by the median of their absolute deviations
        (scaled to a standard deviation). Source: Grob and Bonerandi 1998, doi:10.1001/archderm.134.1.103 (the sign);
        Iglewicz and Hoaglin 1993 (the robust score).
    """
    logits = scipy.special.logit(np.clip(scores, 1e-6, 1 - 1e-6))
    found = np.full(len(scores), np.nan)
    known = _known(patients).to_numpy(bool)
    for places in pd.Series(np.flatnonzero(known)).groupby(patients[known].to_numpy(str)).groups.values():
        mine = np.flatnonzero(known)[places.to_numpy()]
        if len(mine) <= LEAST_OTHERS:
            continue
        for place in mine:
            others = logits[mine[mine != place]]
            middle = np.median(others)
            spread = max(_LEAST_SPREAD, 1.4826 * float(np.median(np.abs(others - middle))))
            found[place] = (logits[place] - middle) / spread
    return found


def measure_lesions(lesions: pd.DataFrame, points: OperatingPoints, rounds: int = 1000) -> dict[str, Any]:
    """Figures by lesion and by patient, as JSON values; patients are drawn for the intervals, as far as they are known.

    Args:
        lesions: From `lesion_table`.
        points: Thresholds; a malignant lesion is missed at one when any of its photos lies below, as where it was chosen.
        rounds: How often to draw.
    """
    clusters = lesions["patient_id"].where(_known(lesions["patient_id"]), lesions["lesion"])
    positive = lesions["malignant"].to_numpy(bool)
    measures = [Measure("", ScoreCounts(positive, lesions["malignancy_score"].to_numpy(np.float64)))]
    return {
        "lesions": len(lesions),
        "malignant_lesions": int(positive.sum()),
        "roc_auc": estimates(measures, Clusters(clusters.to_numpy(str)), rounds)["roc_auc"].recorded(),
        "missed": {name: _missed(lesions.loc[positive, "lowest_score"], point) for name, point in points.points.items()},
        "patients": _by_patient(lesions[_known(lesions["patient_id"])].reset_index(drop=True), rounds),
    }


def broken_promises(found: Mapping[str, Any]) -> list[str]:
    """What an operating point promised and chance does not explain to have failed, in words.

    Args:
        found: From `measure_lesions`.
    """
    return [
        f"{name} promises to miss at most {at['promised']:.0%} of malignant lesions and misses {at['missed']} of "
        f"{found['malignant_lesions']:,} ({at['miss_rate']['low']:.1%} to {at['miss_rate']['high']:.1%}): "
        "these lesions are not like those it was chosen on"
        for name, at in found["missed"].items()
        if at["promised"] is not None and at["miss_rate"]["low"] > at["promised"]
    ]


def _known(ids: "pd.Series[Any]") -> "pd.Series[Any]":
    return ids.notna() & (ids != "")


def _missed(lowest: "pd.Series[Any]", point: OperatingPoint) -> dict[str, Any]:
    """How many malignant lesions lie below a point; the interval takes lesions for independent (Clopper and Pearson 1934)."""
    missed = int((lowest < point.threshold).sum())
    interval = scipy.stats.binomtest(missed, len(lowest)).proportion_ci()
    return {
        "missed": missed,
        "miss_rate": {"value": missed / len(lowest), "low": float(interval.low), "high": float(interval.high)},
        "promised": point.miss_rate_bound,
    }


def _by_patient(lesions: pd.DataFrame, rounds: int) -> dict[str, Any] | None:
    """Of lesions whose patient is known; None when there are none."""
    if lesions.empty:
        return None
    scores, malignant = lesions["malignancy_score"].to_numpy(np.float64), lesions["malignant"].to_numpy(bool)
    by_patient = lesions.groupby("patient_id", sort=True)
    rank = by_patient["malignancy_score"].rank(ascending=False, method="first").to_numpy()
    others = by_patient["malignancy_score"].transform("size").to_numpy() - 1
    # A patient with no more lesions than that would always be found.
    enough = {top: np.flatnonzero(others >= top) for top in TOP}
    compared = np.flatnonzero(lesions["ugly_duckling"].notna())
    measures = [Measure(f"top {top}", ThresholdCounts(malignant[rows], rank[rows] <= top), rows) for top, rows in enough.items()]
    if len(compared):
        ducklings = lesions["ugly_duckling"].to_numpy(np.float64)
        measures += [
            Measure("ugly duckling", ScoreCounts(malignant[compared], ducklings[compared]), compared),
            Measure("score", ScoreCounts(malignant[compared], scores[compared]), compared),
        ]
    found = estimates(measures, Clusters(lesions["patient_id"].to_numpy(str)), rounds)
    patients = by_patient.agg(malignant=("malignant", "any"), score=("malignancy_score", "max")).reset_index()
    ranked = [Measure("", ScoreCounts(patients["malignant"].to_numpy(bool), patients["score"].to_numpy(np.float64)))]
    return {
        "patients": len(patients),
        "with_malignant": int(patients["malignant"].sum()),
        "roc_auc": estimates(ranked, Clusters(patients["patient_id"].to_numpy(str)), rounds)["roc_auc"].recorded(),
        "top_sensitivity": {
            str(top): {"malignant_lesions": int(malignant[rows].sum()), **found[f"top {top}.recall"].recorded()}
            for top, rows in enough.items()
        },
        "ugly_duckling": {
            "lesions": len(compared),
            "malignant_lesions": int(malignant[compared].sum()),
            "roc_auc": found["ugly duckling.roc_auc"].recorded(),
            "roc_auc_of_score": found["score.roc_auc"].recorded(),
        }
        if len(compared)
        else None,
    }
