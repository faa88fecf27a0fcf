"""The night: scores what is new, reports on it, and puts the newest report where a bookmark and a monitor find it.

<output>/model_id=.../scored_date=.../run_id=.../   the run, as skinray.scoring writes it
<output>/reports/RUN_ID/                            its report, as skinray.screening_report writes it
<output>/latest.html                                the newest report's page
<output>/latest.json                                where the last night stands; written last

A night that was cut off between its run and its report gets its report in the next one, because nobody has seen what it flagged.
"""

import datetime
from dataclasses import dataclass
from typing import Any

from skinray import storage
from skinray.bundle import load_bundle
from skinray.config import NightlySettings, ReportSettings, ScoreSettings
from skinray.published_runs import PublishedRun, find_runs, open_run
from skinray.scoring import score_archive
from skinray.scoring_pipeline import RunSummary
from skinray.screening_report import FIGURES_NAME, PAGE_NAME, check_reference, drift_verdict, make_report
from skinray.telemetry import say

REPORTS_NAME = "reports"
LATEST_PAGE_NAME = "latest.html"
LATEST_NAME = "latest.json"


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
        StorageError: The input cannot be listed, the reference is not there, or the output not written.
        ScoringError: The rows written are not the photos listed; nothing is published.
    """
    if settings.reference:
        check_reference(settings.reference)  # before hours of scoring
    # Without the report's settings, so that this goes on with a cut-off `skinray score` of the same photos, and it with this.
    scoring = ScoreSettings.model_validate(settings.model_dump(include=set(ScoreSettings.model_fields)))
    summary = score_archive(scoring, now)
    runs = _runs(settings, open_run(summary.uri).model_id if summary.uri else load_bundle(settings.bundle).model_id)
    run = runs[-1] if runs else None
    missed = [_reported(each, settings)[0] for each in _not_reported(runs[:-1], settings)]
    report_uri, report = _reported(run, settings) if run else (None, None)
    if report_uri:
        page = storage.read_bytes(storage.join(report_uri, PAGE_NAME))
        storage.write_bytes(storage.join(settings.output, LATEST_PAGE_NAME), page)
    limits_passed = _limits_passed(summary, report, settings)
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
        "missed_reports": missed,
        "drift": report and drift_verdict(report),
    }
    storage.write_json(storage.join(settings.output, LATEST_NAME), latest)
    return Night(latest, limits_passed)


def _runs(settings: NightlySettings, model_id: str) -> list[PublishedRun]:
    """Of the bundle, in the order in which they started."""
    there = storage.exists(storage.join(settings.output, f"model_id={model_id}"))
    return [run for run in find_runs(settings.output) if run.model_id == model_id] if there else []


def _not_reported(runs: list[PublishedRun], settings: NightlySettings) -> list[PublishedRun]:
    """The last of some runs, those behind the last that has a report; none where no run has one, as before the first night."""
    for place in range(len(runs), 0, -1):
        if _place_of(runs[place - 1], settings)[1]:
            return runs[place:]
    return []


def _reported(run: PublishedRun, settings: NightlySettings) -> tuple[str, dict[str, Any]]:
    """The run's report: where it is and what report.json holds; made unless it is there."""
    uri, there = _place_of(run, settings)
    if there:
        figures: dict[str, Any] = storage.read_json(storage.join(uri, FIGURES_NAME))
        return uri, figures
    storage.delete_folder(uri)  # what a night that was cut off left of it
    say(f"nightly: reports on {run.uri}")
    about_report = {"reference": settings.reference, "thumbnails": settings.thumbnails, "fail_on_drift": settings.fail_on_drift}
    return uri, make_report(ReportSettings.model_validate({"predictions": run.uri, "output": uri, **about_report}))


def _place_of(run: PublishedRun, settings: NightlySettings) -> tuple[str, bool]:
    """Where a run's report belongs, and whether it is there."""
    uri = storage.join(settings.output, REPORTS_NAME, run.run_id)
    if _about(uri) not in (None, run.uri):
        # A run of the same name, of another model or day.
        uri = f"{uri}-{storage.sha256_of(run.uri.encode())[:12]}"
    return uri, _about(uri) == run.uri


def _about(report_uri: str) -> str | None:
    """The run that a published report is about."""
    manifest_uri = storage.join(report_uri, storage.MANIFEST_NAME)
    return str(storage.read_json(manifest_uri)["predictions"]) if storage.exists(manifest_uri) else None


def _limits_passed(summary: RunSummary, report: dict[str, Any] | None, settings: NightlySettings) -> list[str]:
    """Of this night alone: what was wrong with an earlier one was said then."""
    passed = []
    if summary.bad_fraction > settings.max_bad_fraction:
        limit = f"--max-bad-fraction {settings.max_bad_fraction:.1%}"
        passed.append(f"{summary.bad_fraction:.1%} of the photos have no score, more than {limit}")
    if settings.fail_on_drift and summary.rows and report and drift_verdict(report) == "large":
        passed.append("the scores have drifted: large")
    return passed
