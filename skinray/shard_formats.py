"""What is common to listing and reading the shards that others made: their endings, their columns, what damage looks like."""

import contextlib
import posixpath
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from skinray import storage
from skinray.errors import StorageError

PARQUET_SUFFIXES = frozenset({".parquet", ".pq"})
SHARD_SUFFIXES = frozenset({".tar", *PARQUET_SUFFIXES})
# What stands before the version of a photo whose shard states the hash of its bytes.
SHA256 = "sha256:"
# Of the columns of other people's tables, in order of preference.
_BYTES_COLUMNS = ("image_bytes", "image", "bytes", "content", "jpg", "png")


def is_parquet(uri: str) -> bool:
    """True for the URI of a Parquet file."""
    return posixpath.splitext(uri)[1].lower() in PARQUET_SUFFIXES


@contextlib.contextmanager
def open_parquet(uri: str, ahead_bytes: int | None = None, **options: Any) -> Iterator[pq.ParquetFile]:
    """Opens a Parquet file for reading; see `skinray.storage.arrow_file` for `ahead_bytes`, pyarrow for the other options."""
    with storage.explained(uri, "read"), storage.arrow_file(uri, ahead_bytes) as source:
        yield pq.ParquetFile(source, **options)


def bytes_column(schema: pa.Schema) -> str | None:
    """The column of image bytes as Parquet names it: `image.bytes` for one that is a structure of bytes and path."""
    for name in (*_BYTES_COLUMNS, *schema.names):
        if name in schema.names:
            kind = schema.field(name).type
            if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
                return str(name)
            if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
                return f"{name}.bytes"
    return None


def is_damage(error: Exception) -> bool:
    """True for what Arrow says of the bytes that it was given; a store's failures have another type, a number or a cause."""
    said = error.__cause__
    return isinstance(error, pa.ArrowException) or (type(said) is OSError and said.errno is None and said.__cause__ is None)


def is_of_name(error: Exception) -> bool:
    """True for what is said of a URI that names no file, such as s3:///a.jpg, before anything is asked for."""
    return isinstance(error, StorageError) and error.__cause__ is None
