"""Where photos come from: loose files or shards -> a Ray Dataset of decoded blocks.

A block is what is scored and written as one; a task reads and decodes one or several, so that many small ones cost little.
Each row is one photo, usable or not: a photo that cannot be read or decoded is a row with an error code and black pixels,
never an exception.

    index         int64, position in the listing or data set, from 0
    block         int64, index of the first photo of its block
    image_id, image_uri, image_sha256, label                    str ("" when unknown)
    width_px, height_px                                         int64 (0 when unknown)
    error_code, error_detail                                    str ("" for a usable photo)
    age           float64, years (NaN when unknown)
    sex, site                                                   str ("" when unknown), as the data set writes them
    ita_degrees   float64, see `skinray.skin_tone` (NaN when unknown)
    pixels        uint8 [rows, size, size, 3]
    decoded_at    float64, seconds since 1970 at which the block was ready
"""

import functools
import math
import posixpath
import time
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from skinray import file_listing, storage
from skinray.config import SplitName
from skinray.errors import ConfigError, ImageError, StorageError
from skinray.images import SUFFIXES, Preprocessing, decode_photo
from skinray.shards import SPLITS, PreparedDataset, is_dataset, open_dataset
from skinray.skin_tone import ita_degrees

# A hair less than a core, so that one decode task a core and an actor fit on every machine, even one with a single core;
# asking for another share than the actor also keeps Ray from fusing the two.
DECODE_CPUS = 0.95
# A listing of files has at least so many blocks, or one a photo.
_LEAST_BLOCKS = 50
# Of few files there are about so many tasks, so that decoding and scoring overlap.
_LEAST_TASKS = 8
_TASK_KEY = b"rows_per_task"

Block = dict[str, npt.NDArray[Any]]

_SHARD_COLUMNS = ["image_id", "label", "age", "sex", "site"]


@dataclass(frozen=True)
class PlannedBlock:
    """Photos that are read, decoded and scored together.

    Attributes:
        first_index: Where the first of them stands in the listing.
        rows: How many.
        plan: What its task needs to read them.
    """

    first_index: int
    rows: int
    plan: pa.Table


@dataclass(frozen=True)
class Listing:
    """The photos of one job, listed and not yet read.

    Attributes:
        rows: Number of photos.
        bytes: Their size as stored.
        blocks: All of them, in order.
        rows_per_task: Blocks are read and decoded together up to so many photos; one block always is.
        from_shards: True when the blocks are row groups of shards, False when they are lists of files.
    """

    rows: int
    bytes: int
    blocks: tuple[PlannedBlock, ...]
    rows_per_task: int
    from_shards: bool

    def table(self) -> pa.Table:
        """All of a listing of files: index, image_id, image_uri, file_bytes and file_version of each."""
        return pa.concat_tables(block.plan for block in self.blocks)


def list_photos(input_uri: str, rows_per_block: int, image_id: Literal["path", "stem"]) -> Listing:
    """Lists what is to be scored: a prepared data set's photos, or every image file below a folder or prefix.

    Args:
        input_uri: A prepared data set, or a folder or prefix of image files.
        rows_per_block: Most photos in one block of files; of few files there are fewer, so that what a killed run loses is
            no more than a fiftieth of it.
        image_id: What names a photo.

    Raises:
        StorageError: Nothing is there, or it has no image file.
        ConfigError: `image_id` is "stem" and two files share one.
    """
    if is_dataset(input_uri):
        return list_shards(open_dataset(input_uri), SPLITS)
    entries = {path: entry for path, entry in file_listing.list_entries(input_uri).items() if _suffix(path) in SUFFIXES}
    if not entries:
        raise StorageError(f"{input_uri} holds no image files ({', '.join(sorted(SUFFIXES))})")
    paths = list(entries)
    names = [posixpath.splitext(posixpath.basename(path))[0] for path in paths] if image_id == "stem" else paths
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        twice = f"{len(repeated)} file names below {input_uri} stand twice, the first is {repeated[0]!r}"
        raise ConfigError(f"--image-id stem: {twice}; use path")
    table = pa.table(
        {
            "index": pa.array(range(len(paths)), pa.int64()),
            "image_id": names,
            "image_uri": [storage.join(input_uri, path) for path in paths],
            "file_bytes": pa.array([entry.size for entry in entries.values()], pa.int64()),
            "file_version": [entry.version for entry in entries.values()],
        }
    )
    return listed(table, rows_per_block)


def listed(table: pa.Table, rows_per_block: int) -> Listing:
    """A listing of files.

    Args:
        table: index, image_id, image_uri, file_bytes and file_version of each; not empty.
        rows_per_block: As `list_photos` takes it.
    """
    small = max(1, len(table) // _LEAST_BLOCKS)
    return _in_blocks(table, min(rows_per_block, small), min(rows_per_block, max(small, len(table) // _LEAST_TASKS)))


def _in_blocks(table: pa.Table, rows_per_block: int, rows_per_task: int) -> Listing:
    plans = [table.slice(start, rows_per_block) for start in range(0, len(table), rows_per_block)]
    blocks = tuple(PlannedBlock(plan["index"][0].as_py(), len(plan), plan) for plan in plans)
    size = pa.compute.sum(table["file_bytes"]).as_py()
    return Listing(rows=len(table), bytes=size, blocks=blocks, rows_per_task=rows_per_task, from_shards=False)


def write_listing(listing: Listing, uri: str) -> None:
    """Writes down a listing of files, one row group a block."""
    schema = listing.blocks[0].plan.schema.with_metadata({_TASK_KEY: str(listing.rows_per_task).encode()})
    with storage.writing(uri) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for block in listing.blocks:
            writer.write_table(block.plan, row_group_size=block.rows)


def read_listing(uri: str) -> Listing:
    """What `write_listing` wrote: the same photos in the same blocks."""
    with storage.reading(uri) as file:
        written = pq.ParquetFile(file)
        table = written.read()
        rows_per_task = int(table.schema.metadata[_TASK_KEY])
        return _in_blocks(table.replace_schema_metadata(None), written.metadata.row_group(0).num_rows, rows_per_task)


def list_shards(dataset: PreparedDataset, splits: Sequence[SplitName]) -> Listing:
    """Lists the photos of some splits of a prepared data set, in the order of its shards; a block is a row group."""
    blocks, index, size = [], 0, 0
    for split in splits:
        for file in dataset.files(split):
            uri = storage.join(dataset.uri, file.path)
            for group, rows in enumerate(file.row_groups):
                plan = pa.table({"uri": [uri], "row_group": [group], "first_index": [index]})
                blocks.append(PlannedBlock(index, rows, plan))
                index += rows
            size += file.bytes
    return Listing(rows=index, bytes=size, blocks=tuple(blocks), rows_per_task=1, from_shards=True)


def decoded_photos(listing: Listing, preprocessing: Preprocessing, without: Container[int] = ()) -> ray.data.Dataset:
    """Reads and decodes a listing on CPU tasks, a block at a time.

    Args:
        listing: What to read.
        preprocessing: How to decode it.
        without: First indices of blocks to leave out.

    Returns:
        Rows as described at the top of this module, a batch a task.
    """
    read = _read_row_groups if listing.from_shards else _read_files
    plans = [
        pa.concat_tables(block.plan.append_column("block", pa.array([block.first_index] * len(block.plan))) for block in some)
        for some in _tasks(listing, without)
    ]
    decode = functools.partial(_read_and_decode, read=read, preprocessing=preprocessing)
    return ray.data.from_arrow(plans).map_batches(decode, batch_size=None, batch_format="pyarrow", num_cpus=DECODE_CPUS)


def _tasks(listing: Listing, without: Container[int]) -> list[list[PlannedBlock]]:
    """The blocks that are not left out, in order, those that are read together."""
    tasks: list[list[PlannedBlock]] = []
    rows = listing.rows_per_task
    for block in listing.blocks:
        if block.first_index in without:
            continue
        if rows + block.rows > listing.rows_per_task:
            tasks.append([])
            rows = 0
        tasks[-1].append(block)
        rows += block.rows
    return tasks


def _suffix(path: str) -> str:
    return posixpath.splitext(path)[1].lower()


def _read_and_decode(plan: pa.Table, read: Any, preprocessing: Preprocessing) -> Block:
    rows, contents = read(plan)
    size = preprocessing.image_size_px
    pixels = np.zeros((len(rows), size, size, 3), np.uint8)
    for row, data, target in zip(rows, contents, pixels, strict=True):
        row.update(image_sha256="", width_px=0, height_px=0, error_code="", error_detail="", ita_degrees=math.nan)
        try:
            if isinstance(data, FileNotFoundError):
                raise ImageError("missing", "the file was listed and is gone")
            if isinstance(data, Exception):
                raise ImageError("unreadable", " ".join(f"{type(data).__name__}: {data}".split()))
            row["image_sha256"] = storage.sha256_of(data)
            photo = decode_photo(data, preprocessing)
            row["width_px"], row["height_px"] = photo.width_px, photo.height_px
            row["ita_degrees"] = ita_degrees(photo.pixels)
            target[:] = photo.pixels
        except ImageError as error:
            row["error_code"], row["error_detail"] = error.code, error.detail
    block: Block = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    block["pixels"] = pixels
    block["decoded_at"] = np.full(len(rows), time.time())
    return block


def _read_files(plan: pa.Table) -> tuple[list[dict[str, Any]], list[bytes | Exception]]:
    known = plan.select(["index", "block", "image_id", "image_uri"]).to_pylist()
    rows = [{**row, "label": "", "age": math.nan, "sex": "", "site": ""} for row in known]
    return rows, storage.read_many([row["image_uri"] for row in rows])


def _read_row_groups(plan: pa.Table) -> tuple[list[dict[str, Any]], list[bytes | Exception]]:
    rows: list[dict[str, Any]] = []
    contents: list[bytes | Exception] = []
    for group in plan.to_pylist():
        uri = group["uri"]
        file = pq.ParquetFile(storage.path_of(uri), filesystem=storage.arrow_filesystem(uri))
        table = file.read_row_group(group["row_group"], columns=["image_bytes", *_SHARD_COLUMNS])
        contents += table["image_bytes"].to_pylist()
        for offset, row in enumerate(table.select(_SHARD_COLUMNS).to_pylist()):
            known = {name: row[name] or "" for name in ("label", "sex", "site")}
            age = math.nan if row["age"] is None else row["age"]
            image_id = row["image_id"]
            index = group["first_index"] + offset
            rows.append(
                {
                    "index": index,
                    "block": group["block"],
                    "image_id": image_id,
                    "image_uri": f"{uri}#{image_id}",
                    "age": age,
                    **known,
                }
            )
    return rows, contents
