"""A URI -> a filesystem and a path. The only module that knows whether bytes lie on a disk or in an object store.

Local paths and `file://` go to the local disk, `s3://` goes through s3fs, whose credentials and endpoint come from the
`AWS_*` environment variables (`AWS_ENDPOINT_URL` for a store that is not Amazon's). Every failure becomes a
`StorageError` that names the URI.
"""

import contextlib
import hashlib
import io
import json
import os
import posixpath
import re
import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.fs

from skinray.errors import StorageError

if TYPE_CHECKING:
    from skinray.object_store import ObjectStore

# What makes a folder that skinray writes exist, and what stands in it until then; see `skinray.outputs`.
MANIFEST_NAME = "_manifest.json"
INCOMPLETE_NAME = "_incomplete.json"
_TEMPORARY = ".tmp"
# In local URIs: a byte of a file name that is no UTF-8, or a backslash that only looks like the beginning of such a byte.
_ESCAPED = re.compile(r"\\x(5c|[89a-f][0-9a-f])")


def is_remote(uri: str) -> bool:
    """True when the URI names an object store, False for a local path."""
    return "://" in uri and not uri.startswith("file://")


def normalize(uri: str) -> str:
    """The URI with local paths made absolute, so that a worker with another working folder finds the same file."""
    if not uri or uri != uri.strip():
        raise StorageError(f"{uri!r} is not a path or URI: give a folder, a file:// or an s3:// URI")
    if is_remote(uri):
        scheme, rest = uri.split("://", 1)
        if not rest.strip("/") or rest.startswith("/"):
            raise StorageError(f"{uri!r} names no bucket: write {scheme}://BUCKET/PATH")
        return uri.rstrip("/")
    return _escaped_bytes(os.path.abspath(os.path.expanduser(uri.removeprefix("file://"))))


def join(uri: str, *parts: str) -> str:
    """The URI of something below `uri`."""
    normal = normalize(uri)
    # A key may begin with a slash below its prefix; on a disk such a path is another one's.
    return "/".join([normal, *parts]) if is_remote(normal) and "".join(parts)[:1] == "/" else posixpath.join(normal, *parts)


def escaped(path: str) -> str:
    """A file name as it may stand in tables and in local URIs: bytes that are no UTF-8 as `\\xe4`, which `path_of` undoes."""
    return _escaped_bytes(_ESCAPED.sub(lambda found: rf"\x5c{found[0][1:]}", path))


def _escaped_bytes(path: str) -> str:
    return path if path.isascii() else re.sub("[\udc80-\udcff]", lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", path)


def _unescaped(path: str) -> str:
    return _ESCAPED.sub(lambda found: os.fsdecode(bytes.fromhex(found[1])), path) if "\\x" in path else path


def filesystem(uri: str) -> fsspec.AbstractFileSystem:
    """The fsspec filesystem that holds `uri`.

    Raises:
        StorageError: The scheme is not one that skinray reads.
    """
    return object_store(uri) if is_remote(uri) else fsspec.filesystem("file")


def object_store(uri: str) -> "ObjectStore":
    """The store that holds a remote URI."""
    scheme = uri.split("://", 1)[0]
    if scheme != "s3":
        raise StorageError(f"{uri}: {scheme}:// is not supported; use a local path or s3://")
    # Half a second of imports, which work on local files does without.
    from skinray import object_store as stores

    return stores.object_store()


def arrow_filesystem(uri: str) -> pyarrow.fs.FileSystem:
    """The pyarrow filesystem that holds `uri`, for Parquet and for Ray; object stores go through s3fs here too."""
    if not is_remote(uri):
        return pyarrow.fs.LocalFileSystem()
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem(uri)))


def arrow_file(uri: str, ahead_bytes: int | None = None) -> pa.NativeFile:
    """A file for Arrow to read, at any place of it, with `ahead_bytes` as `reading` takes it."""
    if is_remote(uri):
        return pa.PythonFile(filesystem(uri).open(path_of(uri), "rb", block_size=ahead_bytes))
    return pa.OSFile(os.fsencode(path_of(uri)))  # as bytes, because Arrow takes no other names than UTF-8


def path_of(uri: str) -> str:
    """The path of `uri` inside its filesystem (bucket first for an object store)."""
    normal = normalize(uri)
    return normal.split("://", 1)[1] if is_remote(normal) else _unescaped(normal)


@contextlib.contextmanager
def explained(uri: str, action: str) -> Iterator[None]:
    """Turns whatever a filesystem raises into a StorageError that names the URI and what to do."""
    try:
        yield
    except StorageError:
        raise
    except FileNotFoundError as error:
        raise StorageError(f"cannot {action} {uri}: it does not exist") from error
    except PermissionError as error:
        raise StorageError(
            f"cannot {action} {uri}: access denied; check its permissions, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error
    except Exception as error:
        # Only the failures of reaching storage: a bug in our own code must keep its traceback.
        if not isinstance(error, OSError) and not _is_of_store(uri, error):
            raise
        if type(error).__name__ == "NoCredentialsError":
            reason = "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        else:
            reason = " ".join(str(error).split()) or type(error).__name__
        raise StorageError(f"cannot {action} {uri}: {reason}") from error


def _is_of_store(uri: str, error: Exception) -> bool:
    """True for what an object store's failures are raised as."""
    if not is_remote(uri):
        return False
    from skinray.object_store import STORE_ERRORS

    return isinstance(error, STORE_ERRORS)


def exists(uri: str) -> bool:
    """True when a file or a non-empty prefix stands at `uri`."""
    with explained(uri, "look up"):
        return object_store(uri).is_there(path_of(uri)) if is_remote(uri) else os.path.exists(path_of(uri))


def is_folder(uri: str) -> bool:
    """True for a local folder, a bucket, and a prefix with objects below it that is no object itself."""
    with explained(uri, "look up"):
        try:
            return bool(filesystem(uri).info(path_of(uri))["type"] == "directory")
        except FileNotFoundError:
            return False


def check_answers(uri: str) -> None:
    """Asks whether the place where files were found is there at all.

    Args:
        uri: Anything in an object store: that it is not there, or denied, is an answer. Or a local folder with files at any
            depth: of a disk that went away the folder is gone, or an empty one is left.

    Raises:
        StorageError: It is not.
    """
    if not is_remote(uri):
        with explained(uri, "list"), os.scandir(path_of(uri)) as entries:
            if all(entry.name.startswith(".") for entry in entries):
                raise StorageError(f"{uri} is empty, and held files before: is its disk still there?")
        return
    try:
        exists(uri)
    except StorageError as error:
        if not isinstance(error.__cause__, PermissionError):
            raise


def read_bytes(uri: str) -> bytes:
    """The whole content of one file."""
    with explained(uri, "read"):
        return object_store(uri).read(path_of(uri)) if is_remote(uri) else Path(path_of(uri)).read_bytes()


def read_if_there(uri: str) -> bytes | None:
    """The whole content of one file; None when it is not there."""
    try:
        return read_bytes(uri)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def read_range(uri: str, start: int, end: int) -> bytes:
    """The bytes of one file from `start` up to `end`; fewer when it ends before."""
    with explained(uri, "read"):
        data: bytes = filesystem(uri).cat_file(path_of(uri), start=start, end=end)
        return data


def write_bytes(uri: str, data: bytes) -> None:
    """Writes one file so that a reader sees either all of it or none (rename on disk; a PUT is atomic on S3)."""
    with explained(uri, "write"):
        if is_remote(uri):
            filesystem(uri).pipe_file(path_of(uri), data)
            return
        path = Path(path_of(uri))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def create_file(uri: str, data: bytes) -> bool:
    """Writes a file that is not there yet; of several processes that do so at once, one does.

    It appears whole, but on a disk that knows no hard links, where a reader, and a kill, may meet it before all of it is written.

    Returns:
        False when another one was first.
    """
    with explained(uri, "write"):
        if is_remote(uri):
            return object_store(uri).create(path_of(uri), data)
        path = Path(path_of(uri))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        try:
            _write_through(temporary, data, "wb")
            try:
                os.link(temporary, path)
            except FileExistsError:
                # Over NFS the link may be made, its answer lost, and the call made again.
                return temporary.stat().st_nlink > 1
            except OSError:
                return _create_in_place(path, data)
        finally:
            temporary.unlink(missing_ok=True)
        return True


def _create_in_place(path: Path, data: bytes) -> bool:
    try:
        _write_through(path, data, "xb")
    except FileExistsError:
        return False
    return True


def _write_through(path: Path, data: bytes, mode: str) -> None:
    """Writes a file and waits until the disk has it: of a link, unlike of a rename, a power cut may leave an empty file."""
    with path.open(mode) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def is_temporary(name: str) -> bool:
    """True for the name of a file that a kill left before it was whole."""
    return name.startswith(".") and name.endswith(_TEMPORARY)


def _temporary(path: Path) -> Path:
    """A hidden name beside a file, for what is not whole yet."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{_TEMPORARY}")


class HashedFile:
    """A file that is written from the beginning to the end, and knows its size and SHA-256 on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash = file, hashlib.sha256()
        self.size = 0
        self.closed = False

    @property
    def sha256(self) -> str:
        """Of what was written so far, 64 hexadecimal digits."""
        return self._hash.hexdigest()

    def write(self, data: bytes) -> int:
        """Appends."""
        self._hash.update(data)
        self.size += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        """The bytes written so far."""
        return self.size

    def flush(self) -> None:
        """Nothing is held back here."""

    def close(self) -> None:
        """Marks the end for those who ask; the file itself is closed by who opened it."""
        self.closed = True


@contextlib.contextmanager
def writing(uri: str) -> Iterator[HashedFile]:
    """A file to write bit by bit, on disk whatever its size; it appears at `uri`, whole, if the block ends without an error."""
    remote, target = is_remote(uri), Path(path_of(uri))
    temporary = _temporary(Path(tempfile.gettempdir()) / target.name if remote else target)
    with explained(uri, "write"):
        temporary.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                yield HashedFile(file)
            if remote:
                filesystem(uri).put_file(str(temporary), path_of(uri))
            else:
                temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def reading(uri: str, ahead_bytes: int | None = None) -> Iterator[BinaryIO]:
    """A file to read bit by bit, at any place of it.

    Args:
        uri: The file.
        ahead_bytes: How much to fetch beyond what is asked for, from an object store; as s3fs thinks right unless given.
    """
    with explained(uri, "read"), filesystem(uri).open(path_of(uri), "rb", block_size=ahead_bytes) as file:
        yield file


def read_json(uri: str) -> Any:
    """The parsed content of one JSON file."""
    data = read_bytes(uri)
    try:
        return json.loads(data)
    except ValueError as error:
        raise StorageError(f"cannot read {uri}: it is not JSON ({error})") from error


def write_parquet(uri: str, table: pd.DataFrame) -> None:
    """Writes a table as one Parquet file, without the numbers of its rows."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    write_bytes(uri, buffer.getvalue())


def read_parquet(uri: str) -> pd.DataFrame:
    """Reads one Parquet file as a table."""
    table: pd.DataFrame = pd.read_parquet(io.BytesIO(read_bytes(uri)))
    return table


def write_json(uri: str, value: Any) -> None:
    """Writes one JSON file, indented and with sorted keys, so that the same value gives the same bytes."""
    write_bytes(uri, encoded_json(value))


def encoded_json(value: Any) -> bytes:
    """A JSON file's bytes, the same for equal values."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def delete_file(uri: str) -> None:
    """Removes one file; nothing happens when it is not there."""
    with explained(uri, "remove"), contextlib.suppress(FileNotFoundError):
        filesystem(uri).rm_file(path_of(uri))


def delete_folder(uri: str) -> None:
    """Removes a folder or prefix with everything below it; nothing happens when it is not there."""
    with explained(uri, "remove"), contextlib.suppress(FileNotFoundError):
        if is_remote(uri):
            object_store(uri).remove_below(path_of(uri))
        else:
            filesystem(uri).rm(path_of(uri), recursive=True)


def upload_folder(local: Path, uri: str) -> None:
    """Copies every file below a local folder to `uri`, file by file, each one atomically."""
    for path in sorted(local.rglob("*")):
        if path.is_file():
            write_bytes(join(uri, path.relative_to(local).as_posix()), path.read_bytes())


def sha256_of(data: bytes) -> str:
    """The SHA-256 of some bytes, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def read_many(uris: list[str]) -> list[bytes | Exception]:
    """The contents of many files, fetched side by side where their store can; a failure stands in its place.

    Args:
        uris: Files, on a disk and in object stores as they come.

    Returns:
        Bytes, or the exception that reading this one raised, in the order of `uris`: a FileNotFoundError when it is not there.
    """
    remote = [uri for uri in uris if is_remote(uri)]
    fetched = iter(_read_objects(remote) if remote else [])
    return [next(fetched) if is_remote(uri) else _read_local(uri) for uri in uris]


def _read_objects(uris: list[str]) -> list[bytes | Exception]:
    from skinray.object_store import READ_THREADS

    with ThreadPoolExecutor(min(READ_THREADS, len(uris)), thread_name_prefix="read") as threads:
        contents = list(threads.map(_read_object, uris))
        # Those that a bad minute of the store swallowed, once more at its end: of a million photos that are read while a fifth of
        # all calls fail, 3 come here, and none is lost. Not when most failed: then the store is away, and every batch would wait
        # for it twice.
        failed = [place for place, content in enumerate(contents) if isinstance(content, StorageError)]
        if 2 * len(failed) <= len(uris):
            for place, content in zip(failed, threads.map(_read_object, [uris[place] for place in failed]), strict=True):
                contents[place] = content
    return contents


def _read_local(uri: str) -> bytes | Exception:
    try:
        # fsspec's way to a local file costs four times the reading of a 25 KB photo.
        with open(path_of(uri), "rb") as file:
            return file.read()
    except Exception as error:
        return error


def _read_object(uri: str) -> bytes | Exception:
    try:
        return read_bytes(uri)
    except StorageError as error:
        return error.__cause__ if isinstance(error.__cause__, FileNotFoundError) else error
