"""From photos to lesions and patients: what a lesion scores, which lesion differs from a patient's others, who is found first."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.special

from skinray.counts import Measure, ScoreCounts
from skinray.intervals import Clusters, estimates

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
        lesion (a photo without a lesion_id stands for one), patient_id, photos, malignant, malignancy_score (the highest of its
        photos: who flags any of them flags it) and ugly_duckling: see `ugly_ducklings`.
    """
    known = rows["lesion_id"].where(rows["lesion_id"].notna() & (rows["lesion_id"] != ""), "photo " + rows["image_id"])
    grouped = rows.assign(lesion=known, malignant=rows["label"].isin(list(malignant))).groupby("lesion", sort=True)
    lesions = grouped.agg(
        patient_id=("patient_id", "first"),
        photos=("image_id", "size"),
        malignant=("malignant", "any"),
        malignancy_score=("malignancy_score", "max"),
    ).reset_index()
    lesions["ugly_duckling"] = ugly_ducklings(lesions["patient_id"], lesions["malignancy_score"].to_numpy(np.float64))
    return lesions


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
    known = patients.notna().to_numpy() & (patients != "").to_numpy(bool)
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


def measure_lesions(lesions: pd.DataFrame, rounds: int = 1000) -> dict[str, Any]:
    """Figures by lesion and by patient, as JSON values; patients are drawn for the intervals, as far as they are known.

    Args:
        lesions: From `lesion_table`.
        rounds: How often to draw.
    """
    clusters = lesions["patient_id"].where(lesions["patient_id"].notna() & (lesions["patient_id"] != ""), lesions["lesion"])
    positive = lesions["malignant"].to_numpy(bool)
    found: dict[str, Any] = {"lesions": len(lesions), "malignant_lesions": int(positive.sum())}
    measures = [Measure("", ScoreCounts(positive, lesions["malignancy_score"].to_numpy(np.float64)))]
    estimate = estimates(measures, Clusters(clusters.to_numpy(str)), rounds)["roc_auc"]
    found["roc_auc"] = {name: None if np.isnan(value) else float(value) for name, value in estimate.__dict__.items()}
    found["patients"] = _by_patient(lesions)
    return found


def _by_patient(lesions: pd.DataFrame) -> dict[str, Any] | None:
    """Of patients with a malignant lesion: how many of these stand among the first few; None when no patient is known."""
    known = lesions[lesions["patient_id"].notna() & (lesions["patient_id"] != "")]
    if known.empty:
        return None
    rank = known.groupby("patient_id")["malignancy_score"].rank(ascending=False, method="first")
    malignant = known["malignant"].to_numpy(bool)
    others = known.groupby("patient_id")["malignancy_score"].transform("size").to_numpy()
    return {
        "patients": int(known["patient_id"].nunique()),
        "with_malignant": int(known.loc[malignant, "patient_id"].nunique()),
        # A patient with no more lesions than that would always be found.
        "top_sensitivity": {
            str(top): float((rank[malignant & (others > top)] <= top).mean()) if (malignant & (others > top)).any() else None
            for top in TOP
        },
        "ugly_ducklings_known": int(known["ugly_duckling"].notna().sum()),
    }
