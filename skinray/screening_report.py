"""The report of a scoring run: what the archive's owner reads in the morning. Needs no Ray.

<output>/report.html        the page, in one file
<output>/report.json        every figure of it
<output>/worklist.csv       the flagged photos, the highest score first
<output>/without_score.csv  the photos that were refused, or failed, and why
<output>/_manifest.json     written last
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.dataset

import skinray
from skinray import outputs, storage
from skinray.config import ReportSettings
from skinray.drift import share_interval
from skinray.published_runs import PublishedRun, RunRows, find_runs, open_run
from skinray.reports import NOT_A_DEVICE, distribution_plot
from skinray.screening_figures import (
    COLUMNS,
    MEASURES,
    QUALITY,
    REPEATED,
    Reference,
    drift_figures,
    group_sheet,
    odd_lesions,
    patients_of,
    scores_of,
)
from skinray.screening_page import screening_page
from skinray.thumbnails import thumbnails

PAGE_NAME = "report.html"
FIGURES_NAME = "report.json"
WORKLIST_NAME = "worklist.csv"
WITHOUT_SCORE_NAME = "without_score.csv"
_JUDGED_NAME = "judged.parquet"
# Rows of the page's worklist; all of them are in worklist.csv.
_MOST_LISTED = 200
# Of each error code; all of them are in without_score.csv.
_MOST_BAD = 6
# What a spreadsheet would take for a formula. Source: OWASP, CSV injection.
_FORMULA = r"\A([=+\-@\t\r\n])"
_BAD = ("image_id", "image_uri", "status", "error_code", "error_detail")
_PHOTO = ("image_id", "image_uri", "patient_id", "lesion_id", "malignancy_score")


@dataclass(frozen=True)
class _Found:
    """The figures, and the photos that the page shows: image_id -> URI."""

    report: dict[str, Any]
    shown: dict[str, str]


def make_report(settings: ReportSettings) -> dict[str, Any]:
    """Makes the report of a published run.

    Args:
        settings: Which run, and where to.

    Returns:
        What report.json holds.

    Raises:
        OutputExistsError: The output is already there.
        StorageError: The run or the reference is not there, or cannot be read.
    """
    run = open_run(settings.predictions)
    reference, why_none = find_reference(run, settings.reference)
    output = storage.normalize(settings.output)
    outputs.claim_folder(output, "screening report", settings.recorded())
    rows = run.rows()
    light = rows.read(COLUMNS, REPEATED)
    worklist = _worklist(rows)
    _write_csv(worklist, storage.join(output, WORKLIST_NAME))
    _write_csv(rows.where(pyarrow.dataset.field("status") != "scored", _BAD), storage.join(output, WITHOUT_SCORE_NAME))
    found = _figures(run, rows, light, worklist, settings.thumbnails)
    threshold = float(run.manifest["threshold"])
    found.report["drift"] = {
        "reference": reference and {"uri": reference.uri, "words": reference.words, "photos": reference.listed},
        "why_none": why_none,
        **(drift_figures(light, reference, threshold) if reference else {}),
    }
    before = scores_of(reference.rows) if reference else None
    plot = distribution_plot(scores_of(light), before, threshold, f"model {run.model_id}, run {run.run_id}")
    pictures = dict(zip(found.shown, thumbnails(list(found.shown.values())), strict=True))
    page = screening_page(found.report, plot, pictures, storage.join(output, WORKLIST_NAME), settings.thumbnails)
    storage.write_json(storage.join(output, FIGURES_NAME), found.report)
    storage.write_bytes(storage.join(output, PAGE_NAME), page.encode())
    manifest = {"kind": "skinray-screening-report", "schema_version": 1, "predictions": run.uri, "model_id": run.model_id}
    outputs.publish_folder(output, {**manifest, "settings": settings.recorded()})
    return found.report


def drift_verdict(report: dict[str, Any]) -> str:
    """Of the scores: none, moderate, large, too few, or no reference."""
    return str(report["drift"]["score"]["verdict"]) if report["drift"]["reference"] else "no reference"


def find_reference(run: PublishedRun, uri: str | None) -> tuple[Reference | None, str]:
    """What a run is compared with, or why with nothing.

    Args:
        run: The run.
        uri: A published run, a root of runs (its newest), or a folder that evaluate wrote; None: the first published run of the
            same model below the root that the run lies below.

    Raises:
        StorageError: It is not there.
    """
    if uri and _is_evaluation(uri):
        return _evaluated(run, uri)
    if not uri:
        if run.root is None:
            return None, "the run lies below no root of runs, so its model's first run is not known"
        other = next(each for each in find_runs(run.root) if each.model_id == run.model_id)
        if other.uri == run.uri:
            return None, "this is the first published run of this model; later ones are compared with it"
    else:
        other = open_run(uri)
    if other.uri == run.uri:
        return None, f"{uri} is this run itself"
    if other.model_id != run.model_id:
        return None, f"{uri} is of model {other.model_id}, whose scores mean something else"
    words = f"{'run' if uri else 'the first run of this model,'} {other.run_id}, {other.started_at.date().isoformat()}"
    listed = int(other.manifest["rows"])
    return Reference(other.uri, words, _compared(other.rows()), listed, listed - _count(other.manifest, "scored")), ""


def check_reference(uri: str) -> None:
    """Raises a StorageError when nothing that a run can be compared with is there."""
    if not _is_evaluation(uri):
        open_run(uri)


def _is_evaluation(uri: str) -> bool:
    manifest_uri = storage.join(uri, storage.MANIFEST_NAME)
    manifest = storage.read_json(manifest_uri) if storage.exists(manifest_uri) else None
    return isinstance(manifest, dict) and manifest.get("kind") == "skinray-evaluation"


def _evaluated(run: PublishedRun, uri: str) -> tuple[Reference | None, str]:
    metrics = storage.read_json(storage.join(uri, "metrics.json"))
    if metrics["model_id"] != run.model_id:
        return None, f"{uri} is of model {metrics['model_id']}, whose scores mean something else"
    words = f"the evaluation on {metrics['split']}, whose share of malignant lesions may be another than an archive's"
    listed = sum(metrics["statuses"].values())
    rows = _compared(RunRows(uri, [_JUDGED_NAME]))
    return Reference(storage.normalize(uri), words, rows, listed, listed - metrics["statuses"].get("scored", 0)), ""


def _compared(rows: RunRows) -> pd.DataFrame:
    return rows.read(("malignancy_score", *MEASURES), ("patient_id", "lesion_id"))


def _count(manifest: Any, status: str) -> int:
    return int(manifest["statuses"].get(status, 0))


def _figures(run: PublishedRun, rows: RunRows, light: pd.DataFrame, worklist: pa.Table, pictures: int) -> _Found:
    manifest = run.manifest
    listed = worklist.slice(0, max(pictures, _MOST_LISTED)).to_pylist()
    shown = {row["image_id"]: row.pop("image_uri") for row in listed[:pictures]}
    for row in listed[pictures:]:
        del row["image_uri"]
    patients = _patients(rows, light, shown if pictures else None)
    bad = _without_score(rows, light, shown if pictures else None)
    scores = scores_of(light)
    known = scores[~np.isnan(scores)]
    counts = {status: _count(manifest, status) for status in ("scored", "refused", "failed")}
    report = {
        "notice": NOT_A_DEVICE,
        "version": skinray.__version__,
        "run": {
            "uri": run.uri,
            "run_id": run.run_id,
            **{name: manifest.get(name) for name in ("model_id", "operating_point", "threshold", "started_at", "seconds")},
            "leaks_in_training": manifest.get("leaks_in_training", {}),
            "settings": manifest.get("settings"),
        },
        "counts": {
            "listed": int(manifest["rows"]),
            **counts,
            "flagged": int(manifest["flagged"]),
            "resumed": int(manifest.get("resumed_rows", 0)),
            "skipped": int(manifest.get("skipped_rows", 0)),
        },
        "errors": dict(manifest["errors"]),
        "flagged_share": share_interval(int(manifest["flagged"]), counts["scored"]),
        "median_score": float(np.median(known)) if len(known) else None,
        "worklist": {"photos": len(worklist), "listed": listed},
        "patients": patients,
        "without_score": bad,
        "groups": group_sheet(light),
    }
    return _Found(report, shown)


def _worklist(rows: RunRows) -> pa.Table:
    """The flagged photos, the highest score first: _PHOTO and the names of their quality flags."""
    quality = [name for name in QUALITY if name in rows.names]
    table = rows.where(pyarrow.dataset.field("flagged"), [*_PHOTO, *quality])
    raised = np.zeros(len(table), np.int64)  # one bit a flag
    for bit, name in enumerate(quality):
        raised |= table[name].fill_null(False).to_numpy().astype(np.int64) << bit
    every = ["; ".join(name for bit, name in enumerate(quality) if of >> bit & 1) for of in range(1 << len(quality))]
    names = pa.array(every).take(pa.array(raised))
    columns = {
        name: table[name].cast(pa.string() if name != "malignancy_score" else pa.float32())
        if name in table.column_names
        else pa.nulls(len(table), pa.string())
        for name in _PHOTO
    }
    order = [("malignancy_score", "descending"), ("image_id", "ascending")]
    return pa.table({**columns, "flags": names}).sort_by(order)


def _write_csv(photos: pa.Table, uri: str) -> None:
    """A table for a spreadsheet; a text that it would take for a formula gets an apostrophe before it."""
    columns = {
        field.name: pa.compute.replace_substring_regex(photos[field.name], pattern=_FORMULA, replacement=r"'\1")
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
        else photos[field.name]
        for field in photos.schema
    }
    with storage.writing(uri) as file:
        pyarrow.csv.write_csv(pa.table(columns), file)


def _patients(rows: RunRows, light: pd.DataFrame, shown: dict[str, str] | None) -> dict[str, Any] | None:
    found = patients_of(light)
    if found is None:
        return None
    summary, places = found
    odd = odd_lesions(rows.take(places, _PHOTO))
    for patient in summary["listed"]:
        lesion = odd.get(patient["patient_id"])
        patient["odd_lesion"] = lesion
        if lesion:
            uri = lesion.pop("image_uri")
            if shown is not None:
                shown.setdefault(lesion["image_id"], uri)
    return summary


def _without_score(rows: RunRows, light: pd.DataFrame, shown: dict[str, str] | None) -> list[dict[str, Any]]:
    """Refused and failed photos by status and code, the frequent first, and the first of each."""
    places = np.flatnonzero(light["status"].ne("scored").to_numpy(bool))
    if not len(places):
        return []
    frame = light.iloc[places][["status", "error_code"]].astype(object)
    frame = frame.where(frame.notna(), "unknown").rename(columns={"error_code": "code"}).assign(place=places)
    by_code = frame.groupby(["status", "code"], sort=True)
    first = frame[(by_code.cumcount() < _MOST_BAD).to_numpy()]
    photos = rows.take(first["place"].to_numpy(), ("image_id", "image_uri", "error_detail")).astype(object)
    photos = photos.where(photos.notna(), "").assign(status=first["status"].to_numpy(), code=first["code"].to_numpy())
    if shown is not None:
        refused = photos[photos["status"] == "refused"]
        for image_id, uri in zip(refused["image_id"], refused["image_uri"], strict=True):
            shown.setdefault(image_id, uri)
    listed: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for row in photos.to_dict("records"):
        listed[row["status"], row["code"]].append({"image_id": row["image_id"], "detail": row["error_detail"]})
    counts = by_code.size()
    groups = [
        {"status": status, "code": code, "photos": int(counts[status, code]), "listed": rows_of}
        for (status, code), rows_of in listed.items()
    ]
    return sorted(groups, key=lambda group: (group["status"] != "refused", -group["photos"], group["code"]))
