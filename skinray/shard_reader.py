"""Photos in shards and lists that others made: WebDataset's tar, Parquet of image bytes, manifests of URIs.

A shard is listed without reading its photos and read by position afterwards: tar by byte, Parquet by row. A shard that
changes in between is noticed, and its photos fail; one that is damaged, or ends in its middle, is a row of its own that
fails, so that what is missing is told. One that its store does not give is no row: nothing can be listed then.
"""

import contextlib
import itertools
import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from skinray import file_listing, storage
from skinray.errors import ConfigError, ImageError, StorageError
from skinray.images import MAX_FILE_BYTES, SUFFIXES
from skinray.telemetry import Tally

PARQUET_SUFFIXES = frozenset({".parquet", ".pq"})
SHARD_SUFFIXES = frozenset({".tar", *PARQUET_SUFFIXES})
# Of the columns of other people's tables, in order of preference.
_BYTES_COLUMNS = ("image_bytes", "image", "bytes", "content", "jpg", "png")
_ID_COLUMNS = ("image_id", "isic_id", "image_name", "__key__", "id")
MANIFEST_URI_COLUMNS = ("image_uri", "uri", "url", "path", "file", "image")
_TEXT_COLUMNS = ("label", "patient_id", "lesion_id", "sex", "site")
# Neighbours in a tar shard are read in one piece when no more than this lies between them for each byte that is wanted.
_MOST_SPAN = 1.5
_HEADER_BYTES = 1 << 16
# What is read in one go of files of their own, or of a tar shard: a task on each core holds so much beside the decoded photos.
BYTES_AT_ONCE = 64 << 20
_BYTES_OF_UNKNOWN = 8 << 20
# A row group may be as large as its file, which is what pyarrow writes unless told otherwise: it is read in pieces.
_ROWS_OF_A_GROUP = 32
_BUFFER_BYTES = 8 << 20
_LOOKUPS_AT_ONCE = 32
# So much of a shard in an object store is fetched with each header while it is listed (s3fs: 50 MB, and so all of it): one call
# for several small photos, and of photos of a megabyte no more than an eighth.
_HEADERS_AHEAD = 1 << 17
SHA256 = "sha256:"
_SHA256_DIGITS = 64


class ListedShard(NamedTuple):
    """What a shard holds.

    Attributes:
        photos: Columns of `skinray.listing.LISTING_SCHEMA` but the index.
        left_out: Kind of file -> how many of it are no photos.
    """

    photos: pa.Table
    left_out: Counter[str]


def list_shard(uri: str, name: str, version: str) -> ListedShard | None:
    """The photos of one shard.

    Args:
        uri: Of the shard.
        name: What stands before a photo's own name in its image_id; "" for none.
        version: Of the shard's content.

    Returns:
        Its photos; a shard that is damaged has a row of its own at position -1. None for a Parquet file without image bytes,
        which is no shard.

    Raises:
        StorageError: Its store does not give it, which says nothing of the shard.
    """
    if is_parquet(uri):
        photos = _list_parquet(uri, name, version)
        return None if photos is None else ListedShard(photos, Counter())
    return _list_tar(uri, name, version)


def _list_tar(uri: str, name: str, version: str) -> ListedShard:
    members: list[tuple[str, int, int]] = []  # name, first byte, size
    missing: list[str] = []
    files: dict[str, tuple[int, int]] = {}
    left_out: Counter[str] = Counter()
    end = 0
    with storage.reading(uri, _HEADERS_AHEAD) as file:
        with contextlib.suppress(tarfile.TarError), tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                end = archive.offset
                if member.isfile():
                    files[posixpath.normpath(member.name)] = (member.offset_data, member.size)
                elif member.islnk() or member.issym():
                    _follow(member, files)
                else:
                    continue
                suffix = posixpath.splitext(member.name)[1].lower()
                if suffix not in SUFFIXES:
                    left_out[suffix] += 1
                elif place := files.get(posixpath.normpath(member.name)):
                    members.append((storage.escaped(member.name), *place))
                else:
                    missing.append(storage.escaped(member.name))
        # A tar ends with blocks of zeros; tarfile takes one that was cut off between two photos for a whole one.
        file.seek(end)
        whole = file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    # A link to nothing that stands before it is looked for as a file of its own, which is not there.
    rows = [(path, uri, *place) for path, *place in members] + [(path, "", None, None) for path in missing]
    columns: dict[str, Any] = {
        "image_id": [f"{name}/{path}" if name else path for path, *_ in rows],
        "image_uri": [f"{uri}#{path}" for path, *_ in rows],
        "shard": [shard for _, shard, _, _ in rows],
        "position": [position for _, _, position, _ in rows],
        "file_bytes": [size for *_, size in rows],
    }
    if not whole:
        for column, value in zip(columns.values(), (name or uri, uri, uri, -1, None), strict=True):
            column.append(value)
    return ListedShard(pa.table({**columns, "file_version": [version] * len(columns["image_id"])}), left_out)


def _follow(link: tarfile.TarInfo, files: dict[str, tuple[int, int]]) -> None:
    """Gives a link in a tar the place of the file before it that it names, if there is one."""
    target = posixpath.join(posixpath.dirname(link.name), link.linkname) if link.issym() else link.linkname
    if place := files.get(posixpath.normpath(target)):
        files[posixpath.normpath(link.name)] = place


def _list_parquet(uri: str, name: str, version: str) -> pa.Table | None:
    try:
        with _opened(uri, _HEADERS_AHEAD, pre_buffer=True) as file:
            schema = file.schema_arrow
            if _bytes_column(schema) is None:
                return None
            known = [column for column in (*_TEXT_COLUMNS, "age", "image_sha256") if column in schema.names]
            ids = next((column for column in _ID_COLUMNS if column in schema.names), None)
            table = file.read(columns=[*known, *([ids] if ids else [])])
            rows = file.metadata.num_rows
    except (pa.ArrowException, StorageError) as error:
        if not _is_damage(error):
            raise
        # Whatever it held: it may have been photos.
        return pa.table(
            {"image_id": [name or uri], "image_uri": [uri], "shard": [uri], "position": [-1], "file_version": [version]}
        )
    own = pc.coalesce(_text(table[ids]) if ids else _unstated(rows), pa.array([f"{name or uri}#{row}" for row in range(rows)]))
    hashes = _text(table["image_sha256"]) if "image_sha256" in known else _unstated(rows)
    hashed = pc.if_else(pc.equal(pc.utf8_length(hashes), _SHA256_DIGITS), pc.binary_join_element_wise(SHA256, hashes, ""), None)
    columns = {
        "image_id": own,
        "image_uri": pc.binary_join_element_wise(uri, own, "#"),
        "shard": pa.array([uri] * rows, pa.string()),
        "position": pa.array(range(rows), pa.int64()),
        "file_version": pc.coalesce(hashed, pa.scalar(version)),
    }
    return pa.table({**columns, **_known(table)})


def _known(table: pa.Table) -> dict[str, Any]:
    """What a table says of its photos."""
    known: dict[str, Any] = {name: _text(table[name]) for name in _TEXT_COLUMNS if name in table.column_names}
    if "age" in table.column_names:
        ages = pd.to_numeric(_text(table["age"]).to_pandas(), errors="coerce")
        known["age"] = pa.array(ages.to_numpy(np.float32), from_pandas=True)
    return known


def _text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of any kind as text; null where it is empty, and all of it when it is of a kind that cannot be written so."""
    try:
        text = column.cast(pa.string())
    except pa.ArrowException:
        return _unstated(len(column))
    return pc.if_else(pc.equal(text, ""), None, text)


def _unstated(rows: int) -> pa.ChunkedArray:
    return pa.chunked_array([pa.nulls(rows, pa.string())])


@contextlib.contextmanager
def _opened(uri: str, ahead_bytes: int | None = None, **options: Any) -> Iterator[pq.ParquetFile]:
    with storage.explained(uri, "read"), storage.arrow_file(uri, ahead_bytes) as source:
        yield pq.ParquetFile(source, **options)


def _is_damage(error: Exception) -> bool:
    """True for what Arrow says of the bytes that it was given; a store's failures have another type, a number or a cause."""
    said = error.__cause__
    return isinstance(error, pa.ArrowException) or (type(said) is OSError and said.errno is None and said.__cause__ is None)


def _bytes_column(schema: pa.Schema) -> str | None:
    """The column of image bytes as Parquet names it: `image.bytes` for one that is a structure of bytes and path."""
    for name in (*_BYTES_COLUMNS, *schema.names):
        if name in schema.names:
            kind = schema.field(name).type
            if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
                return str(name)
            if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
                return f"{name}.bytes"
    return None


def read_manifest(uri: str) -> pa.Table:
    """The photos of a manifest.

    Args:
        uri: A CSV or Parquet file with a column image_uri (or uri, url, path, file, image) of URIs or of paths below the
            manifest's folder, and as it likes image_id, label, patient_id, lesion_id, age, sex and site.

    Returns:
        Columns of `skinray.listing.LISTING_SCHEMA`, as many as are known, null where nothing is stated, and `written`, the URI
        as it stands there. A file that is not there is a row nevertheless, and so is a row that names none: it is called
        MANIFEST#ROW, from 0, where nothing lies.

    Raises:
        ConfigError: It has no such column.
        StorageError: It cannot be read, or a store of its photos does not answer: what is listed of them has to be right.
    """
    table = _read_table(uri)
    column = next((name for name in MANIFEST_URI_COLUMNS if name in table.column_names), None)
    if column is None:
        raise ConfigError(f"{uri} has no column {' or '.join(MANIFEST_URI_COLUMNS)}; it has {', '.join(table.column_names)}")
    written = [each if each and each.strip() else None for each in _text(table[column]).to_pylist()]
    manifest = storage.normalize(uri)
    folder = posixpath.dirname(manifest)
    uris = []
    for row, each in enumerate(written):
        if each is None:
            uris.append(f"{manifest}#{row}")
        else:
            uris.append(each if "://" in each or each.startswith("/") else storage.join(folder, each))
    tally = Tally("listing", f"of {len(uris):,} photos looked up")
    entries = []
    with ThreadPoolExecutor(_LOOKUPS_AT_ONCE, thread_name_prefix="lookup") as threads:
        for entry in threads.map(_entry_if_there, uris):
            entries.append(entry)
            tally.advance()
    columns: dict[str, Any] = {
        "written": pa.array(written, pa.string()),
        "image_uri": pa.array(uris, pa.string()),
        "file_bytes": pa.array([entry.size for entry in entries], pa.int64()),
        "file_version": pa.array([entry.version for entry in entries], pa.string()),
        **_known(table),
    }
    if "image_id" in table.column_names:
        columns["image_id"] = _text(table["image_id"])
    return pa.table(columns)


def _read_table(uri: str) -> pa.Table:
    try:
        with storage.reading(uri) as file:
            if is_parquet(uri):
                return pq.read_table(file)
            return pa.Table.from_pandas(pd.read_csv(file, dtype=str, keep_default_na=False), preserve_index=False)
    except (ValueError, pa.ArrowException) as error:
        raise StorageError(f"cannot read the manifest {uri}: {' '.join(str(error).split())}") from error


def _entry_if_there(uri: str) -> file_listing.Entry:
    storage.filesystem(uri)  # https:// and the like would be nothing but failed rows
    try:
        return file_listing.entry_of(uri)
    except StorageError as error:
        of_the_file = (FileNotFoundError, PermissionError) if storage.is_remote(uri) else OSError
        if _is_of_name(error) or isinstance(error.__cause__, of_the_file):
            return file_listing.UNKNOWN
        raise


def _is_of_name(error: Exception) -> bool:
    """True for what is said of a URI that names no file, such as s3:///a.jpg, before anything is asked for."""
    return isinstance(error, StorageError) and error.__cause__ is None


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
    if isinstance(error, ImageError) or _is_of_name(error) or _is_damage(error):
        return False
    if not storage.is_remote(photo["image_uri"]):
        return True  # of a disk that went away every file is missing
    return not isinstance(error, FileNotFoundError) and not isinstance(error.__cause__, PermissionError)


def is_parquet(uri: str) -> bool:
    """True for the URI of a Parquet file."""
    return posixpath.splitext(uri)[1].lower() in PARQUET_SUFFIXES


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
    with _opened(shard, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
        column = _bytes_column(file.schema_arrow)
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
