"""The folder of a scoring run: a new one, or that of a run of the same command that did not come to its end.

<output>/model_id=M/scored_date=D/run_id=R/_incomplete.json   what is being scored; gone when the run is published
<output>/model_id=M/scored_date=D/run_id=R/_listing.pq        the photos and how they are cut into blocks
"""

import datetime
import json
from collections.abc import Mapping
from typing import Any

from skinray import file_listing, outputs, storage
from skinray.block_files import drop_blocks
from skinray.config import ScoreSettings
from skinray.errors import OutputExistsError
from skinray.listing import LISTING_NAME, Listing, grown, outgrown, read_listing, write_listing
from skinray.telemetry import say

# What may differ between a run and the command that goes on with it: how it is computed, what is made of the outcome, and how
# the bundle, which model_id names, and the output, in which both look, are written.
_STEERING = (
    "actors",
    "batch_size",
    "bundle",
    "cpus_per_actor",
    "gpus_per_actor",
    "isic_csv",
    "max_bad_fraction",
    "output",
    "rows_per_block",
    "run_id",
)


def run_identity(settings: ScoreSettings, model_id: str) -> dict[str, Any]:
    """What two commands have in common of which one goes on with a run of the other, in JSON values."""
    identity = {name: value for name, value in settings.recorded().items() if name not in _STEERING}
    return identity | {"input": storage.normalize(settings.input), "model_id": model_id}


def open_run(
    settings: ScoreSettings, identity: Mapping[str, Any], listing: Listing, now: datetime.datetime
) -> tuple[str, Listing]:
    """Opens the folder of a run; for who has claimed its identity.

    A run that was cut off is gone on with when all of its photos are still to be scored as they are, and its blocks are not too
    small for what came since; otherwise it is removed.

    Args:
        settings: Of the command.
        identity: From `run_identity`.
        listing: What is to be scored.
        now: The time of the start, with its time zone.

    Returns:
        The run's URI, of the last run of the same command that was cut off or a new one; and the same photos, those first that
        the run had before.

    Raises:
        OutputExistsError: A run of this name is published, on whatever day, or was begun with other settings.
    """
    model_uri = storage.join(settings.output, f"model_id={identity['model_id']}")
    there = set(file_listing.list_files(model_uri)) if storage.exists(model_uri) else set()
    _check_name(settings.run_id, there, model_uri)
    for run_uri in _unfinished(there, model_uri, identity, settings.run_id):
        noted = storage.join(run_uri, LISTING_NAME)
        before = read_listing(noted) if storage.exists(noted) else None
        if before is None:
            why = "nothing of it was scored"
        elif outgrown(before, listing):
            why = (
                f"the blocks of its {before.rows:,} photos, {before.rows_per_block:,} in each, are too small for {listing.rows:,}"
            )
        elif continued := grown(before, listing):
            say(f"score: goes on with {run_uri}, which did not come to its end")
            if continued.rows > before.rows:
                say(f"score: {continued.rows - before.rows:,} photos have come since")
                write_listing(continued, noted)
            return run_uri, continued
        else:
            why = "its photos changed, are gone or were scored since"
        say(f"score: removes {run_uri}, which did not come to its end: {why}")
        storage.delete_folder(run_uri)
    run_id = settings.run_id or now.strftime("%Y%m%dT%H%M%S%fZ")
    run_uri = storage.join(model_uri, f"scored_date={now.date().isoformat()}", f"run_id={run_id}")
    outputs.claim_folder(run_uri, "predictions", dict(identity))
    write_listing(listing, storage.join(run_uri, LISTING_NAME))
    return run_uri, listing


def _check_name(run_id: str | None, there: set[str], model_uri: str) -> None:
    """Raises an OutputExistsError when a run of that name is published."""
    for path in there:
        if run_id and path.endswith(f"/run_id={run_id}/{storage.MANIFEST_NAME}"):
            uri = storage.join(model_uri, path.removesuffix(f"/{storage.MANIFEST_NAME}"))
            raise OutputExistsError(f"run {uri} already exists: choose another --run-id")


def _unfinished(there: set[str], model_uri: str, identity: Mapping[str, Any], run_id: str | None) -> list[str]:
    """Runs of that identity, and name if one is given, that are not published; the newest first."""
    found = []
    folders = [path.removesuffix(f"/{storage.INCOMPLETE_NAME}") for path in there if path.endswith(f"/{storage.INCOMPLETE_NAME}")]
    for folder in sorted(folders, reverse=True):
        run_uri = storage.join(model_uri, folder)
        marker = storage.read_if_there(storage.join(run_uri, storage.INCOMPLETE_NAME))
        mine = _decoded(marker) == {"kind": "predictions", "settings": identity}
        named = folder.rpartition("run_id=")[2] == run_id
        if mine and f"{folder}/{storage.MANIFEST_NAME}" in there:
            # It was killed when it was published already, and was being tidied.
            drop_blocks(run_uri)
            storage.delete_file(storage.join(run_uri, storage.INCOMPLETE_NAME))
        elif mine and (named or run_id is None):
            found.append(run_uri)
        elif named and marker is not None:
            raise OutputExistsError(f"{run_uri} is an unfinished run with other settings: choose another --run-id, or remove it")
    return found


def _decoded(marker: bytes | None) -> Any:
    """What a marker says; None when it is gone, or was never written to its end."""
    try:
        return None if marker is None else json.loads(marker)
    except ValueError:
        return None
