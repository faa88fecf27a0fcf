"""A store that throttles, fails, cuts connections and loses answers: what is read, written and listed is right all the same."""

import asyncio
import io
import pickle
import random
import tarfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import EndpointConnectionError
from PIL import Image
from s3fs.core import S3File

from skinray import file_listing, object_store, outputs, storage
from skinray.errors import StorageError
from skinray.images import Preprocessing
from skinray.listing import list_photos
from skinray.photos import read_and_decode
from skinray.shard_listing import list_shard
from tests import faulty_s3
from tests.faulty_s3 import Faults, FaultyProxy

pytestmark = pytest.mark.s3

SMALL = Preprocessing(image_size_px=16)
BAD: dict[str, Any] = {"slow_down": 0.2, "internal": 0.05, "cut": 0.1, "slow": 0.05}
# An answer is tried eight times, and so is a body.
PASSING: dict[str, Any] = {"most_in_a_row": 5}


@pytest.fixture(autouse=True)
def waits(s3_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited between attempts, of which a hundredth really was."""
    waited: list[float] = []
    sleep = asyncio.sleep

    async def short(seconds: float, *result: Any) -> Any:
        if threading.current_thread().name != "faulty-s3":
            waited.append(seconds)
            seconds /= 100
        return await sleep(seconds, *result)

    monkeypatch.setattr(asyncio, "sleep", short)
    return waited


def contents_of(bucket: str, count: int, seed: int = 0) -> dict[str, bytes]:
    """What to write where: nothing, a few bytes, or some thousands."""
    draw = random.Random(seed)
    return {f"{bucket}/photos/{number:03d}.jpg": draw.randbytes(draw.choice([0, 1, 300, 30_000])) for number in range(count)}


def test_what_goes_through_a_bad_store_comes_back_as_it_was(s3_proxy: FaultyProxy, s3_bucket: str) -> None:
    contents = contents_of(s3_bucket, 150)
    with s3_proxy.misbehaving(Faults(**BAD, **PASSING)), ThreadPoolExecutor(8) as threads:
        list(threads.map(storage.write_bytes, contents, contents.values()))
        assert storage.read_many(list(contents)) == list(contents.values())
        listed = file_listing.list_files(f"{s3_bucket}/photos")
        assert all(storage.exists(uri) for uri in list(contents)[:20])
        assert not any(storage.exists(f"{uri}.gone") for uri in list(contents)[:20])
        for uri in list(contents)[:20]:
            storage.delete_file(uri)
        done = dict(s3_proxy.done)
    assert listed == {uri.rpartition("/")[2]: len(content) for uri, content in contents.items()}
    assert set(file_listing.list_files(s3_bucket)) == {f"photos/{number:03d}.jpg" for number in range(20, 150)}
    assert all(done.get(name, 0) > 5 for name in BAD), done


def test_tables_and_open_files_are_read_whole(s3_proxy: FaultyProxy, s3_bucket: str) -> None:
    table = pd.DataFrame({"row": range(5000), "text": [str(number) * 9 for number in range(5000)]})
    uri = f"{s3_bucket}/shards/a.parquet"
    storage.write_parquet(uri, table)
    raw = storage.read_bytes(uri)
    for seed in range(8):
        with s3_proxy.misbehaving(Faults(**BAD, **PASSING, seed=seed)):
            pd.testing.assert_frame_equal(storage.read_parquet(uri), table)
            file = pq.ParquetFile(storage.path_of(uri), filesystem=storage.arrow_filesystem(uri))
            pd.testing.assert_frame_equal(file.read().to_pandas(), table)
            with storage.reading(uri) as opened:
                opened.seek(1000)
                assert opened.read(3000) == raw[1000:4000]


@pytest.mark.parametrize("seed", range(4))
def test_a_large_file_is_uploaded_in_parts_whatever_happens_to_them(
    s3_proxy: FaultyProxy, s3_bucket: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "PART_BYTES", 5 << 20)  # no store takes less
    content = random.Random(seed).randbytes(1 << 20) * 11
    faults = Faults(slow_down=0.2, internal=0.1, cut=0.3, seed=seed, **PASSING)
    with s3_proxy.misbehaving(faults):
        with storage.writing(f"{s3_bucket}/large") as file:
            file.write(content)
        assert s3_proxy.calls["POST"] >= 2, "in parts"
    assert storage.sha256_of(storage.read_bytes(f"{s3_bucket}/large")) == file.sha256


def test_an_upload_whose_last_answer_is_lost_is_whole(
    s3_proxy: FaultyProxy, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "PART_BYTES", 5 << 20)
    content = bytes(range(256)) * (11 << 12)

    class Once(Faults):
        """Cuts the connection after the parts were put together, once."""

        def drawn(self, method: str, target: str) -> str:
            if method != "POST" or "uploadId=" not in target:
                return ""
            self.seen[method, "complete"] += 1
            if self.seen[method, "complete"] > 1:
                return ""
            self.seen[method, target] = 2  # an even number: after it was done
            return "cut"

    with s3_proxy.misbehaving(Once()):
        with storage.writing(f"{s3_bucket}/large") as file:
            file.write(content)
        assert s3_proxy.done["cut"] == 1
    assert storage.read_bytes(f"{s3_bucket}/large") == content


def test_a_file_is_created_once_when_answers_are_lost(s3_proxy: FaultyProxy, s3_bucket: str) -> None:
    uris = [f"{s3_bucket}/claims/{number}" for number in range(20)]
    with s3_proxy.misbehaving(Faults(cut=0.6, **PASSING)):
        assert all(storage.create_file(uri, b"mine") for uri in uris), "its own, done and asked for again, is no other's"
        assert not any(storage.create_file(uri, b"other") for uri in uris)
        assert s3_proxy.done["cut"] > 20
    assert [storage.read_bytes(uri) for uri in uris] == [b"mine"] * 20


ALWAYS = {
    "slow_down": Faults(slow_down=1),
    "internal": Faults(internal=1),
    "cut": Faults(cut=1),
    "cut_bodies": Faults(cut=1, only=lambda method, target: method == "GET" and "list-type" not in target),
}


def read_opened(uri: str) -> bytes:
    with storage.reading(uri) as file:
        return file.read()


ACTIONS: dict[str, Callable[[str], object]] = {
    "exists": storage.exists,
    "read": storage.read_bytes,
    "open": read_opened,
    "write": lambda uri: storage.write_bytes(uri, b"x" * 1000),
    "list": file_listing.list_files,
    "delete": storage.delete_file,
    "delete_folder": storage.delete_folder,
}


@pytest.mark.parametrize(
    ("action", "fault"),
    [(action, fault) for action in ACTIONS for fault in ALWAYS if fault != "cut_bodies" or action in ("read", "open")],
)
def test_a_store_that_stays_bad_is_given_up_with_its_name(
    s3_proxy: FaultyProxy, s3_bucket: str, waits: list[float], action: str, fault: str
) -> None:
    uri = f"{s3_bucket}/run/_manifest.json"
    storage.write_bytes(uri, b"content" * 100)
    waits.clear()
    with s3_proxy.misbehaving(ALWAYS[fault]):
        with pytest.raises(StorageError) as caught:
            ACTIONS[action](uri)
        # aiohttp sends a call that it may repeat once more when a connection that was kept is closed on it.
        assert object_store.ATTEMPTS <= sum(s3_proxy.calls.values()) <= 2 * object_store.ATTEMPTS + 1
    assert uri in str(caught.value)
    assert str(caught.value).split(uri)[1].strip(": "), "says why"
    assert 2 < sum(waits) < 200
    assert len(set(waits)) == len(waits), "at random, or all would come back at once" if fault != "cut_bodies" else "they grow"


def test_a_bucket_that_cannot_be_asked_is_not_absent(s3_proxy: FaultyProxy, s3_bucket: str) -> None:
    with s3_proxy.misbehaving(Faults(slow_down=1)), pytest.raises(StorageError, match=r"503|Unavailable|request rate"):
        storage.exists(s3_bucket)
    assert storage.exists(s3_bucket)
    assert not storage.exists(f"{s3_bucket}-other")


def test_a_published_run_is_not_claimed_while_the_store_is_away(s3_proxy: FaultyProxy, s3_bucket: str) -> None:
    outputs.publish_folder(f"{s3_bucket}/run", {})
    with s3_proxy.misbehaving(Faults(internal=1)), pytest.raises(StorageError, match="cannot look up"):
        outputs.claim_folder(f"{s3_bucket}/run", "dataset", {})
    assert set(file_listing.list_files(f"{s3_bucket}/run")) == {storage.MANIFEST_NAME}


def test_what_is_gone_is_not_asked_for_again(s3_proxy: FaultyProxy, s3_bucket: str, waits: list[float]) -> None:
    uris = list(contents_of(s3_bucket, 9))
    for uri in uris:
        storage.write_bytes(uri, b"x")
    waits.clear()
    with s3_proxy.misbehaving(Faults(gone=lambda path: path.endswith(("1.jpg", "2.jpg")))):
        contents = storage.read_many(uris)
        assert s3_proxy.calls == {"GET": 9}
    assert [type(content) for content in contents[1:3]] == [FileNotFoundError] * 2
    assert contents[:1] + contents[3:] == [b"x"] * 7
    missing = [partial(storage.read_bytes, f"{s3_bucket}-other/a"), partial(storage.write_bytes, f"{s3_bucket}-other/a", b"")]
    for action in missing:
        with s3_proxy.misbehaving(Faults()):
            with pytest.raises(StorageError, match="does not exist"):
                action()
            assert sum(s3_proxy.calls.values()) == 1
    assert waits == []


def test_what_may_not_be_read_is_not_asked_for_again(
    s3_proxy: FaultyProxy, s3_bucket: str, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_bytes(f"{s3_bucket}/a", b"x")
    waits.clear()
    monkeypatch.setattr(faulty_s3, "_INTERNAL", (403, "AccessDenied", "Access Denied"))
    with s3_proxy.misbehaving(Faults(internal=1)):
        with pytest.raises(StorageError, match="access denied"):
            storage.read_bytes(f"{s3_bucket}/a")
        with pytest.raises(StorageError, match="access denied"):
            storage.exists(s3_bucket)
        assert sum(s3_proxy.calls.values()) == 2
    assert waits == []


def test_many_files_of_a_store_that_went_away_say_which_and_why(s3_proxy: FaultyProxy, s3_bucket: str) -> None:
    uris = [f"{s3_bucket}/{number}" for number in range(3)]
    with s3_proxy.misbehaving(Faults(slow_down=1)):
        contents = storage.read_many(uris)
        assert s3_proxy.calls == {"GET": 3 * object_store.ATTEMPTS}, "once each: the store is away"
    assert all(isinstance(content, StorageError) and uri in str(content) for uri, content in zip(uris, contents, strict=True))


@pytest.mark.parametrize("away", ["the photos", "the store", "the right to read"])
def test_photos_are_not_at_fault_when_their_store_is_away(
    s3_proxy: FaultyProxy, s3_bucket: str, monkeypatch: pytest.MonkeyPatch, away: str
) -> None:
    for number in range(3):
        storage.write_bytes(f"{s3_bucket}/archive/{number}.jpg", b"no photo, but read")
    photos = list_photos(f"{s3_bucket}/archive", 4, "path").photos
    plan = photos.append_column("block", pa.array([0, 0, 0]))
    faults = {
        "the photos": Faults(internal=1, only=lambda method, target: ".jpg" in target),
        "the store": Faults(internal=1),
        "the right to read": Faults(internal=1),
    }
    if away == "the right to read":
        monkeypatch.setattr(faulty_s3, "_INTERNAL", (403, "AccessDenied", "Access Denied"))
    with s3_proxy.misbehaving(faults[away]):
        decoded = read_and_decode(plan, 3, SMALL, refuse=False)
        if away == "the store":
            with pytest.raises(StorageError, match=rf"cannot look up {s3_bucket}/archive"):
                next(decoded)
        else:
            assert [*next(decoded)["error_code"]] == ["unreadable"] * 3
            assert s3_proxy.done["internal"] == (3 if away == "the right to read" else 2 * 3 * object_store.ATTEMPTS)


@dataclass
class Outage(Faults):
    """A store that answers some calls, fails others, and answers again."""

    answered: int = 0
    failed: int = 1 << 30
    came: int = 0

    def drawn(self, method: str, target: str) -> str:
        self.came += 1
        return "internal" if 0 < self.came - self.answered <= self.failed else ""


def photos_of(count: int) -> dict[str, bytes]:
    """Photos of 49 KB each, so that the third of six is no part of what is read to open their shard."""
    draw, photos = np.random.default_rng(0), {}
    for number in range(count):
        file = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (128, 128, 3), np.uint8)).save(file, "PNG")
        photos[f"{number}.png"] = file.getvalue()
    return photos


def stored_photos(uri: str, photos: dict[str, bytes], layout: str) -> pa.Table:
    """Writes photos below a URI and lists them, each as a block of its own; Parquet in row groups of two."""
    buffer = io.BytesIO()
    if layout == "loose":
        for name, data in photos.items():
            storage.write_bytes(f"{uri}/{name}", data)
    elif layout == "tar":
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, data in photos.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        storage.write_bytes(f"{uri}/night.tar", buffer.getvalue())
    else:
        table = pa.table({"image_id": [*photos], "image_bytes": [*photos.values()]})
        pq.write_table(table, buffer, row_group_size=2, compression="none", use_dictionary=False)
        storage.write_bytes(f"{uri}/night.parquet", buffer.getvalue())
    listed = list_photos(uri, 192, "path").photos
    return listed.append_column("block", listed["index"])


def decoded_rows(plan: pa.Table, at_once: int) -> list[tuple[str, str]]:
    """Hash and error code of each photo."""
    blocks = [*read_and_decode(plan, at_once, SMALL, refuse=False)]
    return [pair for block in blocks for pair in zip(block["image_sha256"], block["error_code"], strict=True)]


@pytest.mark.parametrize("layout", ["loose", "tar", "parquet"])
def test_photos_of_a_store_that_comes_back_are_read(s3_proxy: FaultyProxy, s3_bucket: str, layout: str) -> None:
    photos = photos_of(6)
    plan = stored_photos(f"{s3_bucket}/archive", photos, layout)
    good = [(storage.sha256_of(data), "") for data in photos.values()]
    # All reads of the first three are given up, and the store is away still when it is asked whether it is there.
    given_up = (3 if layout == "loose" else 1) * object_store.ATTEMPTS
    with s3_proxy.misbehaving(Outage(failed=given_up + 3)):
        assert decoded_rows(plan, 3) == good
        assert s3_proxy.done["internal"] == given_up + 3


@pytest.mark.parametrize("layout", ["loose", "tar", "parquet"])
def test_a_store_that_goes_away_amid_a_block_stops_the_run(s3_proxy: FaultyProxy, s3_bucket: str, layout: str) -> None:
    plan = stored_photos(f"{s3_bucket}/archive", photos_of(6), layout)
    with s3_proxy.misbehaving(Outage(answered=1)), pytest.raises(StorageError, match=rf"cannot look up {s3_bucket}/archive"):
        decoded_rows(plan, 6)


def test_a_photo_that_is_gone_does_not_hide_that_the_store_was_away(s3_proxy: FaultyProxy, s3_bucket: str) -> None:
    photos = photos_of(4)
    plan = stored_photos(f"{s3_bucket}/archive", photos, "loose")
    storage.delete_file(f"{s3_bucket}/archive/0.png")
    expected = [("", "missing"), *((storage.sha256_of(data), "") for data in [*photos.values()][1:])]
    with s3_proxy.misbehaving(Outage(failed=4 * object_store.ATTEMPTS)):
        assert decoded_rows(plan, 4) == expected
    with s3_proxy.misbehaving(Faults(internal=1, only=lambda method, target: "0.png" not in target)), pytest.raises(StorageError):
        decoded_rows(plan, 4)


@pytest.mark.parametrize("at_once", [1, 2, 6])
@pytest.mark.parametrize("refused", [1, 1 << 30])
def test_a_connection_that_is_refused_costs_no_other_row_group(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch, at_once: int, refused: int
) -> None:
    photos = photos_of(6)
    plan = stored_photos(f"{s3_bucket}/archive", photos, "parquet")
    column = pq.ParquetFile(io.BytesIO(storage.read_bytes(f"{s3_bucket}/archive/night.parquet"))).metadata.row_group(1).column(1)
    middle = column.data_page_offset + column.total_compressed_size // 2
    fetch, refusals = S3File._fetch_range, []

    def fetched(file: S3File, start: int, end: int) -> bytes:
        if start <= middle < end and len(refusals) < refused:
            refusals.append(start)
            raise EndpointConnectionError(endpoint_url="http://127.0.0.1:1")
        return fetch(file, start, end)

    monkeypatch.setattr(S3File, "_fetch_range", fetched)
    # Or all of it would come with the first photo.
    monkeypatch.setattr(storage.object_store(s3_bucket), "default_block_size", 1000)
    good = [(storage.sha256_of(data), "") for data in photos.values()]
    lost = [] if refused == 1 else [2, 3]
    assert decoded_rows(plan, at_once) == [("", "unreadable") if place in lost else row for place, row in enumerate(good)]
    assert len(refusals) <= (1 if refused == 1 else 2 * -(-2 // at_once)), "once more for each block"


def test_a_shard_is_listed_without_its_photos(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = random.Random(0).randbytes(1_000_000)
    tar, parquet = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for number in range(20):
            member = tarfile.TarInfo(f"{number}.jpg")
            member.size = len(photo)
            archive.addfile(member, io.BytesIO(photo))
    pq.write_table(pa.table({"id": ["x"] * 20, "content": [photo] * 20}), parquet, use_dictionary=False, compression="none")
    fetched = []
    fetch = S3File._fetch_range
    monkeypatch.setattr(S3File, "_fetch_range", lambda file, start, end: fetched.append(end - start) or fetch(file, start, end))
    for name, shard in (("a.tar", tar), ("b.parquet", parquet)):
        storage.write_bytes(f"{s3_bucket}/{name}", shard.getvalue())
        found = list_shard(f"{s3_bucket}/{name}", "", "v")
        assert found is not None
        assert len(found.photos) == 20
    assert sum(fetched) < 4e6


@pytest.mark.parametrize("answer", ["denied", "failing", "cut"])
@pytest.mark.parametrize("name", ["night.parquet", "night.tar"])
def test_a_shard_that_the_store_does_not_give_is_not_a_damaged_one(
    s3_proxy: FaultyProxy, s3_bucket: str, monkeypatch: pytest.MonkeyPatch, name: str, answer: str
) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image_id": ["a", "b"], "image_bytes": [b"x", b"y"]}), buffer)
    storage.write_bytes(f"{s3_bucket}/archive/{name}", buffer.getvalue())
    storage.write_bytes(f"{s3_bucket}/archive/a.jpg", b"x")
    if answer == "denied":
        monkeypatch.setattr(faulty_s3, "_INTERNAL", (403, "AccessDenied", "Access Denied"))
    only: Callable[[str, str], bool] = lambda method, target: method == "GET" and name in target  # noqa: E731
    with s3_proxy.misbehaving(Faults(cut=1, only=only) if answer == "cut" else Faults(internal=1, only=only)):
        for source in (f"{s3_bucket}/archive", f"{s3_bucket}/archive/{name}"):
            with pytest.raises(StorageError, match=f"cannot read {s3_bucket}/archive/{name}"):
                list_photos(source, 4, "path")


def test_a_manifest_is_not_listed_while_the_store_of_its_photos_is_away(
    s3_proxy: FaultyProxy, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = tmp_path / "night.csv"
    manifest.write_text("\n".join(["uri", *(f"{s3_bucket}/{number}.jpg" for number in range(300))]))
    with s3_proxy.misbehaving(Faults(internal=1)):
        with pytest.raises(StorageError, match=f"cannot look up {s3_bucket}/"):
            list_photos(str(manifest), 4, "path")
        assert s3_proxy.done["internal"] < 150 * object_store.ATTEMPTS, "not after all of them were asked for"
    monkeypatch.setattr(faulty_s3, "_INTERNAL", (403, "AccessDenied", "Access Denied"))
    with s3_proxy.misbehaving(Faults(internal=0.5)):
        listing = list_photos(str(manifest), 4, "path")
    assert listing.photos["file_version"].to_pylist() == [""] * 300, "denied, or not there"


def test_the_few_that_fail_among_many_are_read_once_more(s3_proxy: FaultyProxy, s3_bucket: str) -> None:
    contents = contents_of(s3_bucket, 10)
    for uri, content in contents.items():
        storage.write_bytes(uri, content)
    target = next(iter(contents)).removeprefix("s3:/")

    class Stubborn(Faults):
        """Fails the first object as often as a read is tried."""

        def drawn(self, method: str, target_: str) -> str:
            self.seen[method, target_] += 1
            return "internal" if target_ == target and self.seen[method, target_] <= object_store.ATTEMPTS else ""

    with s3_proxy.misbehaving(Stubborn()):
        assert storage.read_many(list(contents)) == list(contents.values())
        assert s3_proxy.done["internal"] == object_store.ATTEMPTS


def test_objects_that_the_store_failed_to_delete_are_deleted(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch, s3_proxy: FaultyProxy
) -> None:
    storage.write_bytes(f"{s3_bucket}/run/a", b"")
    storage.write_bytes(f"{s3_bucket}/run/b/c", b"")
    storage.write_bytes(f"{s3_bucket}/run2/a", b"")
    call, answers = object_store.ObjectStore.call_s3, [["run/a"], []]

    def failing(self: Any, method: str, **asked: Any) -> Any:
        if method != "delete_objects" or not answers:
            return call(self, method, **asked)
        keep = answers.pop(0)
        some = [each for each in asked["Delete"]["Objects"] if each["Key"] not in keep]
        answer = call(self, method, **(asked | {"Delete": {"Objects": some}})) if some else {}
        return answer | {"Errors": [{"Key": key, "Code": "InternalError"} for key in keep]}

    monkeypatch.setattr(object_store.ObjectStore, "call_s3", failing)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    storage.delete_folder(f"{s3_bucket}/run")
    assert set(file_listing.list_files(s3_bucket)) == {"run2/a"}
    answers[:] = [["run2/a"]] * 9
    with pytest.raises(StorageError, match=r"1 objects are not deleted, the first is run2/a \(InternalError\)"):
        storage.delete_folder(f"{s3_bucket}/run2")


def test_a_bucket_outlives_what_lies_in_it(s3_bucket: str) -> None:
    storage.write_bytes(f"{s3_bucket}/a", b"")
    storage.delete_folder(s3_bucket)
    assert storage.exists(s3_bucket)
    with pytest.raises(StorageError, match="does not exist"):
        list(file_listing.iterate_entries(f"{s3_bucket}/a"))


@pytest.fixture
def many_objects(s3_bucket: str) -> str:
    """A prefix with 2,500 objects, put into the server's memory directly."""
    from moto.s3.models import s3_backends

    backend = s3_backends["123456789012"]["aws"]
    for number in range(2500):
        backend.put_object(s3_bucket.removeprefix("s3://"), f"photos/{number % 7}/{number:04d}.jpg", b"x")
    return f"{s3_bucket}/photos"


def test_a_listing_of_many_pages_is_whole_and_comes_page_by_page(s3_proxy: FaultyProxy, many_objects: str) -> None:
    with s3_proxy.misbehaving(Faults(slow_down=0.3, cut=0.3, **PASSING)):
        paths = [path for path, _ in file_listing.iterate_entries(many_objects)]
    assert paths == sorted(f"{number % 7}/{number:04d}.jpg" for number in range(2500))
    with s3_proxy.misbehaving(Faults()):
        next(file_listing.iterate_entries(many_objects))
        assert s3_proxy.calls == {"GET": 1}
        storage.delete_folder(many_objects)
        assert s3_proxy.calls["POST"] == 3
    assert not storage.exists(many_objects)


def test_all_threads_share_one_store_and_a_copy_of_it_has_its_settings(s3_bucket: str) -> None:
    with ThreadPoolExecutor(4) as threads:
        stores = set(threads.map(lambda number: id(storage.filesystem(s3_bucket)), range(20)))
    assert len(stores) == 1
    sent = pickle.loads(pickle.dumps(storage.arrow_filesystem(s3_bucket))).handler.fs
    kept = storage.filesystem(s3_bucket)
    assert sent.config_kwargs == kept.config_kwargs
    assert sent.config_kwargs["max_pool_connections"] > object_store.READ_THREADS
    assert (sent.retries, sent.read_timeout) == (kept.retries, kept.read_timeout)
