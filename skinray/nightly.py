"""The night: scores what is new, reports on it, and puts the newest report where a bookmark and a monitor find it.

<output>/model_id=.../scored_date=.../run_id=.../   the run, as skinray.scoring writes it
<output>/reports/RUN_ID/                            its report, as skinray.screening_report writes it
<output>/latest.html                                the newest report's page
<output>/latest.json                                where the last night stands; written last
<output>/reports/_untold.json                       the runs that it is to tell of, while their reports are made

A night that was cut off before latest.json gets its report in the next one, of whatever model, and passes its limits then,
because nobody has seen what it flagged. So does a run that `skinray score` made after a run that has a report.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from skinray import file_listing, storage
from skinray.bundle import load_bundle
from skinray.claims import claimed
from skinray.config import NightlySettings, ReportSettings, ScoreSettings
from skinray.published_runs import PublishedRun, find_runs, open_run
from skinray.scoring import score_archive
from skinray.scoring_pipeline import RunSummary
from skinray.screening_report import FIGURES_NAME, PAGE_NAME, check_reference, drift_verdict, make_report
from skinray.telemetry import say

REPORTS_NAME = "reports"
LATEST_PAGE_NAME = "latest.html"
LATEST_NAME = "latest.json"
UNTOLD_NAME = "_untold.json"
# The verb in the manifest of a run that a night published.
_VERB = "nightly"
_READ_AT_ONCE = 16


@dataclass(frozen=True)
class Night:
    """What became of a night.

    Attributes:
        latest: What latest.json holds.
        limits_passed: What passed a stated limit, in words.
    """

    latest: dict[str, Any]
    limits_passed: list[str]

    def in_words(self) -> str:
        """For a person."""
        new = self.latest["new"]
        if not new:
            return f"nothing new: {self.latest['skipped']:,} photos need no score"
        without = new - self.latest["statuses"].get("scored", 0)
        drift = self.latest["drift"]
        return f"{new:,} new photos: {self.latest['flagged']:,} flagged, {without:,} without a score, drift: {drift}"


def run_night(settings: NightlySettings, now: datetime.datetime) -> Night:
    """Scores, reports, publishes.

    Args:
        settings: Of all three.
        now: The time of the start, with its time zone.

    Returns:
        What became of it.

    Raises:
        BundleError: The bundle does not verify.
        OutputExistsError: The same night, or the reports of another one, are being made.
        StorageError: The input cannot be listed, the reference is not there, or the output not written.
        ScoringError: The rows written are not the photos listed; nothing is published.
    """
    if settings.reference:
        check_reference(settings.reference)  # before hours of scoring
    # Without the report's settings, so that this goes on with a cut-off `skinray score` of the same photos, and it with this.
    scoring = ScoreSettings.model_validate(settings.model_dump(include=set(ScoreSettings.model_fields)))
    summary = score_archive(scoring, now, _VERB)
    model_id = open_run(summary.uri).model_id if summary.uri else load_bundle(settings.bundle).model_id
    with claimed(settings.output, {"kind": "reports"}):
        return _reported_night(settings, now, summary, model_id)


def _reported_night(settings: NightlySettings, now: datetime.datetime, summary: RunSummary, model_id: str) -> Night:
    """Reports on what was scored now, and tells of it and of what no night has told of yet."""
    runs = find_runs(settings.output) if storage.exists(settings.output) else []
    run = next((run for run in reversed(runs) if run.model_id == model_id), None)
    places = _places(settings)
    missing = _not_reported(runs, run, places)
    untold_uri = storage.join(settings.output, REPORTS_NAME, UNTOLD_NAME)
    untold = {_key(each.uri) for each in missing} | set(json.loads(storage.read_if_there(untold_uri) or "[]"))
    if missing:
        storage.write_json(untold_uri, sorted(untold))
    for each in missing:
        _report(each, places, settings)
    report = report_uri = None
    if run:
        report_uri = places[_key(run.uri)]
        report = _read_report(report_uri)
        page = storage.read_bytes(storage.join(report_uri, PAGE_NAME))
        storage.write_bytes(storage.join(settings.output, LATEST_PAGE_NAME), page)
    told = [each for each in runs if _key(each.uri) in untold & places.keys()]
    limits_passed = [
        reason for each in told for reason in _limits_passed(each, _read_report(places[_key(each.uri)]), run, settings)
    ]
    latest = {
        "kind": "skinray-night",
        "schema_version": 1,
        "started_at": now.isoformat(),
        "finished_at": datetime.datetime.now(datetime.UTC).isoformat(),
        "new": summary.rows,
        "skipped": summary.skipped_rows,
        "statuses": summary.statuses,
        "errors": summary.errors,
        "flagged": summary.flagged,
        "limits_passed": limits_passed,
        "run": run and run.uri,
        "model_id": run and run.model_id,
        "report": report_uri,
        "missed_reports": [places[_key(each.uri)] for each in told if each is not run],
        "drift": report and drift_verdict(report),
    }
    storage.write_json(storage.join(settings.output, LATEST_NAME), latest)
    if untold:
        storage.delete_file(untold_uri)
    return Night(latest, limits_passed)


def _key(run_uri: str) -> str:
    """What names a run below an output, wherever that lies."""
    return "/".join(run_uri.rsplit("/", 3)[1:])


def _places(settings: NightlySettings) -> dict[str, str]:
    """Which runs have a report -> where."""
    root = storage.join(settings.output, REPORTS_NAME)
    there = file_listing.list_files(root) if storage.exists(root) else ()
    uris = [storage.join(root, path) for path in there if path.endswith(f"/{storage.MANIFEST_NAME}")]
    with ThreadPoolExecutor(_READ_AT_ONCE, thread_name_prefix="reports") as threads:
        manifests = threads.map(storage.read_json, uris)
        return {_key(about["predictions"]): uri.rpartition("/")[0] for uri, about in zip(uris, manifests, strict=True)}


def _not_reported(runs: Sequence[PublishedRun], newest: PublishedRun | None, places: Mapping[str, str]) -> list[PublishedRun]:
    """The runs that are to have a report and have none: those of a night; of the same model as the newest, that one and those
    behind the last that has a report, unless none has one, as before the first night."""
    of_model = [run for run in runs if newest and run.model_id == newest.model_id]
    last = max((place for place, run in enumerate(of_model) if _key(run.uri) in places), default=len(of_model))
    wanted = {run.uri for run in [*of_model[last + 1 :], *of_model[-1:]]}
    wanted |= {run.uri for run in runs if run.manifest.get("verb") == _VERB}
    return [run for run in runs if run.uri in wanted and _key(run.uri) not in places]


def _read_report(uri: str) -> dict[str, Any]:
    """What report.json holds."""
    report: dict[str, Any] = storage.read_json(storage.join(uri, FIGURES_NAME))
    return report


def _report(run: PublishedRun, places: dict[str, str], settings: NightlySettings) -> None:
    """Makes a run's report and notes its place."""
    uri = storage.join(settings.output, REPORTS_NAME, run.run_id)
    if uri in places.values():
        # A run of the same name, of another model or day.
        uri = f"{uri}-{storage.sha256_of(_key(run.uri).encode())[:12]}"
    storage.delete_folder(uri)  # what a night that was cut off left of it
    say(f"nightly: reports on {run.uri}")
    about_report = {"reference": settings.reference, "thumbnails": settings.thumbnails, "fail_on_drift": settings.fail_on_drift}
    make_report(ReportSettings.model_validate({"predictions": run.uri, "output": uri, **about_report}))
    places[_key(run.uri)] = uri


def _limits_passed(
    run: PublishedRun, report: dict[str, Any], newest: PublishedRun | None, settings: NightlySettings
) -> list[str]:
    """Of a run that no night has told of; what was wrong with others was said before."""
    which = "" if run is newest else f"run {run.run_id}: "
    rows = run.manifest["rows"]
    bad_fraction = 1 - run.manifest["statuses"].get("scored", 0) / rows
    passed = []
    if bad_fraction > settings.max_bad_fraction:
        limit = f"--max-bad-fraction {settings.max_bad_fraction:.1%}"
        passed.append(f"{which}{bad_fraction:.1%} of the photos have no score, more than {limit}")
    if settings.fail_on_drift and drift_verdict(report) == "large":
        passed.append(f"{which}the scores have drifted: large")
    return passed
