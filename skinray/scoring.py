"""A scoring run: list -> leave out what is known -> score -> publish, with a ledger and a link to the run before.

The run is published when every listed photo is one row.

    <output>/model_id=.../scored_date=.../run_id=.../_listing.pq      the photos and how they are cut into blocks
    <output>/model_id=.../scored_date=.../run_id=.../_blocks/         a file a block, while the run goes on
    <output>/model_id=.../scored_date=.../run_id=.../_progress.json   where it stands, for a scheduler
    <output>/model_id=.../scored_date=.../run_id=.../_ledger.pq       what became of each photo; see skinray.ledger
    <output>/model_id=.../scored_date=.../run_id=.../_isic.csv        on request; see skinray.isic_csv
    <output>/model_id=.../scored_date=.../run_id=.../part-00000.parquet ...
    <output>/model_id=.../scored_date=.../run_id=.../_manifest.json   written last: what makes the run exist
"""

import dataclasses
import datetime
import gc
import time
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from skinray import storage
from skinray.audit_chain import described_file, previous_run
from skinray.block_files import drop_blocks
from skinray.bundle import Bundle, load_bundle
from skinray.claims import claimed
from skinray.config import ScoreSettings
from skinray.isic_csv import isic_names, isic_table
from skinray.ledger import LEDGER_NAME, read_ledger, select, write_ledger
from skinray.listing import LISTING_NAME, Listing, list_photos, listed
from skinray.provenance import code_commit, versions
from skinray.published_runs import KIND
from skinray.scoring_pipeline import Extras, RunSummary, write_predictions
from skinray.screening_runs import open_run, run_identity
from skinray.telemetry import say

ISIC_NAME = "_isic.csv"


def score_archive(settings: ScoreSettings, now: datetime.datetime, verb: str = "score") -> RunSummary:
    """Scores an archive into its own run folder.

    Args:
        settings: Bundle, input, output.
        now: The time of the start, with its time zone.
        verb: The command's, for the manifest.

    Returns:
        What became of the photos.

    Raises:
        BundleError: The bundle does not verify.
        OutputExistsError: The same command is running, or a run of the name asked for is there.
        StorageError: The input cannot be listed or the output not written.
        ScoringError: The rows written are not the photos listed; nothing is published.
    """
    began = time.monotonic()
    bundle = load_bundle(settings.bundle)
    # Before anything is claimed: an input without photos leaves nothing behind.
    listing = list_photos(settings.input, settings.rows_per_block, settings.image_id)
    identity = run_identity(settings, bundle.model_id)
    with claimed(settings.output, identity) as claim:
        listing, skipped_rows = choose_photos(listing, settings, bundle.model_id)
        if not listing.rows:
            return RunSummary.of_nothing(skipped_rows)
        run_uri, listing = open_run(settings, identity, listing, now)
        # What a listing was made of is several times its size, and would be kept all night.
        gc.collect()
        pa.default_memory_pool().release_unused()
        listing_s = time.monotonic() - began
        summary, files = write_predictions(bundle, listing, settings, run_uri, Extras(settings.refuse, settings.embeddings))
        summary = dataclasses.replace(summary, skipped_rows=skipped_rows, listing_seconds=listing_s)
        write_ledger(run_uri, listing, files, now)
        if settings.isic_csv:
            _write_isic_csv(bundle, run_uri, listing, files)
        claim.check()
        _publish(bundle, settings, now, verb, summary, files, listing.left_out)
    return summary


def choose_photos(listing: Listing, settings: ScoreSettings, model_id: str) -> tuple[Listing, int]:
    """The photos of an input that a command is to score, perhaps none, and how many others of it need nothing."""
    if listing.left_out:
        say("score: left out: " + ", ".join(f"{count:,} {kind}" for kind, count in listing.left_out.items()))
    if not settings.only_new and not settings.retry:
        return listing, 0
    chosen = select(listing.photos, read_ledger(settings.output, model_id), settings.retry or "new")
    say(f"score: {listing.rows - len(chosen):,} of {listing.rows:,} photos need nothing")
    return listed(chosen, settings.rows_per_block, listing.left_out, listing.folder), listing.rows - len(chosen)


def _publish(
    bundle: Bundle,
    settings: ScoreSettings,
    now: datetime.datetime,
    verb: str,
    summary: RunSummary,
    files: list[dict[str, Any]],
    left_out: Mapping[str, int],
) -> None:
    records = [name for name in (LISTING_NAME, LEDGER_NAME, ISIC_NAME) if storage.exists(storage.join(summary.uri, name))]
    manifest = {
        "kind": KIND,
        "schema_version": 2,
        "verb": verb,
        "model_id": bundle.model_id,
        "operating_point": bundle.operating_points.default,
        "threshold": bundle.operating_points.points[bundle.operating_points.default].threshold,
        "code_commit": code_commit(),
        "versions": versions(),
        "started_at": now.isoformat(),
        "published_at": datetime.datetime.now(datetime.UTC).isoformat(),
        "rows": summary.rows,
        "statuses": summary.statuses,
        "errors": summary.errors,
        "flagged": summary.flagged,
        "seconds": round(summary.seconds, 1),
        "start_up": {name: round(seconds, 1) for name, seconds in summary.start_up_parts.items()},
        "files": files,
        "records": [described_file(summary.uri, name) for name in records],
        "previous": previous_run(settings.output),
        "leaks_in_training": bundle.metadata.get("leaks", {}),
        "resumed_rows": summary.resumed_rows,
        "skipped_rows": summary.skipped_rows,
        "left_out": dict(left_out),
        "settings": settings.recorded(),
    }
    # The marker last: by it the next one who looks finds what a kill left of the blocks.
    storage.write_json(storage.join(summary.uri, storage.MANIFEST_NAME), manifest)
    drop_blocks(summary.uri)
    storage.delete_file(storage.join(summary.uri, storage.INCOMPLETE_NAME))


def _write_isic_csv(bundle: Bundle, run_uri: str, listing: Listing, files: list[dict[str, Any]]) -> None:
    columns = ["malignancy_score", *(f"prob_{code}" for code in bundle.labels.codes)]
    names = isic_names(listing.photos["image_id"].to_pylist())
    done = 0
    with storage.writing(storage.join(run_uri, ISIC_NAME)) as written:
        for file in files:
            with storage.reading(storage.join(run_uri, file["path"])) as part:
                rows = pq.read_table(part, columns=columns).to_pandas()
            table = isic_table(names[done : done + len(rows)], rows, bundle.labels)
            written.write(table.to_csv(index=False, header=not done).encode())
            done += len(rows)
