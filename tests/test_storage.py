"""Reading, listing and atomic writing: the same rules on a disk and in a bucket."""

import contextlib
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skinray import file_listing, outputs, storage
from skinray.errors import StorageError


def refusal(action: Callable[[], Any], uri: str) -> str:
    """The message with which storage refuses, after checking that it is one line that names the URI."""
    with pytest.raises(StorageError) as caught:
        action()
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    assert uri in message
    return message


def names_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


# URIs


def test_a_local_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert storage.normalize("runs/one") == f"{tmp_path}/runs/one"
    assert storage.normalize("./runs/../runs/one/") == f"{tmp_path}/runs/one"
    assert storage.normalize("~/runs") == "/home/somebody/runs"
    assert storage.normalize("file:///data/runs/") == "/data/runs"


def test_a_bucket_uri_only_loses_its_last_slash() -> None:
    assert storage.normalize("s3://bucket/a/../b/") == "s3://bucket/a/../b"
    assert storage.path_of("s3://bucket/a/b/") == "bucket/a/b"
    assert storage.join("s3://bucket/a/", "b", "c.json") == "s3://bucket/a/b/c.json"


@pytest.mark.parametrize("uri", ["", " ", " runs", "runs\n", "s3://", "s3:///", "s3:///key"])
def test_what_names_no_place_is_refused(uri: str) -> None:
    with pytest.raises(StorageError):
        storage.normalize(uri)


@settings(deadline=None, max_examples=50)
@given(scheme=st.sampled_from(["", "s3://", "file:///"]), path=st.text(st.sampled_from("ab/.~:"), min_size=1))
def test_a_normal_uri_is_left_as_it_is(scheme: str, path: str) -> None:
    uri = scheme + path
    try:
        normal = storage.normalize(uri)
    except StorageError:
        return
    assert storage.normalize(normal) == normal
    assert storage.is_remote(normal) == storage.is_remote(uri)


@pytest.mark.parametrize("uri", ["gs://bucket/a", "http://127.0.0.1/a", "S3://bucket/a", "memory://a"])
@pytest.mark.parametrize("action", [storage.exists, storage.read_bytes, file_listing.list_files, storage.delete_folder])
def test_other_schemes_are_refused(action: Callable[[str], object], uri: str) -> None:
    assert "not supported" in refusal(lambda: action(uri), uri)


# Files


def test_what_is_written_is_read(place: str) -> None:
    uri = storage.join(place, "a", "b c ü.bin")
    assert not storage.exists(uri)
    storage.write_bytes(uri, bytes(range(256)))
    assert storage.exists(uri)
    assert storage.exists(storage.join(place, "a"))
    assert storage.read_bytes(uri) == bytes(range(256))
    storage.write_bytes(uri, b"")
    assert storage.read_bytes(uri) == b""


def test_equal_values_give_equal_json_bytes(place: str) -> None:
    one, two = storage.join(place, "one.json"), storage.join(place, "two.json")
    storage.write_json(one, {"b": [1, None, "é"], "a": 0.1})
    storage.write_json(two, {"a": 0.1, "b": [1, None, "é"]})
    assert storage.read_bytes(one) == storage.read_bytes(two)
    assert storage.read_json(one) == {"a": 0.1, "b": [1, None, "é"]}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00"])
def test_what_is_not_json_is_refused(place: str, content: bytes) -> None:
    uri = storage.join(place, "manifest.json")
    storage.write_bytes(uri, content)
    assert "not JSON" in refusal(lambda: storage.read_json(uri), uri)


def test_reading_what_is_not_there_names_it(place: str) -> None:
    uri = storage.join(place, "nothing", "here.json")
    assert "does not exist" in refusal(lambda: storage.read_bytes(uri), uri)


def test_a_write_into_a_file_as_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    uri = str(tmp_path / "file" / "below")
    refusal(lambda: storage.write_bytes(uri, b"x"), uri)
    assert (tmp_path / "file").read_bytes() == b"content"


def test_a_write_onto_a_folder_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    refusal(lambda: storage.write_bytes(str(tmp_path / "folder"), b"x"), str(tmp_path / "folder"))
    assert names_below(tmp_path) == {"folder"}


def write_on_a_full_disk(uri: str) -> str:
    """Writes 100 kB where a file of 1 kB is the largest; in a process of its own, because the limit holds for all its files."""
    script = """
import resource, sys
from skinray import file_listing, storage
from skinray.errors import StorageError
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    storage.write_bytes(sys.argv[1], bytes(100_000))
except StorageError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script, uri], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


def test_a_failed_write_leaves_the_old_content_and_no_other_file(tmp_path: Path) -> None:
    uri = str(tmp_path / "manifest.json")
    storage.write_bytes(uri, b"old")
    assert uri in write_on_a_full_disk(uri)
    assert (tmp_path / "manifest.json").read_bytes() == b"old"
    assert names_below(tmp_path) == {"manifest.json"}


def test_a_failed_first_write_leaves_no_file(tmp_path: Path) -> None:
    assert "manifest.json" in write_on_a_full_disk(str(tmp_path / "manifest.json"))
    assert names_below(tmp_path) == set()


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    uri = str(tmp_path / "state.bin")
    contents = {bytes([number]) * 200_000 for number in range(8)}
    storage.write_bytes(uri, min(contents))
    stopped = threading.Event()

    def write() -> None:
        while not stopped.is_set():
            for content in contents:
                storage.write_bytes(uri, content)

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(200):
            assert storage.read_bytes(uri) in contents
    finally:
        stopped.set()
        for writer in writers:
            writer.join()
    assert names_below(tmp_path) == {"state.bin"}


def test_a_written_file_can_be_read_by_others(tmp_path: Path) -> None:
    uri = str(tmp_path / "bundle.json")
    mask = os.umask(0o022)
    try:
        storage.write_bytes(uri, b"x")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "bundle.json").stat().st_mode) == 0o644


# Folders


def test_listing_is_sorted_relative_and_without_hidden_files(place: str) -> None:
    for path, size in {"b.jpg": 2, "a/z.jpg": 3, "a/b/c d.jpg": 4, ".hidden.jpg": 5, "a/.cache/x.jpg": 6, "a.jpg": 0}.items():
        storage.write_bytes(storage.join(place, "photos", path), bytes(size))
    storage.write_bytes(storage.join(place, "photos-of-others/d.jpg"), b"")
    listed = file_listing.list_files(storage.join(place, "photos"))
    assert list(listed.items()) == [("a.jpg", 0), ("a/b/c d.jpg", 4), ("a/z.jpg", 3), ("b.jpg", 2)]
    assert file_listing.list_files(storage.join(place, "photos") + "/") == listed


def test_listing_below_a_hidden_folder_shows_its_files(place: str) -> None:
    storage.write_bytes(storage.join(place, ".archive", "a.jpg"), b"x")
    assert file_listing.list_files(storage.join(place, ".archive")) == {"a.jpg": 1}


def test_a_listing_sees_what_was_written_since_the_last_one(place: str) -> None:
    folder = storage.join(place, "photos")
    storage.write_bytes(storage.join(folder, "a.jpg"), b"")
    assert set(file_listing.list_files(folder)) == {"a.jpg"}
    storage.write_bytes(storage.join(folder, "b.jpg"), b"")
    assert set(file_listing.list_files(folder)) == {"a.jpg", "b.jpg"}


def test_listing_what_is_not_there_is_refused(place: str) -> None:
    uri = storage.join(place, "nothing")
    assert "does not exist" in refusal(lambda: file_listing.list_files(uri), uri)


def test_listing_a_file_is_refused(place: str) -> None:
    uri = storage.join(place, "a.jpg")
    storage.write_bytes(uri, b"x")
    refusal(lambda: file_listing.list_files(uri), uri)


def test_an_empty_folder_lists_nothing(tmp_path: Path) -> None:
    assert file_listing.list_files(str(tmp_path)) == {}


def test_a_deleted_folder_is_gone_and_its_neighbour_is_not(place: str) -> None:
    for name in ("run", "run2"):
        storage.write_bytes(storage.join(place, name, "a", "b"), b"x")
    storage.delete_folder(storage.join(place, "run"))
    assert not storage.exists(storage.join(place, "run"))
    assert file_listing.list_files(place) == {"run2/a/b": 1}


def test_deleting_what_is_not_there_does_nothing(place: str) -> None:
    storage.delete_folder(storage.join(place, "nothing"))


def test_a_folder_comes_back_as_it_was_uploaded(place: str, tmp_path: Path) -> None:
    files = {"model.keras": bytes(range(256)), "a/b/c.json": b"{}", "empty": b""}
    for path, content in files.items():
        (tmp_path / "from" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "from" / path).write_bytes(content)
    storage.upload_folder(tmp_path / "from", storage.join(place, "stored"))
    stored = storage.join(place, "stored")
    assert {path: storage.read_bytes(storage.join(stored, path)) for path in file_listing.list_files(stored)} == files


# Many files


def test_a_name_that_looks_like_a_pattern_is_a_name(place: str) -> None:
    uris = [storage.join(place, name) for name in ("a [1].jpg", "b*.jpg", "what?.jpg")]
    for uri in uris:
        storage.write_bytes(uri, uri.encode())
    assert storage.read_many(uris) == [uri.encode() for uri in uris]


def test_files_that_lie_elsewhere_are_missed_before_publishing(place: str) -> None:
    storage.write_bytes(storage.join(place, "run/part-0.parquet"), b"123")
    file_listing.check_written(storage.join(place, "run"), {"part-0.parquet": 3})
    for wrong in ({"part-0.parquet": 4}, {"part-0.parquet": 3, "part-1.parquet": 3}):
        with pytest.raises(StorageError, match="disk that they share"):
            file_listing.check_written(storage.join(place, "run"), wrong)


def test_many_files_come_in_the_order_asked_for(place: str) -> None:
    uris = [storage.join(place, f"{number}.bin") for number in range(9)]
    for number, uri in enumerate(uris):
        storage.write_bytes(uri, bytes([number]))
    asked = [uris[5], uris[0], uris[8], uris[0]]
    assert storage.read_many(asked) == [b"\x05", b"\x00", b"\x08", b"\x00"]
    assert storage.read_many(uris[:1]) == [b"\x00"]
    assert storage.read_many([]) == []


@pytest.mark.s3
def test_many_files_may_lie_on_a_disk_and_in_a_bucket(s3_bucket: str, tmp_path: Path) -> None:
    disk, bucket = str(tmp_path / "a"), f"{s3_bucket}/b"
    storage.write_bytes(disk, b"disk")
    storage.write_bytes(bucket, b"bucket")
    for first, last in ((disk, bucket), (bucket, disk)):
        found = storage.read_many([first, f"file://{disk}", f"{disk}0", f"{bucket}0", last])
        assert [each if isinstance(each, bytes) else type(each) for each in found] == [
            storage.read_bytes(first),
            b"disk",
            FileNotFoundError,
            FileNotFoundError,
            storage.read_bytes(last),
        ]


def test_what_cannot_be_read_stands_in_its_place_among_many(place: str) -> None:
    there, missing, folder = (storage.join(place, name) for name in ("there.bin", "missing.bin", "folder"))
    storage.write_bytes(there, b"x")
    storage.write_bytes(storage.join(folder, "file.bin"), b"y")
    contents = storage.read_many([missing, there, folder, there])
    assert [type(content) for content in contents[1::2]] == [bytes, bytes]
    assert isinstance(contents[0], FileNotFoundError)
    assert isinstance(contents[2], OSError)


@pytest.mark.parametrize("count", [1, 2])
def test_many_files_may_all_be_missing(place: str, count: int) -> None:
    contents = storage.read_many([storage.join(place, f"{number}.bin") for number in range(count)])
    assert [type(content) for content in contents] == [FileNotFoundError] * count


@pytest.mark.parametrize("links", [True, False])
def test_a_file_is_created_by_one_whether_the_disk_knows_links_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError("the disk knows no hard links")

    if not links:
        monkeypatch.setattr(os, "link", refused)
    uri = str(tmp_path / "deep" / "claim.json")
    assert storage.create_file(uri, b"first")
    assert not storage.create_file(uri, b"second")
    assert {path.name: path.read_bytes() for path in (tmp_path / "deep").iterdir()} == {"claim.json": b"first"}


def test_a_link_whose_answer_was_lost_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def made_twice(*paths: Path) -> None:
        link(*paths)
        link(*paths)

    monkeypatch.setattr(os, "link", made_twice)
    assert storage.create_file(str(tmp_path / "claim.json"), b"mine")
    assert not storage.create_file(str(tmp_path / "claim.json"), b"other")


# What a store answers when it cannot be used


ACTIONS: dict[str, Callable[[str], object]] = {
    "exists": storage.exists,
    "read": storage.read_bytes,
    "list": file_listing.list_files,
    "delete": storage.delete_folder,
    "write": lambda uri: storage.write_bytes(uri, b"x"),
    "claim": lambda uri: outputs.claim_folder(uri, "dataset", {}),
    "publish": lambda uri: outputs.publish_folder(uri, {}),
}


@pytest.fixture
def fresh_s3(s3_bucket: str) -> Iterator[str]:
    """A bucket whose next use reads the environment again."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    yield s3_bucket
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def dead_endpoint(fresh_s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: every connection is refused
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        yield endpoint


@pytest.mark.s3
@pytest.mark.parametrize("name", ["read", "list", "write", "claim", "publish"])
def test_a_missing_bucket_is_named(s3_bucket: str, name: str) -> None:
    uri = "s3://no-such-bucket/a/b"
    assert "does not exist" in refusal(lambda: ACTIONS[name](uri), uri)


@pytest.mark.s3
def test_nothing_exists_in_a_missing_bucket(s3_bucket: str) -> None:
    assert not storage.exists("s3://no-such-bucket/a/b")


@pytest.mark.s3
def test_an_endpoint_that_does_not_answer_is_named_by_every_action(fresh_s3: str, dead_endpoint: str) -> None:
    uri = f"{fresh_s3}/a/b"
    messages = {name: refusal(partial(action, uri), uri) for name, action in ACTIONS.items()}
    assert [name for name, message in messages.items() if dead_endpoint not in message] == []


@pytest.mark.s3
def test_absent_credentials_are_named_by_every_action(fresh_s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    uri = f"{fresh_s3}/a/b"
    messages = {name: refusal(partial(action, uri), uri) for name, action in ACTIONS.items()}
    said = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    assert [name for name, message in messages.items() if said not in message] == []


@pytest.mark.s3
def test_many_files_of_a_store_that_does_not_answer_are_all_failures(fresh_s3: str, dead_endpoint: str) -> None:
    contents = storage.read_many([f"{fresh_s3}/a", f"{fresh_s3}/b"])
    assert len(contents) == 2
    assert all(isinstance(content, Exception) for content in contents)


@pytest.mark.s3
def test_pyarrow_reads_what_storage_wrote(s3_bucket: str) -> None:
    uri = f"{s3_bucket}/a.bin"
    storage.write_bytes(uri, b"content")
    with storage.arrow_filesystem(uri).open_input_stream(storage.path_of(uri)) as stream:
        assert stream.read() == b"content"


@pytest.mark.parametrize("where", ["disk", pytest.param("bucket", marks=pytest.mark.s3)])
def test_a_file_written_bit_by_bit_appears_whole_or_not_at_all(
    where: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    root = str(tmp_path / "out") if where == "disk" else request.getfixturevalue("s3_bucket")
    uri = storage.join(root, "part")
    with storage.writing(uri) as file:
        for part in (b"one ", b"two ", b"three"):
            file.write(part)
        assert not storage.exists(uri)
        assert (file.tell(), file.sha256) == (13, storage.sha256_of(b"one two three"))
    assert storage.read_bytes(uri) == b"one two three"
    with contextlib.suppress(KeyError), storage.writing(storage.join(root, "other")) as file:
        file.write(b"half")
        raise KeyError
    assert list(file_listing.list_files(root)) == ["part"]
    if where == "disk":
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["part"]
