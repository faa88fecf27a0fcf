"""Photos on a disk that goes away while they are read: they are not at fault, and the run stops; those that were deleted are."""

import errno
import io
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from skinray import photos, storage
from skinray.errors import StorageError
from skinray.images import Preprocessing
from skinray.listing import Listing, list_photos
from skinray.photos import Block, read_and_decode


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Six photos in two folders, and where their disk is mounted."""
    folder = tmp_path / "mnt" / "archive"
    for number in range(6):
        storage.write_bytes(str(folder / f"visit {number // 3}" / f"{number}.png"), photo(number))
    return folder


def photo(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((20, 20, 3), 40 * number, np.uint8)).save(file, "PNG")
    return file.getvalue()


def read(listing: Listing, at_once: int = 3) -> list[Block]:
    plan = listing.photos.append_column("block", listing.photos["index"])
    return [*read_and_decode(plan, at_once, Preprocessing(image_size_px=16), refuse=False, folder=listing.folder)]


def codes(listing: Listing, at_once: int = 3) -> list[str]:
    return [str(code) for block in read(listing, at_once) for code in block["error_code"]]


def listing_of(archive: Path, kind: str) -> Listing:
    """The photos of the archive as folder, Parquet shard in it, or manifest that lies elsewhere."""
    source = archive
    if kind == "shard":
        source = archive / "night.parquet"
        pq.write_table(pa.table({"image_bytes": [photo(number) for number in range(6)]}), source)
    elif kind == "manifest":
        source = archive.parent.parent / "night.csv"
        paths = [*sorted(archive.rglob("*.png")), "/elsewhere/and/not/there.png"]
        source.write_text("\n".join(["path", *(str(path) for path in paths)]))
    return list_photos(str(source), 192, "path")


@pytest.mark.parametrize("left", ["nothing", "mount point", "hidden file"])
@pytest.mark.parametrize("kind", ["folder", "shard", "manifest"])
def test_a_disk_that_goes_away_stops_the_run_and_costs_no_photo(archive: Path, tmp_path: Path, kind: str, left: str) -> None:
    listing = listing_of(archive, kind)
    before = codes(listing)
    archive.rename(tmp_path / "away")
    if left != "nothing":
        archive.mkdir()
    if left == "hidden file":
        (archive / ".mount").touch()
    with pytest.raises(StorageError, match=r"archive(:| is empty)"):
        read(listing)
    if left == "hidden file":
        (archive / ".mount").unlink()
    if left != "nothing":
        archive.rmdir()
    (tmp_path / "away").rename(archive)
    assert codes(listing) == before
    assert before == [""] * 6 + ["missing"] * (kind == "manifest")


def test_a_disk_that_goes_away_amid_a_block_stops_the_run(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = list_photos(str(archive), 192, "path")
    read_local = storage._read_local

    def unmounting(uri: str) -> Any:
        data = read_local(uri)
        if uri.endswith("1.png"):
            archive.rename(tmp_path / "away")
        return data

    monkeypatch.setattr(storage, "_read_local", unmounting)
    with pytest.raises(StorageError, match="it does not exist"):
        read(listing, 6)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EHOSTDOWN])
@pytest.mark.parametrize("whole", [True, False])
def test_a_disk_that_fails_stops_the_run_and_a_file_that_fails_is_a_row(
    archive: Path, monkeypatch: pytest.MonkeyPatch, number: int, whole: bool
) -> None:
    listing = list_photos(str(archive), 192, "path")
    read_local, scandir, tried = storage._read_local, os.scandir, []

    def failing(uri: str) -> bytes | Exception:
        tried.append(uri)
        return OSError(number, os.strerror(number)) if whole or uri.endswith("1.png") else read_local(uri)

    def listed(path: str) -> Any:
        if whole:
            raise OSError(number, os.strerror(number))
        return scandir(path)

    monkeypatch.setattr(storage, "_read_local", failing)
    monkeypatch.setattr(os, "scandir", listed)
    if whole:
        with pytest.raises(StorageError, match=f"cannot list {archive}"):
            read(listing)
    else:
        assert codes(listing) == ["", "unreadable", "", "", "", ""]
        assert len(tried) == 6 + 1


def test_photos_of_a_disk_that_comes_back_at_once_are_read(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = list_photos(str(archive), 192, "path")
    read_local, lost = storage._read_local, set(listing.photos["image_uri"].to_pylist()[1:])

    def reads(uri: str) -> bytes | Exception:
        if uri in lost:
            lost.remove(uri)
            return FileNotFoundError(uri)
        return read_local(uri)

    monkeypatch.setattr(storage, "_read_local", reads)
    blocks = read(listing)
    assert [str(status) for block in blocks for status in block["status"]] == ["scored"] * 6
    assert [int(pixels[0, 0, 0]) for block in blocks for pixels in block["pixels"]] == [40 * number for number in range(6)]


def test_photos_that_were_deleted_are_rows_that_say_so(archive: Path) -> None:
    listing = list_photos(str(archive), 192, "path")
    for path in archive.glob("visit 0/*"):
        path.unlink()
    assert codes(listing) == ["missing"] * 3 + [""] * 3
    (archive / "visit 0").rmdir()
    assert codes(listing) == ["missing"] * 3 + [""] * 3


@pytest.mark.skipif(sys.platform != "linux", reason="a thread has no priority of its own there")
def test_a_decode_task_gives_way_and_its_process_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def priorities(plan: pa.Table, **options: Any) -> Iterator[Any]:
        for _ in range(plan.num_rows):
            yield os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = os.getpriority(os.PRIO_PROCESS, 0)
    assert before < 19
    monkeypatch.setattr(photos, "read_and_decode", priorities)
    assert [*photos._read_and_decode_in_gaps(pa.table({"row": [0, 1]}))] == [19, 19]
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


def test_what_ends_a_decode_task_is_not_swallowed(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = list_photos(str(archive), 192, "path")
    plan = listing.photos.append_column("block", listing.photos["index"])
    options: dict[str, Any] = {"rows_at_once": 3, "preprocessing": Preprocessing(image_size_px=16), "refuse": False}
    assert [len(block["status"]) for block in photos._read_and_decode_in_gaps(plan, **options)] == [3, 3]

    def fails(*_: Any) -> None:
        raise StorageError("gone")

    monkeypatch.setattr(photos, "_decoded", fails)
    with pytest.raises(StorageError, match="gone"):
        next(photos._read_and_decode_in_gaps(plan, **options))
