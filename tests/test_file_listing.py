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


def test_links_count_as_what_they_point_to_and_nothing_is_listed_twice(tmp_path: Path) -> None:
    archive, disk = tmp_path / "archive", tmp_path / "disk"
    (archive / "2023").mkdir(parents=True)
    (disk / "deep").mkdir(parents=True)
    (archive / "2023" / "a.jpg").write_bytes(b"abc")
    (disk / "deep" / "b.jpg").write_bytes(b"four")
    (archive / "link.jpg").symlink_to(archive / "2023" / "a.jpg")
    (archive / "nowhere.jpg").symlink_to(tmp_path / "none.jpg")
    (archive / "itself.jpg").symlink_to(archive / "itself.jpg")
    os.mkfifo(archive / "pipe.jpg")
    (archive / "2024").symlink_to(disk)
    (archive / "latest").symlink_to(archive / "2023")
    (archive / "2023" / "above").symlink_to(archive)
    (disk / "deep" / "above").symlink_to(disk)
    found = dict(file_listing.iterate_entries(str(archive)))
    assert {path: entry.size for path, entry in found.items() if entry != file_listing.UNKNOWN} == {
        "2023/a.jpg": 3,
        "2024/deep/b.jpg": 4,
        "link.jpg": 3,
    }
    assert [path for path, entry in found.items() if entry == file_listing.UNKNOWN] == ["itself.jpg", "nowhere.jpg"]


def test_a_link_to_a_hidden_folder_is_followed(tmp_path: Path) -> None:
    """As whoever switches between releases makes it, and as Kubernetes mounts a volume."""
    for path in (".releases/41/a.jpg", ".releases/42/a.jpg", ".releases/42/deep/b.jpg", "..2026/more/c.jpg", "seen/.old/d.jpg"):
        storage.write_bytes(str(tmp_path / path), b"x")
    (tmp_path / "photos").symlink_to(".releases/42")
    (tmp_path / ".releases" / "42" / "deep_again").symlink_to("deep")
    (tmp_path / ".releases" / "42" / "above").symlink_to("..")
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "more").symlink_to("..data/more")
    (tmp_path / "seen" / "old").symlink_to(".old")
    (tmp_path / "seen_again").symlink_to("seen")
    found = list(file_listing.list_files(str(tmp_path)))
    assert found == ["more/c.jpg", "photos/a.jpg", "photos/above/41/a.jpg", "photos/deep/b.jpg", "seen/old/d.jpg"]


@settings(deadline=None, max_examples=60)
@given(names=st.sets(st.text("\\x5c8\udce4é", min_size=1, max_size=6), max_size=6))
def test_names_of_any_bytes_can_be_written_and_are_found_again(tmp_path_factory: pytest.TempPathFactory, names: set[str]) -> None:
    root = tmp_path_factory.mktemp("listed")
    for name in names:
        (root / name).write_bytes(os.fsencode(name))
    found = [storage.join(str(root), path) for path in file_listing.list_files(str(root))]
    assert {uri.encode() and storage.read_bytes(uri) for uri in found} == {os.fsencode(name) for name in names}
    assert len(found) == len(names)


def test_a_folder_whose_name_is_no_utf8_is_listed(tmp_path: Path) -> None:
    folder = f"{tmp_path}/L\udce4sion"
    storage.write_bytes(f"{folder}/a.jpg", b"x")
    assert storage.join(folder, "a.jpg") == rf"{tmp_path}/L\xe4sion/a.jpg"
    assert file_listing.list_files(folder) == {"a.jpg": 1}


@pytest.mark.s3
def test_a_key_with_two_slashes_is_found_again(s3_bucket: str) -> None:
    for prefix in (s3_bucket, f"{s3_bucket}/archive"):
        keys = ["//a.jpg", "/a.jpg", "/b//a.jpg", "a.jpg", "b//a.jpg"]
        for key in keys:
            storage.write_bytes(f"{prefix}/{key}", key.encode())
        found = [path for path in file_listing.list_files(prefix) if not path.startswith("archive")]
        assert found == keys
        assert storage.read_many([storage.join(prefix, path) for path in found]) == [key.encode() for key in keys]


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
