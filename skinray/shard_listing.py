"""The photos in shards and lists that others made: WebDataset's tar, Parquet of image bytes, manifests of URIs.

A shard is listed without reading its photos, which `skinray.shard_reader` reads by position afterwards: tar by byte, Parquet by
row. One that is damaged, or ends in its middle, is a row of its own that fails, so that what is missing is told. One that its
store does not give is no row: nothing can be listed then.
"""

import contextlib
import posixpath
import tarfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from skinray import file_listing, storage
from skinray.errors import ConfigError, StorageError
from skinray.images import SUFFIXES
from skinray.shard_formats import SHA256, bytes_column, is_damage, is_of_name, is_parquet, open_parquet
from skinray.telemetry import Tally

# Of the columns of other people's tables, in order of preference.
_ID_COLUMNS = ("image_id", "isic_id", "image_name", "__key__", "id")
MANIFEST_URI_COLUMNS = ("image_uri", "uri", "url", "path", "file", "image")
_TEXT_COLUMNS = ("label", "patient_id", "lesion_id", "sex", "site")
_LOOKUPS_AT_ONCE = 32
# What a thread pool plans stays in memory as a kilobyte each.
_LOOKUPS_PLANNED = 1 << 12
# So much of a shard in an object store is fetched with each header while it is listed (s3fs: 50 MB, and so all of it): one call
# for several small photos, and of photos of a megabyte no more than an eighth.
_HEADERS_AHEAD = 1 << 17
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
        with open_parquet(uri, _HEADERS_AHEAD, pre_buffer=True) as file:
            schema = file.schema_arrow
            if bytes_column(schema) is None:
                return None
            known = [column for column in (*_TEXT_COLUMNS, "age", "image_sha256") if column in schema.names]
            ids = next((column for column in _ID_COLUMNS if column in schema.names), None)
            table = file.read(columns=[*known, *([ids] if ids else [])])
            rows = file.metadata.num_rows
    except (pa.ArrowException, StorageError) as error:
        if not is_damage(error):
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
        for start in range(0, len(uris), _LOOKUPS_PLANNED):
            for entry in threads.map(_entry_if_there, uris[start : start + _LOOKUPS_PLANNED]):
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
        if is_of_name(error) or isinstance(error.__cause__, of_the_file):
            return file_listing.UNKNOWN
        raise
