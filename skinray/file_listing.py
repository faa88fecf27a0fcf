"""What lies below a folder or prefix, without reading it: listed, copied, or looked for after others wrote it."""

import os
from collections.abc import Iterator
from typing import NamedTuple

from skinray import storage
from skinray.errors import StorageError


class Entry(NamedTuple):
    """A file of a listing.

    Attributes:
        size: In bytes.
        version: Changes whenever the content does: an object's ETag, a local file's time of change.
    """

    size: int
    version: str


def list_files(uri: str) -> dict[str, int]:
    """Every file below a folder or prefix, as `list_entries` has them -> size in bytes."""
    return {path: entry.size for path, entry in list_entries(uri).items()}


def list_entries(uri: str) -> dict[str, Entry]:
    """Every file below a folder or prefix, at any depth, without hidden files and folders.

    Args:
        uri: A folder or prefix.

    Returns:
        Path relative to `uri`, with `/`, sorted -> what is known of it without reading it.

    Raises:
        StorageError: Nothing is there, or it cannot be read.
    """
    with storage.explained(uri, "list"):
        root = storage.path_of(uri)
        if storage.is_remote(uri):
            found = storage.filesystem(uri).find(root, detail=True)
            if not found or root in found:
                raise StorageError(f"cannot list {uri}: {'it is not a folder' if found else 'it does not exist'}")
            entries = {
                path[len(root) :].lstrip("/"): Entry(
                    int(each["size"]), str(each.get("ETag") or each.get("LastModified")).strip('"')
                )
                for path, each in found.items()
            }
        else:
            if not os.path.isdir(root):
                raise StorageError(f"cannot list {uri}: {'it is not a folder' if os.path.exists(root) else 'it does not exist'}")
            entries = {path[len(root) :].lstrip("/"): entry for path, entry in _walk(root)}
    return {path: entry for path, entry in sorted(entries.items()) if not _is_hidden(path)}


def _walk(root: str) -> Iterator[tuple[str, Entry]]:
    """Every file below a local folder; links count as what they point to, but folders are not followed."""
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path)
            elif entry.is_file():
                about = entry.stat()
                yield entry.path, Entry(about.st_size, str(about.st_mtime_ns))


def _is_hidden(relative_path: str) -> bool:
    return any(part.startswith(".") for part in relative_path.split("/"))


def copy_folder(source: str, uri: str) -> None:
    """Copies every file below `source` to `uri`, file by file, each one atomically."""
    for path in list_files(source):
        storage.write_bytes(storage.join(uri, path), storage.read_bytes(storage.join(source, path)))


def check_written(uri: str, sizes: dict[str, int]) -> None:
    """Looks for every file that the workers say they wrote, from here: without a shared disk they lie on other machines.

    Args:
        uri: The folder.
        sizes: Path below it -> size in bytes.

    Raises:
        StorageError: A file is not there, or has another size.
    """
    found = list_files(uri)
    lost = [path for path, size in sizes.items() if found.get(path) != size]
    if lost:
        raise StorageError(
            f"{len(lost)} of {len(sizes)} files written to {uri} are not there, the first is {lost[0]}: "
            "on several machines the output must be s3:// or a disk that they share"
        )
