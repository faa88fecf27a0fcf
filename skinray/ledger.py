"""What a model has scored already, of all its published runs: so that a night costs what is new.

    <run>/_ledger.pq   one row a photo of the run: its file as it was, its hash, what became of it

A photo is known when a run has a row of the same name, file size and file version (an object's ETag, a local file's time of
change); of several rows the newest run's counts. The ledgers of the runs are all the state there is: a run that was removed
is scored again, and one that was not published never counts.
"""

import datetime
import posixpath
from collections.abc import Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from skinray import file_listing, storage
from skinray.listing import Listing
from skinray.shard_reader import SHARD_SUFFIXES

LEDGER_NAME = "_ledger.pq"
_STARTED_KEY = b"started_at"
_KEY = ("image_id", "file_bytes", "file_version")

Selection = Literal["all", "new", "failed", "refused"]


def write_ledger(run_uri: str, listing: Listing, files: Sequence[dict[str, Any]], started_at: datetime.datetime) -> None:
    """Writes what became of a listing's photos; before the run is published.

    Args:
        run_uri: The run's folder.
        listing: Its photos.
        files: The run's prediction files, whose rows stand in the order of the listing.
        started_at: When the run began, with its time zone.
    """
    listed = listing.photos.select(_KEY)
    filesystem = storage.arrow_filesystem(run_uri)
    outcome = pa.concat_tables(
        pq.read_table(
            storage.path_of(storage.join(run_uri, file["path"])),
            columns=["image_id", "image_sha256", "status"],
            filesystem=filesystem,
            partitioning=None,
        )
        for file in files
    )
    if not outcome["image_id"].equals(listed["image_id"]):
        raise ValueError(f"{run_uri}: rows do not stand in the order of the listing")
    table = listed.append_column("image_sha256", outcome["image_sha256"]).append_column("status", outcome["status"])
    with storage.writing(storage.join(run_uri, LEDGER_NAME)) as file:
        stamped = table.replace_schema_metadata({_STARTED_KEY: started_at.isoformat().encode()})
        pq.write_table(stamped, file, compression="zstd", use_dictionary=["status"])


def read_ledger(output: str, model_id: str) -> pa.Table:
    """What the model's published runs below `output` know: image_id, file_bytes, file_version, image_sha256, status; one row a
    photo, of the newest run that has it."""
    model_uri = storage.join(output, f"model_id={model_id}")
    there = set(file_listing.list_files(model_uri)) if storage.exists(model_uri) else set()
    published = [path.removesuffix(storage.MANIFEST_NAME) for path in there if path.endswith(f"/{storage.MANIFEST_NAME}")]
    tables = [_read(storage.join(model_uri, folder, LEDGER_NAME)) for folder in published if folder + LEDGER_NAME in there]
    newest_first = sorted(tables, key=lambda table: (table.schema.metadata or {})[_STARTED_KEY], reverse=True)
    if not newest_first:
        return _EMPTY
    joined = pa.concat_tables(table.replace_schema_metadata(None) for table in newest_first)
    place = pa.array(range(len(joined)), pa.int64())
    first = joined.append_column("place", place).group_by("image_id").aggregate([("place", "min")])
    return joined.take(first["place_min"].sort())


_EMPTY = pa.table(
    {
        "image_id": pa.array([], pa.string()),
        "file_bytes": pa.array([], pa.int64()),
        "file_version": pa.array([], pa.string()),
        "image_sha256": pa.array([], pa.string()),
        "status": pa.array([], pa.string()),
    }
)


def _read(uri: str) -> pa.Table:
    return pq.read_table(storage.path_of(uri), filesystem=storage.arrow_filesystem(uri), partitioning=None)


def select(listed: pa.Table, ledger: pa.Table, selection: Selection) -> pa.Table:
    """The photos of a listing that are to be scored.

    Args:
        listed: Rows of `skinray.listing.LISTING_SCHEMA`.
        ledger: From `read_ledger`.
        selection: all; new: without those that are known as they are, whatever became of them; failed,
            refused: those whose newest row says so, as their files are now; and the new ones of a shard whose row says so.

    Returns:
        Rows of `listed`, in its order.
    """
    if selection == "all":
        return listed
    chosen = _unknown(listed, ledger)
    if selection == "new":
        return listed.take(chosen["index"].sort())
    again = ledger.filter(pc.equal(ledger["status"], selection))["image_id"]
    # The photos of a shard that could not be read, and is whole now, have other names than its row had.
    of_shards = chosen.filter(pc.is_in(chosen["shard"], _shards_named(listed, again)))
    return listed.filter(pc.or_(pc.is_in(listed["image_id"], again), pc.is_in(listed["index"], of_shards["index"])))


def _unknown(listed: pa.Table, ledger: pa.Table) -> pa.Table:
    """The photos that no run has as they are now: index and shard, in any order."""
    files = _matchable(listed.select(["index", "shard", *_KEY]))
    return files.join(_matchable(ledger.select(_KEY)), list(_KEY), join_type="left anti").select(["index", "shard"])


def _shards_named(listed: pa.Table, image_ids: pa.ChunkedArray) -> pa.Array:
    """The shards of a listing that a row of their own may stand for: it is named as the shard's URI ends."""
    names = {name for name in image_ids.to_pylist() if posixpath.splitext(name)[1].lower() in SHARD_SUFFIXES}
    shards = [shard for shard in pc.unique(listed["shard"]).to_pylist() if names & _ends(shard)]
    return pa.array(shards, pa.string())


def _ends(uri: str) -> set[str]:
    """ "s3://a/b.tar" -> itself, "a/b.tar" and "b.tar"."""
    parts = uri.split("/")
    return {"/".join(parts[first:]) for first in range(len(parts))}


def _matchable(table: pa.Table) -> pa.Table:
    """With a number for an unknown size, because Arrow joins no null to a null."""
    sizes = pc.fill_null(table["file_bytes"], -1)
    return table.set_column(table.column_names.index("file_bytes"), "file_bytes", sizes)
