"""Listed photos -> their bytes, wherever they lie: files of their own, tar shards, Parquet shards.

Shards are read by position, as `skinray.shard_listing` noted it. One that changed since is noticed, and its photos fail.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from skinray import file_listing, storage
from skinray.errors import ImageError, StorageError
from skinray.images import MAX_FILE_BYTES
from skinray.shard_formats import SHA256, bytes_column, is_damage, is_of_name, is_parquet, open_parquet

# Neighbours in a tar shard are read in one piece when no more than this lies between them for each byte that is wanted.
_MOST_SPAN = 1.5
_HEADER_BYTES = 1 << 16
# What is read in one go of files of their own, or of a tar shard: a task on each core holds so much beside the decoded photos.
BYTES_AT_ONCE = 64 << 20
_BYTES_OF_UNKNOWN = 8 << 20
# A row group may be as large as its file, which is what pyarrow writes unless told otherwise: it is read in pieces.
_ROWS_OF_A_GROUP = 32
_BUFFER_BYTES = 8 << 20


def read_contents(photos: Sequence[Mapping[str, Any]]) -> Iterator[bytes | Exception]:
    """The bytes of listed photos, a few ahead of who takes them.

    Args:
        photos: Rows of `skinray.listing.LISTING_SCHEMA`; those of one shard stand together.

    Yields:
        Bytes, or the exception that reading this one raised, in their order.
    """
    for shard, group in itertools.groupby(photos, key=lambda photo: photo["shard"]):
        rows = list(group)
        if not is_parquet(shard):
            for some in _at_once(rows):
                yield from _read_at_once(shard, some)
            continue
        read = 0
        try:
            with storage.explained(shard, "read"):
                for content in _read_from_shard(shard, rows):
                    read += 1
                    yield content
        except (StorageError, ImageError, pa.ArrowException) as error:
            yield from [_cause(error)] * (len(rows) - read)


def may_be_read_yet(photo: Mapping[str, Any], error: Exception) -> bool:
    """True when a photo's store or disk, and not the photo, may be what failed.

    Args:
        photo: Row of `skinray.listing.LISTING_SCHEMA`.
        error: What `read_contents` gave in place of it.
    """
    if isinstance(error, ImageError) or is_of_name(error) or is_damage(error):
        return False
    if not storage.is_remote(photo["image_uri"]):
        return True  # of a disk that went away every file is missing
    return not isinstance(error, FileNotFoundError) and not isinstance(error.__cause__, PermissionError)


def _at_once(rows: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[Mapping[str, Any]]]:
    """Photos cut into pieces of no more than BYTES_AT_ONCE, or one photo."""
    start, size = 0, 0
    for end, row in enumerate(rows):
        size += row["file_bytes"] or _BYTES_OF_UNKNOWN
        if size > BYTES_AT_ONCE and end > start:
            yield rows[start:end]
            start, size = end, row["file_bytes"] or _BYTES_OF_UNKNOWN
    yield rows[start:]


def _read_at_once(shard: str, rows: Sequence[Mapping[str, Any]]) -> Sequence[bytes | Exception]:
    if (file_bytes := rows[0]["file_bytes"] or 0) > MAX_FILE_BYTES:  # which stands alone
        too_large = f"{file_bytes // 1_000_000:,} MB are more than the {MAX_FILE_BYTES // 1_000_000:,} MB that are read"
        return [ImageError("too_large", too_large)] * len(rows)
    if not shard:
        return storage.read_many([row["image_uri"] for row in rows])
    try:
        with storage.explained(shard, "read"):
            return list(_read_from_shard(shard, rows))
    except (StorageError, ImageError) as error:
        return [_cause(error)] * len(rows)


def _cause(error: Exception) -> Exception:
    """What is wrong with the photos of a shard that cannot be read: that it is gone stands behind what was said of it."""
    return error.__cause__ if isinstance(error.__cause__, FileNotFoundError) else error


def _read_from_shard(shard: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[bytes | Exception]:
    whole = [row for row in rows if row["position"] >= 0]  # the row of what could not be listed stands behind the others
    if whole:
        # Photos whose hash is not stated are known by the version of their shard.
        version = next((row["file_version"] for row in whole if not row["file_version"].startswith(SHA256)), None)
        if version is not None and file_listing.entry_of(shard).version != version:
            raise ImageError("changed", "the shard was written anew since it was listed")
        yield from _read_parquet(shard, whole) if is_parquet(shard) else _read_tar(shard, whole)
    for _ in rows[len(whole) :]:
        yield ImageError("corrupt_shard", "the shard cannot be read to its end")


def _read_tar(shard: str, rows: Sequence[Mapping[str, Any]]) -> list[bytes | Exception]:
    start = min(row["position"] for row in rows)
    end = max(row["position"] + row["file_bytes"] for row in rows)
    wanted = sum(row["file_bytes"] for row in rows)
    if end - start <= _MOST_SPAN * wanted + _HEADER_BYTES:
        data = storage.read_range(shard, start, end)
        places = [row["position"] - start for row in rows]
        return [data[place : place + row["file_bytes"]] for place, row in zip(places, rows, strict=True)]
    return [storage.read_range(shard, row["position"], row["position"] + row["file_bytes"]) for row in rows]


def _read_parquet(shard: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[bytes | Exception]:
    with open_parquet(shard, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
        column = bytes_column(file.schema_arrow)
        if column is None:
            raise ImageError("changed", "the shard was written anew since it was listed")
        counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        ends = np.cumsum(counts)
        group_of = [int(np.searchsorted(ends, row["position"], side="right")) for row in rows]
        for group, pairs in itertools.groupby(zip(group_of, rows, strict=True), key=lambda pair: pair[0]):
            some = [row for _, row in pairs]
            if group == len(counts):
                yield from [ImageError("changed", "the shard has fewer rows than when it was listed")] * len(some)
                break
            first = ends[group] - counts[group]
            read = 0
            try:
                with storage.explained(shard, "read"):
                    for data in _of_row_group(file, group, column, [int(row["position"] - first) for row in some]):
                        yield _checked(data, some[read]["file_version"])
                        read += 1
            except (StorageError, pa.ArrowException) as error:  # the next row group may be whole
                yield from [_cause(error)] * (len(some) - read)


def _of_row_group(file: pq.ParquetFile, group: int, column: str, positions: Sequence[int]) -> Iterator[bytes]:
    """The values at some positions, which ascend, of a column of a row group: read up to the last one, and never held whole."""
    wanted = iter(positions)
    position = next(wanted)
    start = 0
    for batch in file.iter_batches(_ROWS_OF_A_GROUP, row_groups=[group], columns=[column], use_threads=False):
        values = batch.column(0)
        if pa.types.is_struct(values.type):
            values = values.field("bytes")
        while position < start + len(values):
            yield values[position - start].as_py() or b""
            if (following := next(wanted, None)) is None:
                return
            position = following
        start += len(values)


def _checked(data: bytes, version: str) -> bytes | Exception:
    if version.startswith(SHA256) and storage.sha256_of(data) != version.removeprefix(SHA256):
        return ImageError("changed", "its bytes are not those that the shard names")
    return data
