"""The comparison job: two evaluations of the same photos -> what the second model does otherwise.

<output>/comparison.json   differences with intervals, tests, counts
<output>/changes.parquet   the photos that one model flags and the other does not
<output>/_manifest.json    written last
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from skinray import outputs, storage
from skinray.audit import leaks_in_words
from skinray.comparison import compare_scores
from skinray.config import CompareSettings
from skinray.errors import DatasetError
from skinray.evaluation import JUDGED_NAME, METRICS_NAME
from skinray.intervals import Clusters
from skinray.measurement import clusters_of
from skinray.reports import NOT_A_DEVICE

RESULTS_NAME = "comparison.json"
# What metrics.json says of photos that stand on two sides.
_LEAKS = ("leaks", "leaks_in_training", "overlap_with_training")


@dataclass(frozen=True)
class Pair:
    """Two evaluations side by side.

    Attributes:
        model_ids: Of the first and the second bundle.
        points: The operating point of each.
        leaks: What each evaluation says of leaks, by the names that metrics.json has for it.
        rows: One row a photo: what judged.parquet has, with _first and _second behind what differs.
        malignant: bool [N].
    """

    model_ids: tuple[str, str]
    points: tuple[str, str]
    leaks: tuple[dict[str, Any], dict[str, Any]]
    rows: pd.DataFrame
    malignant: "np.ndarray[Any, np.dtype[np.bool_]]"


def read_pair(settings: CompareSettings) -> Pair:
    """Reads both evaluations and finds the photos of each in the other.

    Raises:
        DatasetError: They are not about the same photos, or not of the same truth.
        StorageError: One of them is not there.
    """
    uris = (settings.first, settings.second)
    metrics = [storage.read_json(storage.join(uri, METRICS_NAME)) for uri in uris]
    first, second = (storage.read_parquet(storage.join(uri, JUDGED_NAME)) for uri in uris)
    kept = ["image_id", "image_sha256", "label", "malignant", "malignancy_score", "flagged"]
    rows = first.merge(second[kept], on="image_id", suffixes=("_first", "_second"), validate="one_to_one")
    if not len(rows) == len(first) == len(second):
        raise DatasetError(
            f"{settings.first} judged {len(first):,} photos and {settings.second} {len(second):,}, {len(rows):,} of them both: "
            "evaluate both bundles on the same split"
        )
    if (rows["image_sha256_first"] != rows["image_sha256_second"]).any():
        raise DatasetError(f"{settings.first} and {settings.second} judged different photos under the same image_id")
    if (rows["malignant_first"] != rows["malignant_second"]).any():
        raise DatasetError(f"{settings.first} and {settings.second} do not agree on which photos are malignant")
    return Pair(
        model_ids=(metrics[0]["model_id"], metrics[1]["model_id"]),
        points=(metrics[0]["default_operating_point"], metrics[1]["default_operating_point"]),
        leaks=({name: metrics[0].get(name) for name in _LEAKS}, {name: metrics[1].get(name) for name in _LEAKS}),
        rows=rows,
        malignant=rows["malignant_first"].to_numpy(bool),
    )


def compare_evaluations(settings: CompareSettings) -> dict[str, Any]:
    """Compares two bundles on the photos that both were evaluated on.

    Returns:
        What comparison.json holds.

    Raises:
        DatasetError, StorageError: As `read_pair`.
        OutputExistsError: The output is already there.
    """
    pair = read_pair(settings)
    rows = pair.rows
    outputs.claim_folder(settings.output, "comparison", settings.recorded())
    by, ids = clusters_of(rows)
    scores = tuple(rows[f"malignancy_score_{which}"].to_numpy(np.float64) for which in ("first", "second"))
    flagged = tuple(rows[f"flagged_{which}"].to_numpy(bool) for which in ("first", "second"))
    found = compare_scores(pair.malignant, (scores[0], scores[1]), (flagged[0], flagged[1]), Clusters(ids))
    about = [
        {"evaluation": uri, "model_id": model_id, "operating_point": point, **leaks}
        for uri, model_id, point, leaks in zip(
            (settings.first, settings.second), pair.model_ids, pair.points, pair.leaks, strict=True
        )
    ]
    result = {
        "notice": NOT_A_DEVICE,
        "first": about[0],
        "second": about[1],
        "clusters_by": by,
        **found.recorded(),
    }
    changes = rows[flagged[0] != flagged[1]]
    named = ["image_id", "label_first", "malignancy_score_first", "malignancy_score_second", "flagged_first", "flagged_second"]
    storage.write_parquet(
        storage.join(settings.output, "changes.parquet"), changes[named].rename(columns={"label_first": "label"})
    )
    storage.write_json(storage.join(settings.output, RESULTS_NAME), result)
    manifest = {
        "kind": "skinray-comparison",
        "schema_version": 1,
        "model_ids": list(pair.model_ids),
        "settings": settings.recorded(),
    }
    outputs.publish_folder(storage.normalize(settings.output), manifest)
    return result


def comparison_in_words(result: dict[str, Any]) -> list[str]:
    """The comparison for a person."""
    test = result["delong"]
    lines = [f"{result['second']['model_id']} against {result['first']['model_id']} on {result['photos']:,} photos"]
    for name, figure in result["differences"].items():
        sure = "" if figure["low"] <= 0 <= figure["high"] else "  beyond chance"
        lines.append(f"{name:<12} {figure['value']:+.4f}  ({figure['low']:+.4f} to {figure['high']:+.4f}){sure}")
    return [
        *lines,
        f"DeLong       {test['difference']:+.4f}  ({test['low']:+.4f} to {test['high']:+.4f}), p = {test['p_value']:.3g}",
        f"malignant    {result['newly_found']:,} newly found, {result['newly_missed']:,} newly missed, "
        f"McNemar p = {result['malignant_p_value']:.3g}",
        f"benign       {result['newly_flagged']:,} newly flagged, {result['newly_passed']:,} newly passed, "
        f"McNemar p = {result['benign_p_value']:.3g}",
        *_leaks_in_words(result),
    ]


def _leaks_in_words(result: dict[str, Any]) -> list[str]:
    """Why the figures of one or the other are too high, or may be."""
    lines = []
    for which in (result["first"], result["second"]):
        told = [f"the data set leaks: {words}" for words in leaks_in_words(which["leaks"] or {})]
        told += [f"what it was trained on leaks: {words}" for words in leaks_in_words(which["leaks_in_training"] or {})]
        told += [f"trained on, or chosen on: {count:,} {what}" for what, count in (which["overlap_with_training"] or {}).items()]
        lines += [f"LEAK         {which['model_id']}: {words}; its figures are too high" for words in told]
        if which["overlap_with_training"] is None:
            lines.append(f"LEAK?        {which['model_id']}: whether it was trained on these photos could not be looked for")
    return lines
