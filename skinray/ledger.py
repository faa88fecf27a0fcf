"""What a model has scored already, of all its published runs: so that a night costs what is new.

    <run>/_ledger.pq   one row a photo of the run: its file as it was, its hash, what became of it

A photo is known when a run has a row of the same name, URI, file size and file version (an object's ETag, a local file's time of
change); of several rows of that name and URI the newest run's counts. So photos of one name in two inputs are two photos. One
whose shard states its hash is known by name and hash wherever it lies, because archives are sharded anew. The ledgers of the
runs are all the state there is: a run that was removed is scored again, and one that was not published never counts.
"""

import datetime
from collections.abc import Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from skinray import file_listing, storage
from skinray.listing import LISTING_NAME, Listing
from skinray.shard_formats import SHA256

LEDGER_NAME = "_ledger.pq"
_STARTED_KEY = b"started_at"
_PLACE = ("image_id", "image_uri")
_KEY = (*_PLACE, "file_bytes", "file_version")
_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("image_uri", pa.string()),
        ("file_bytes", pa.int64()),
        ("file_version", pa.string()),
        ("status", pa.string()),
    ]
)

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
    """What the model's published runs below `output` know: image_id, image_uri, file_bytes, file_version, status; one row a
    photo, of the newest run that has it."""
    model_uri = storage.join(output, f"model_id={model_id}")
    there = set(file_listing.list_files(model_uri)) if storage.exists(model_uri) else set()
    published = [path.removesuffix(storage.MANIFEST_NAME) for path in there if path.endswith(f"/{storage.MANIFEST_NAME}")]
    tables = [_read_ledger_of(storage.join(model_uri, folder)) for folder in published if folder + LEDGER_NAME in there]
    newest_first = sorted(tables, key=lambda table: (table.schema.metadata or {})[_STARTED_KEY], reverse=True)
    if not newest_first:
        return _SCHEMA.empty_table()
    joined = pa.concat_tables(table.replace_schema_metadata(None) for table in newest_first)
    joined = joined.take(_first_rows(joined.select(_PLACE)))
    by_hash = _is_hash(joined["file_version"])
    hashed = joined.filter(by_hash)
    newest = hashed.take(_first_rows(hashed.select(["image_id", "file_version"])))
    return pa.concat_tables([joined.filter(pc.invert(by_hash)), newest]) if len(hashed) else joined


def _read_ledger_of(run_uri: str) -> pa.Table:
    table = _read(storage.join(run_uri, LEDGER_NAME))
    if "image_uri" not in table.column_names:
        # Ledgers had none at first, but the run's listing, which has the same rows, always did.
        table = table.append_column("image_uri", _read(storage.join(run_uri, LISTING_NAME))["image_uri"])
    return table.select(_SCHEMA.names)


def _read(uri: str) -> pa.Table:
    return pq.read_table(storage.path_of(uri), filesystem=storage.arrow_filesystem(uri), partitioning=None)


def _first_rows(table: pa.Table) -> pa.Array:
    """The numbers of the rows that none above them equals, in order."""
    numbered = table.append_column("row", pa.array(range(len(table)), pa.int64()))
    return numbered.group_by(table.column_names).aggregate([("row", "min")])["row_min"].sort()


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
    as_now = _matchable(listed).append_column("index", listed["index"])
    unknown = as_now.join(_matchable(ledger), list(_KEY), join_type="left anti")["index"]
    if selection == "new":
        return listed.take(unknown.sort())
    again = ledger.filter(pc.equal(ledger["status"], selection))
    there = listed.select(["index", *_PLACE]).join(again.select(_PLACE), list(_PLACE), join_type="left semi")["index"]
    elsewhere = as_now.join(_matchable(again), list(_KEY), join_type="left semi")["index"]
    # The photos of a shard that could not be read, and is whole now, have other names than its row had, whose URI is the shard's.
    of_shards = pc.and_(pc.is_in(listed["shard"], again["image_uri"]), pc.is_in(listed["index"], unknown))
    asked = pc.or_(pc.is_in(listed["index"], there), pc.is_in(listed["index"], elsewhere))
    return listed.filter(pc.or_(asked, of_shards))


def _matchable(table: pa.Table) -> pa.Table:
    """The columns by which photos are known: no place where the version is a hash, and a number for an unknown size, because
    Arrow joins no null to a null."""
    return pa.table(
        {
            "image_id": table["image_id"],
            "image_uri": pc.if_else(_is_hash(table["file_version"]), "", table["image_uri"]),
            "file_bytes": pc.fill_null(table["file_bytes"], -1),
            "file_version": table["file_version"],
        }
    )


def _is_hash(versions: pa.ChunkedArray) -> pa.ChunkedArray:
    """Which file versions are the hash of a photo's bytes."""
    return pc.starts_with(versions, SHA256)
