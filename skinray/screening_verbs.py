"""What the verbs of screening do: score, report, nightly, and the audit of what they published."""

import datetime

from skinray import telemetry
from skinray.config import NightlySettings, ReportSettings, ScoreSettings
from skinray.errors import LIMIT_PASSED
from skinray.ray_session import ray_session
from skinray.telemetry import say


def score(settings: ScoreSettings) -> int:
    """Scores an archive."""
    from skinray.scoring import score_archive

    with ray_session():
        ray_s = telemetry.process_age_s()
        summary = score_archive(settings, datetime.datetime.now(datetime.UTC))
    if not summary.rows:
        print(f"nothing to do: {summary.skipped_rows:,} photos need no score")
        return 0
    print(f"{summary.rows:,} photos: " + ", ".join(f"{count:,} {status}" for status, count in summary.statuses.items()))
    for code, count in summary.errors.items():
        print(f"  {code}: {count:,}")
    print(f"{summary.flagged:,} flagged, {summary.rows_per_second:.1f} photos/s with start-up")
    if summary.start_up_parts:
        parts = {"Python and Ray": ray_s, "listing": summary.listing_seconds, **summary.start_up_parts}
        split = ", ".join(f"{name} {seconds:.1f}" for name, seconds in parts.items())
        print(f"start-up {sum(parts.values()):.1f} s from the command to the first photo: {split}")
    if summary.resumed_rows:
        print(f"{summary.resumed_rows:,} of the photos had been scored before the run was cut off")
    print(f"predictions {summary.uri}")
    if summary.bad_fraction > settings.max_bad_fraction:
        limit = f"--max-bad-fraction {settings.max_bad_fraction:.1%}"
        say(f"skinray: {summary.bad_fraction:.1%} of the photos have no score, more than {limit}")
        return LIMIT_PASSED
    return 0


def score_dry(settings: ScoreSettings) -> list[str]:
    """What it would take."""
    telemetry.import_tensorflow()
    from skinray.bundle import load_bundle
    from skinray.listing import list_photos
    from skinray.scoring import choose_photos
    from skinray.scoring_estimate import estimate

    bundle = load_bundle(settings.bundle)
    everything = list_photos(settings.input, settings.rows_per_block, settings.image_id)
    listing, skipped_rows = choose_photos(everything, settings, bundle.model_id)
    known = [f"{skipped_rows:,} photos need no score"] if skipped_rows else []
    if not listing.rows:
        return [*known, "nothing to do"]
    size = f"{listing.rows:,} photos, {listing.bytes / 1e6:,.0f} MB" if listing.bytes else f"{listing.rows:,} photos"
    what = f"model {bundle.model_id} on {size}, in {len(listing.blocks()):,} blocks"
    return [*known, what, *estimate(bundle, listing, settings).in_words()]


def report(settings: ReportSettings) -> int:
    """Reports on a run."""
    from skinray.screening_page import drift_in_words, headline, remarks_of
    from skinray.screening_report import drift_verdict, make_report

    made = make_report(settings)
    print(headline(made))
    print(drift_in_words(made))
    for remark in remarks_of(made):
        say(f"skinray: {remark}")
    print(f"report     {settings.output}/report.html")
    return LIMIT_PASSED if settings.fail_on_drift and drift_verdict(made) == "large" else 0


def report_dry(settings: ReportSettings) -> list[str]:
    """On which run, and against which."""
    from skinray.published_runs import open_run
    from skinray.screening_report import find_reference

    run = open_run(settings.predictions)
    reference, why_none = find_reference(run, settings.reference)
    against = f"compared with {reference.words}" if reference else f"not compared: {why_none}"
    return [f"run {run.run_id} of model {run.model_id}, {run.manifest['rows']:,} photos, to {settings.output}", against]


def nightly(settings: NightlySettings) -> int:
    """Scores what is new and reports on it."""
    from skinray.nightly import run_night

    with ray_session():
        night = run_night(settings, datetime.datetime.now(datetime.UTC))
    print(night.in_words())
    print(f"latest     {settings.output}/latest.html")
    for reason in night.limits_passed:
        say(f"skinray: {reason}")
    return LIMIT_PASSED if night.limits_passed else 0


def verify_audit(predictions: str, head: str | None) -> int:
    """Takes every hash of the chain of runs again."""
    from skinray.audit_chain import check_chain

    chain = check_chain(predictions, head)
    print(f"{chain.runs:,} runs of {chain.rows:,} photos, {chain.files:,} files")
    for sha256 in chain.heads:
        print(f"head {sha256}")
    for note in chain.notes:
        say(f"skinray: {note}")
    for problem in chain.problems:
        say(f"skinray: BROKEN: {problem}")
    return LIMIT_PASSED if chain.problems else 0
