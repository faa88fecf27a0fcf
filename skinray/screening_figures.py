"""A run's rows -> the figures of its report: by group, by patient, against a reference. Columns that are missing tell nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from skinray.clinical import site_group
from skinray.drift import Drift, compare_shares, effective_number, measure_drift, share_interval
from skinray.groups import UNKNOWN, age_bands
from skinray.patients import lesion_table, lesions_of
from skinray.skin_tone import TONES, tones

# What a photo may be judged as beside its score, as columns of flags; the words are those of the page.
QUALITY: Mapping[str, str] = {
    "blurred": "blurred",
    "underexposed": "underexposed",
    "overexposed": "overexposed",
    "small": "small",
    "vignetted": "dark corners",
    "marked": "ink or plastic",
}
# Numbers about each photo whose distribution is compared with that of the reference.
MEASURES: Mapping[str, str] = {
    "ita_degrees": "skin tone, estimated (ITA, degrees)",
    "width_px": "width (pixels)",
    "height_px": "height (pixels)",
    "age": "age (years)",
    "sharpness": "sharpness",
    "brightness": "brightness",
    "contrast": "contrast",
}
COLUMNS = tuple(dict.fromkeys(("malignancy_score", "flagged", *MEASURES, *QUALITY)))
REPEATED = ("status", "error_code", "sex", "site", "patient_id", "lesion_id")

# Patients of the page.
MOST_PATIENTS = 20
# Comparing each of so many lesions with the others of its patient would take minutes; more are no one patient.
_MOST_LESIONS = 1000
# Values of sex that a page has room for.
_MOST_NAMES = 6
_TONES = tuple(name for _, name in TONES)
_AGES = tuple(age_bands(np.array([0.0, 30.0, 45.0, 60.0, 75.0])).tolist())


@dataclass(frozen=True)
class Reference:
    """What a run is compared with.

    Attributes:
        uri: Where it lies.
        words: What it is.
        rows: As of a run; without those that have no score where `listed` does not count them either.
        listed: Photos.
        without_score: Of them.
    """

    uri: str
    words: str
    rows: pd.DataFrame
    listed: int
    without_score: int


def has(rows: pd.DataFrame, name: str) -> bool:
    """True where a column is there and says something of a photo."""
    return name in rows and bool(rows[name].notna().any())


def flags_of(rows: pd.DataFrame, name: str) -> npt.NDArray[np.bool_]:
    """A column of flags, bool [N]; what is missing is false."""
    return rows[name].astype("boolean").to_numpy(bool, na_value=False)


def scores_of(rows: pd.DataFrame) -> npt.NDArray[np.float32]:
    """The scores, float32 [N], NaN for a photo without."""
    scores: npt.NDArray[np.float32] = rows["malignancy_score"].to_numpy(np.float32, na_value=np.nan)
    return scores


def group_sheet(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """The scored photos of every group that the columns tell apart, as JSON values.

    Args:
        rows: COLUMNS and REPEATED of a run, as far as they are there.

    Returns:
        attribute, name, photos, flagged, share (value, low, high; see `share_interval`) and median_score of each.
    """
    scored = rows[rows["status"].eq("scored").to_numpy(bool)]
    flagged, scores = flags_of(scored, "flagged"), scores_of(scored)
    sheet = []
    for attribute, names, codes in _attributes(scored):
        by_group = pd.DataFrame({"group": codes, "flagged": flagged, "score": scores}).groupby("group")
        found = by_group.agg(photos=("flagged", "size"), flagged=("flagged", "sum"), median_score=("score", "median"))
        for code, (photos, hits, median) in zip(found.index, found.to_numpy(), strict=True):
            about = {"attribute": attribute, "name": names[code], "photos": int(photos), "flagged": int(hits)}
            sheet.append(about | {"share": share_interval(int(hits), int(photos)), "median_score": float(median)})
    return sheet


def _attributes(rows: pd.DataFrame) -> list[tuple[str, Sequence[str], npt.NDArray[np.integer[Any]]]]:
    """What photos are grouped by: the attribute, the names of its groups in order, the group of each photo."""
    found: list[tuple[str, Sequence[str], npt.NDArray[np.integer[Any]]]] = []
    if has(rows, "age"):
        found.append(("age", *_coded(age_bands(rows["age"].to_numpy(np.float64, na_value=np.nan)), _AGES)))
    if has(rows, "sex"):
        found.append(("sex", *_renamed(rows["sex"], lambda name: name)))
    if has(rows, "site"):
        found.append(("site", *_renamed(rows["site"], site_group)))
    if has(rows, "ita_degrees"):
        found.append(("estimated skin tone", *_coded(tones(rows["ita_degrees"].to_numpy(np.float64, na_value=np.nan)), _TONES)))
    for name, words in QUALITY.items():
        if has(rows, name):
            found.append(("quality", [f"not {words}", words], flags_of(rows, name).astype(np.int8)))
    return found


def _coded(names: npt.NDArray[np.str_], order: Sequence[str]) -> tuple[Sequence[str], npt.NDArray[np.integer[Any]]]:
    every = [*order, UNKNOWN]
    return every, pd.Categorical(names, categories=every).codes


def _renamed(column: "pd.Series[Any]", rename: Any) -> tuple[Sequence[str], npt.NDArray[np.integer[Any]]]:
    """Groups of a categorical column, the frequent first; few names, whatever the column holds."""
    values = column.astype("category").cat
    counts = np.bincount(values.codes + 1, minlength=len(values.categories) + 1)[1:]
    by_name: dict[str, int] = {}
    renamed = [(rename(str(value)) if value else None) or UNKNOWN for value in values.categories]
    for name, count in zip(renamed, counts.tolist(), strict=True):
        by_name[name] = by_name.get(name, 0) + count
    frequent = sorted((name for name in by_name if name != UNKNOWN), key=lambda name: (-by_name[name], name))
    kept = frequent if len(frequent) <= _MOST_NAMES else [*frequent[:_MOST_NAMES], "others"]
    place = {name: number for number, name in enumerate(kept)} | {UNKNOWN: len(kept)}
    codes = np.array([*(place.get(name, len(kept) - 1) for name in renamed), len(kept)])
    return [*kept, UNKNOWN], codes[values.codes]  # -1, which is missing, is the last


def patients_of(rows: pd.DataFrame) -> tuple[dict[str, Any], npt.NDArray[np.int64]] | None:
    """The patients, highest score first, as JSON values, and the rows of those that are listed; None where none is known.

    Args:
        rows: As `group_sheet` takes them.

    Returns:
        patients (how many), photos_without (photos of nobody known), and of the first MOST_PATIENTS: patient_id, photos,
        lesions, flagged, highest_score (None without any).
    """
    if not has(rows, "patient_id"):
        return None
    ids = rows["patient_id"].astype("category").cat
    known = ids.codes.to_numpy() >= 0
    if "" in ids.categories:
        known &= ids.codes.to_numpy() != ids.categories.get_loc("")
    places = np.flatnonzero(known)
    if not len(places):
        return None
    frame = pd.DataFrame(
        {"patient": ids.codes.to_numpy()[places], "score": scores_of(rows)[places], "flagged": flags_of(rows, "flagged")[places]}
    )
    lesions = _lesions(rows)[places]
    frame["lesion"] = np.where(lesions >= 0, lesions, -1 - places)  # a photo without one stands for a lesion of its own
    by_patient = frame.groupby("patient")
    table = by_patient.agg(photos=("score", "size"), flagged=("flagged", "sum"), score=("score", "max"))
    table["lesions"] = frame.drop_duplicates(["patient", "lesion"]).groupby("patient").size()
    table["patient_id"] = ids.categories[table.index].astype(str)
    first = table.sort_values(["score", "patient_id"], ascending=[False, True], na_position="last").head(MOST_PATIENTS)
    listed = [
        {
            "patient_id": row["patient_id"],
            **{name: int(row[name]) for name in ("photos", "lesions", "flagged")},
            "highest_score": None if np.isnan(row["score"]) else float(row["score"]),
        }
        for row in first.to_dict("records")
    ]
    small = first.index[first["lesions"] <= _MOST_LESIONS]
    summary = {"patients": len(table), "photos_without": len(rows) - len(places), "listed": listed}
    return summary, places[frame["patient"].isin(small).to_numpy()]


def _lesions(rows: pd.DataFrame) -> npt.NDArray[np.int64]:
    """The lesion of each row as a number, -1 where unknown; told apart as `skinray.splits.lesion_names` does."""
    lesions, patients = _numbered(rows, "lesion_id"), _numbered(rows, "patient_id")
    places = np.flatnonzero((lesions >= 0) & (patients >= 0))
    lesion, patient = lesions[places], patients[places]
    names = int(lesions.max(initial=-1)) + 1
    # Names that some photo has of another patient than the last one do not say which lesion it is.
    last, many = np.full(names, -1), np.zeros(names, bool)
    last[lesion] = patient
    many[lesion[patient != last[lesion]]] = True
    pairs = lesion * (int(patients.max(initial=-1)) + 1) + patient
    lesions[places] = np.where(many[lesion], names + np.unique(pairs, return_inverse=True)[1], lesion)
    return lesions


def _numbered(rows: pd.DataFrame, name: str) -> npt.NDArray[np.int64]:
    """A column of names as numbers, int64 [N], -1 where unknown."""
    if name not in rows:
        return np.full(len(rows), -1)
    ids = rows[name].astype("category").cat
    codes = ids.codes.to_numpy().astype(np.int64)
    if "" in ids.categories:
        codes[codes == ids.categories.get_loc("")] = -1
    return codes


def odd_lesions(photos: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The lesion of each patient that lies furthest above the patient's others.

    Args:
        photos: image_id, image_uri, patient_id, lesion_id and malignancy_score of all photos of some patients.

    Returns:
        patient_id -> lesion (its name), spreads (see `skinray.patients.ugly_ducklings`), score, and image_id and image_uri of
        its highest photo. Patients with too few lesions, or whose lesions all lie alike or lower, are missing.
    """
    scored = photos[photos["malignancy_score"].notna()].assign(label="")
    if scored.empty:
        return {}
    lesions = lesion_table(scored, ())
    above = lesions[lesions["ugly_duckling"] > 0]
    furthest = above.sort_values(["ugly_duckling", "lesion"], ascending=[False, True]).drop_duplicates("patient_id")
    best = scored.assign(lesion=lesions_of(scored)).sort_values(["malignancy_score", "image_id"], ascending=[False, True])
    best = best.drop_duplicates(["patient_id", "lesion"])
    merged = furthest[["patient_id", "lesion", "ugly_duckling"]].merge(best, on=["patient_id", "lesion"])
    return {
        row["patient_id"]: {
            **{name: row[name] for name in ("lesion", "image_id", "image_uri")},
            "spreads": float(row["ugly_duckling"]),
            "score": float(row["malignancy_score"]),
        }
        for row in merged.to_dict("records")
    }


def drift_figures(rows: pd.DataFrame, reference: Reference, threshold: float) -> dict[str, Any]:
    """How far a run is from its reference, as JSON values.

    Args:
        rows: As `group_sheet` takes them.
        reference: What to compare with.
        threshold: At or above which a score is flagged; taken for the reference too.

    Returns:
        score: see `skinray.drift.Drift`; measures: likewise, of every column of MEASURES that both have; flagged and
        without_score: see `skinray.drift.ShareDrift`.
    """
    before, now = scores_of(reference.rows), scores_of(rows)
    clusters = [_clusters(reference.rows), _clusters(rows)]
    worth = tuple(effective_number(each[~np.isnan(scores)]) for each, scores in zip(clusters, (before, now), strict=True))
    above = [int((scores >= np.float32(threshold)).sum()) for scores in (before, now)]
    scored = [int((~np.isnan(scores)).sum()) for scores in (before, now)]
    measures: dict[str, Drift] = {}
    for name in MEASURES:
        if has(rows, name) and has(reference.rows, name):
            values = [each[name].to_numpy(np.float64, na_value=np.nan) for each in (reference.rows, rows)]
            sizes = [effective_number(each[~np.isnan(value)]) for each, value in zip(clusters, values, strict=True)]
            known = [value[~np.isnan(value)] for value in values]
            measures[name] = measure_drift(known[0], known[1], *sizes)
    return {
        "score": measure_drift(before[~np.isnan(before)], now[~np.isnan(now)], *worth).recorded(),
        "measures": {name: drift.recorded() for name, drift in measures.items()},
        "flagged": compare_shares(
            *(_scaled(hits, total, size) for hits, total, size in zip(above, scored, worth, strict=True))
        ).recorded(),
        "without_score": compare_shares(
            _scaled(reference.without_score, reference.listed, reference.listed * worth[0] / max(scored[0], 1)),
            _scaled(len(rows) - scored[1], len(rows), effective_number(clusters[1])),
        ).recorded(),
    }


def _scaled(hits: int, total: int, size: float) -> tuple[float, float]:
    """How many of how many, of photos that are worth `size` independent ones."""
    return (hits * size / total, size) if total else (0.0, 0.0)


def _clusters(rows: pd.DataFrame) -> npt.NDArray[np.int64]:
    """What a photo is of, int64 [N], -1 where unknown: photos of a lesion, or of a patient without lesions, tell the same."""
    lesions, patients = _lesions(rows), _numbered(rows, "patient_id")
    return np.where((lesions < 0) & (patients >= 0), patients + lesions.max(initial=-1) + 1, lesions)
