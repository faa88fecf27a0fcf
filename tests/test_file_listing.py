"""Listings as they are found: in one order on a disk and in a bucket, without what is no file."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skinray import file_listing, storage
from skinray.errors import StorageError

# Around the slash in the order of characters, and beyond one byte.
NAMES = st.text("a-./0é", min_size=1, max_size=4).filter(lambda name: not name.startswith("."))


@settings(deadline=None, max_examples=60)
@given(paths=st.sets(st.lists(NAMES.map(lambda name: name.replace("/", "_")), min_size=1, max_size=3).map("/".join), max_size=12))
def test_files_come_in_the_order_of_their_paths(tmp_path_factory: pytest.TempPathFactory, paths: set[str]) -> None:
    root = tmp_path_factory.mktemp("listed")
    made = set()
    for path in sorted(paths):
        if not any(path.startswith(f"{other}/") or other.startswith(f"{path}/") for other in made):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(b"x" * len(path))
            made.add(path)
    found = list(file_listing.iterate_entries(str(root)))
    assert [path for path, _ in found] == sorted(made)
    assert all(entry.size == len(path) for path, entry in found)
    assert file_listing.list_entries(str(root)) == dict(found)


@pytest.mark.s3
def test_a_bucket_lists_in_the_same_order_as_a_disk(s3_bucket: str, tmp_path: Path) -> None:
    for path in ("a.jpg", "a/b.jpg", "a0.jpg", "a-b/é.jpg", "a/b/c d+e%.jpg", "é/a.jpg", "z"):
        for place in (s3_bucket, str(tmp_path)):
            storage.write_bytes(storage.join(place, "photos", path), path.encode())
    disk, bucket = (dict(file_listing.iterate_entries(storage.join(place, "photos"))) for place in (str(tmp_path), s3_bucket))
    assert list(disk) == list(bucket) == sorted(disk)
    assert [entry.size for entry in disk.values()] == [entry.size for entry in bucket.values()]


@pytest.mark.s3
def test_what_a_browser_makes_for_a_folder_is_no_file(s3_bucket: str) -> None:
    store = storage.object_store(s3_bucket)
    for key in ("photos/", "photos/left/", "empty/"):
        store.call_s3("put_object", Bucket=s3_bucket.removeprefix("s3://"), Key=key, Body=b"")
    storage.write_bytes(f"{s3_bucket}/photos/left/a.jpg", b"x")
    assert file_listing.list_files(f"{s3_bucket}/photos") == {"left/a.jpg": 1}
    assert file_listing.list_files(f"{s3_bucket}/empty") == {}
    storage.delete_folder(f"{s3_bucket}/photos")
    assert file_listing.list_files(s3_bucket) == {}


def test_links_count_as_files_and_what_cannot_be_read_as_one_does_not(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.jpg").write_bytes(b"abc")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "folder" / "a.jpg")
    (tmp_path / "nowhere.jpg").symlink_to(tmp_path / "none.jpg")
    (tmp_path / "linked folder").symlink_to(tmp_path / "folder")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert file_listing.list_files(str(tmp_path)) == {"folder/a.jpg": 3, "link.jpg": 3}


def test_a_file_that_goes_while_its_folder_is_listed_is_left_out(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_bytes(b"")
    found = file_listing.iterate_entries(str(tmp_path))
    assert next(found)[0] == "a"
    (tmp_path / "b").unlink()
    assert [path for path, _ in found] == ["c"]


def test_a_folder_that_goes_while_it_is_listed_is_named(tmp_path: Path) -> None:
    for name in ("a/x", "b/x"):
        storage.write_bytes(str(tmp_path / name), b"")
    found = file_listing.iterate_entries(str(tmp_path))
    next(found)
    (tmp_path / "b" / "x").unlink()
    (tmp_path / "b").rmdir()
    with pytest.raises(StorageError, match="cannot list"):
        list(found)
