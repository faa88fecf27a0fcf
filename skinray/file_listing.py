"""What lies below a folder or prefix, without reading it: listed, copied, or looked for after others wrote it."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
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


# Of what is there and cannot be looked up: a link to nothing, to itself or into a closed folder. Reading says what is wrong.
UNKNOWN = Entry(0, "")


def list_files(uri: str) -> dict[str, int]:
    """Every file below a folder or prefix, as `list_entries` has them -> size in bytes."""
    return {path: entry.size for path, entry in list_entries(uri).items()}


def list_entries(uri: str) -> dict[str, Entry]:
    """What `iterate_entries` finds, all of it at once and sorted: path -> entry."""
    return dict(sorted(iterate_entries(uri)))


def iterate_entries(uri: str) -> Iterator[tuple[str, Entry]]:
    """Every file below a folder or prefix, at any depth, without hidden files and folders, as it is found.

    Holds a page of the store's listing at a time, which is a thousand objects, or the names of one local folder and of those
    above it. A file that is deleted meanwhile may be there or not.

    Args:
        uri: A folder or prefix.

    Yields:
        Path relative to `uri`, with `/`, as `storage.escaped` writes it, in the order of their characters on a disk and in a
        bucket alike (but where a store keeps no order); and what is known of it without reading it.

    Raises:
        StorageError: Nothing is there, or it cannot be read.
    """
    root = storage.path_of(uri)
    with storage.explained(uri, "list"):
        if storage.is_remote(uri):
            yield from _objects(uri, root)
            return
        if not os.path.isdir(root):
            raise StorageError(f"cannot list {uri}: {'it is not a folder' if os.path.exists(root) else 'it does not exist'}")
        for path, entry in _walk(root, (os.path.realpath(root),), frozenset()):
            yield storage.escaped(path[len(root) :].lstrip("/")), entry


def entry_of(uri: str) -> Entry:
    """One file as `iterate_entries` would find it.

    Raises:
        StorageError: It is not there, or cannot be looked up.
    """
    with storage.explained(uri, "look up"):
        if storage.is_remote(uri):
            about = storage.filesystem(uri).info(storage.path_of(uri))
            return Entry(int(about["size"]), str(about.get("ETag") or about.get("LastModified")).strip('"'))
        found = Path(storage.path_of(uri)).stat()
        return Entry(found.st_size, str(found.st_mtime_ns))


def _objects(uri: str, root: str) -> Iterator[tuple[str, Entry]]:
    prefix = root.partition("/")[2]
    begin = len(prefix) + 1 if prefix else 0
    found = False
    for page in storage.object_store(uri).pages_below(root):
        found = found or bool(page)
        for each in page:
            path = each["Key"][begin:]
            # What ends in a slash is the folder that a browser's "new folder" made, and no file.
            if path and not path.endswith("/") and not _is_hidden(path):
                yield path, Entry(int(each["Size"]), str(each.get("ETag") or each.get("LastModified")).strip('"'))
    if not found:
        raise StorageError(f"cannot list {uri}: {'it is not a folder' if storage.exists(uri) else 'it does not exist'}")


def _walk(folder: str, roots: tuple[str, ...], above: frozenset[tuple[int, int]]) -> Iterator[tuple[str, Entry]]:
    """Every file below a local folder; links count as what they point to.

    Args:
        folder: Its path.
        roots: The real paths of the folder that is listed and of those to which links led on the way; a link to a folder that is
            found below one of them without it would list that one twice.
        above: Device and inode of the folders that it lies in, which a link may lead back to.
    """
    about = Path(folder).stat()
    itself = (about.st_dev, about.st_ino)
    if itself in above:
        return
    names: dict[str, tuple[str, ...]] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_hidden(entry.name):
                continue
            if not _is_folder(entry):
                names[entry.name] = ()
                continue
            target = os.path.realpath(entry.path) if entry.is_symlink() else None
            if target is None or not any(_is_found_below(root, target) for root in roots):
                # With its slash a folder stands where its files do in the order of all paths: "a.jpg", "a/b.jpg", "a0.jpg".
                names[f"{entry.name}/"] = roots if target is None else (*roots, target)
    for name in sorted(names):
        path = os.path.join(folder, name)
        if name.endswith("/"):
            yield from _walk(path, names[name], above | {itself})
        elif found := _looked_up(path):
            yield path, found


def _is_found_below(root: str, folder: str) -> bool:
    """True when a walk through `root` comes to a folder without a link: it lies in it, and nothing on the way is hidden."""
    return f"{folder}/".startswith(f"{root}/") and not _is_hidden(folder[len(root) :])


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a closed folder
        return False


def _looked_up(path: str) -> Entry | None:
    """A local file; None for what is none, or was deleted meanwhile."""
    try:
        about = Path(path).stat()
    except OSError as error:
        return None if isinstance(error, FileNotFoundError) and not Path(path).is_symlink() else UNKNOWN
    return Entry(about.st_size, str(about.st_mtime_ns)) if stat.S_ISREG(about.st_mode) else None


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
