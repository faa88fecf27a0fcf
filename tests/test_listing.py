"""Whatever the layout, every photo is one row, under one name, with bytes that are its own."""

import io
import math
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings

from skinray import shard_listing, storage
from skinray.errors import ConfigError, ImageError, StorageError
from skinray.images import MAX_FILE_BYTES
from skinray.listing import LISTING_SCHEMA, Listing, list_dataset, list_photos, listed, read_listing, write_listing
from skinray.shard_reader import may_be_read_yet, read_contents
from skinray.shards import PreparedDataset

PHOTOS = {f"visit {number % 3}/photo {number:02d}.jpg": bytes([number]) * (1000 + number) for number in range(20)}


def contents(listing: Listing) -> dict[str, Any]:
    """image_id -> bytes, or the code or type of the error."""
    rows = listing.photos.to_pylist()
    found = zip(rows, read_contents(rows), strict=True)
    return {
        row["image_id"]: data if isinstance(data, bytes) else data.code if isinstance(data, ImageError) else type(data)
        for row, data in found
    }


def write_loose(folder: Path) -> None:
    for name, data in PHOTOS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def tar_of(photos: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in photos.items():
            for path, content in ((name, data), (name.replace(".jpg", ".json"), b'{"label": "nv"}')):
                member = tarfile.TarInfo(path)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def stored(place: str, name: str, data: bytes) -> str:
    uri = storage.join(place, name)
    storage.write_bytes(uri, data)
    return uri


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.s3)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder on disk or a bucket."""
    return str(tmp_path) if request.param == "disk" else request.getfixturevalue("s3_bucket")


def test_loose_files_tar_and_parquet_stand_in_one_listing(place: str) -> None:
    names = sorted(PHOTOS)
    for name in names[:5]:
        stored(place, name, PHOTOS[name])
    stored(place, "a.tar", tar_of({name: PHOTOS[name] for name in names[5:12]}))
    rows = pa.table({"image_id": names[12:], "image": [{"bytes": PHOTOS[name], "path": name} for name in names[12:]]})
    buffer = io.BytesIO()
    pq.write_table(rows, buffer, row_group_size=3)
    stored(place, "deep/b.parquet", buffer.getvalue())
    stored(place, "notes.txt", b"no photo")
    numbers = io.BytesIO()
    pq.write_table(pa.table({"image_id": ["x"], "age": [3]}), numbers)
    stored(place, "metadata.parquet", numbers.getvalue())

    listing = list_photos(place, 4, "path")
    assert listing.photos.schema == LISTING_SCHEMA
    assert listing.photos["index"].to_pylist() == list(range(20))
    expected = {(f"a.tar/{name}" if 5 <= at < 12 else name): PHOTOS[name] for at, name in enumerate(names)}
    assert contents(listing) == expected
    assert list_photos(place, 4, "path").photos.equals(listing.photos), "the same again"


def test_a_tar_shard_alone_and_its_photos_by_stem(tmp_path: Path) -> None:
    uri = stored(str(tmp_path), "a.tar", tar_of(PHOTOS))
    assert contents(list_photos(uri, 4, "stem")) == {Path(name).stem: data for name, data in PHOTOS.items()}
    some = list_photos(uri, 4, "path").photos.take([3, 17])  # far apart, and each is read for itself
    assert list(contents(listed(some, 1)).values()) == [list(PHOTOS.values())[3], list(PHOTOS.values())[17]]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.75, 0.97])
def test_a_tar_that_ends_early_gives_what_it_has_and_says_that_it_ends(tmp_path: Path, share: float) -> None:
    data = tar_of(PHOTOS)
    uri = stored(str(tmp_path), "a.tar", data[: int(len(data) * share)])
    if share < 0.9:
        assert contents(list_photos(uri, 4, "stem"))["a.tar"] == "corrupt_shard", "under the shard's name, which no photo has"
    found = contents(list_photos(uri, 4, "path"))
    lost = {name for name, content in PHOTOS.items() if found.get(f"a.tar/{name}") != content}
    if share < 0.9:
        assert lost
        assert found["a.tar"] == "corrupt_shard", "the loss is a row"
    assert len(lost) <= 20 * (1 - share) + 1


@pytest.mark.parametrize("kind", ["loose", "tar"])
def test_large_photos_are_not_read_many_at_once(tmp_path: Path, kind: str) -> None:
    photos = {f"photo {number:02d}.jpg": bytes([number]) * (6 << 20) for number in range(24)}
    if kind == "tar":
        stored(str(tmp_path), "night.tar", tar_of(photos))
    else:
        for name, data in photos.items():
            stored(str(tmp_path), name, data)
    rows = list_photos(str(tmp_path), 32, "path").photos.to_pylist()
    want = list(photos.values())
    photos.clear()
    tracemalloc.start()
    for place, data in enumerate(read_contents(rows)):
        assert data == want[place]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 150e6 < len(want) * (6 << 20)


def test_links_in_a_tar_are_the_photos_that_they_name(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind, target in (
            ("v1/a.jpg", tarfile.REGTYPE, ""),
            ("v1/b.heic", tarfile.REGTYPE, ""),
            ("v2/hard.jpg", tarfile.LNKTYPE, "v1/a.jpg"),
            ("./v2/soft.jpg", tarfile.SYMTYPE, "../v1/b.heic"),
            ("v2/soft2.jpg", tarfile.SYMTYPE, "soft.jpg"),
            ("v2/nothing.jpg", tarfile.SYMTYPE, "a.jpg"),
            ("v2/itself", tarfile.DIRTYPE, ""),
            ("v2/c.jpg", tarfile.REGTYPE, ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, target, 4 if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(name[-6:].encode()) if member.size else None)
    listing = list_photos(str(tmp_path / "a.tar"), 4, "stem")
    assert contents(listing) == {
        "a": b"/a.j",
        "hard": b"/a.j",
        "soft": b"b.he",
        "soft2": b"b.he",
        "c": b"/c.j",
        "nothing": FileNotFoundError,
    }
    assert listing.left_out == {".heic": 1}


def test_what_is_left_out_is_counted_by_kind(tmp_path: Path) -> None:
    write_loose(tmp_path)
    for name in ("a.heic", "IMG_1", "b.HEIC", ".hidden", "IMG.2", "visit 0/c.jp2", *(f"x.{kind:03d}" for kind in range(20))):
        stored(str(tmp_path), name, b"x")
    stored(str(tmp_path), "t.tar", tar_of({"p.jpg": b"x"}))
    pq.write_table(pa.table({"age": [3]}), tmp_path / "metadata.parquet")
    left_out = list_photos(str(tmp_path), 4, "path").left_out
    assert left_out[".heic"] == 2
    assert left_out["without a suffix"] == 1
    assert sum(left_out.values()) == 27
    assert len(left_out) < 20


def test_a_row_group_of_any_size_is_never_held_whole(tmp_path: Path) -> None:
    names = [f"photo {number}.jpg" for number in range(640)]
    photos = [bytes([number % 251]) * 100_000 for number in range(640)]
    path = tmp_path / "night.parquet"
    # A page, which is read whole, and a dictionary have up to 1,024 photos unless pyarrow is told otherwise.
    table = pa.table({"image_id": names, "image_bytes": photos})
    pq.write_table(table, path, compression="none", use_dictionary=False, write_batch_size=16)
    assert pq.ParquetFile(path).num_row_groups == 1
    rows = list_photos(str(path), 32, "path").photos.to_pylist()
    chosen = [*range(3), *range(100, 400), 639]
    held = []
    before = pa.total_allocated_bytes()
    for number, data in zip(chosen, read_contents([rows[number] for number in chosen]), strict=True):
        assert data == photos[number]
        held.append(pa.total_allocated_bytes() - before)
    assert max(held) < 24e6 < path.stat().st_size / 2


def test_a_bad_row_group_fails_its_photos_and_no_others(tmp_path: Path) -> None:
    path = tmp_path / "night.parquet"
    photos = [bytes([number]) * 5000 for number in range(30)]
    pq.write_table(pa.table({"image_bytes": photos}), path, row_group_size=10, use_dictionary=False)
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset : column.data_page_offset + 16] = b"\xff" * 16
    path.write_bytes(data)
    found = [*contents(list_photos(str(path), 32, "path")).values()]
    assert found[:10] == photos[:10]
    assert found[20:] == photos[20:]
    assert not {bytes} & {type(each) for each in found[10:20]}


def test_a_parquet_file_that_cannot_be_read_is_one_failed_row(tmp_path: Path) -> None:
    write_loose(tmp_path)
    stored(str(tmp_path), "b.parquet", b"PAR1 and then nothing")
    found = contents(list_photos(str(tmp_path), 4, "path"))
    assert found.pop("b.parquet") == "corrupt_shard"
    assert found == PHOTOS


def test_a_shard_written_anew_since_it_was_listed_fails_and_gives_no_other_photo(tmp_path: Path) -> None:
    uri = stored(str(tmp_path), "a.tar", tar_of(PHOTOS))
    listing = list_photos(uri, 4, "path")
    stored(str(tmp_path), "a.tar", tar_of(dict(reversed(PHOTOS.items()))))
    assert set(contents(listing).values()) == {"changed"}


def test_odd_names_and_links_are_photos_like_others(tmp_path: Path) -> None:
    name = "L\udce4sion.jpg"
    stored(str(tmp_path), name, b"loose")
    stored(str(tmp_path), "sh\udce4rd.tar", tar_of({name: b"in a tar"}))
    pq.write_table(pa.table({"id": ["x"], "content": [b"in Parquet"]}), tmp_path / "x.parquet")
    (tmp_path / "x.parquet").rename(tmp_path / "sh\udce4rd.parquet")
    for link in ("itself.jpg", "itself.tar"):
        (tmp_path / link).symlink_to(tmp_path / link)
    for link in ("nowhere.jpg", "nowhere.pq"):
        (tmp_path / link).symlink_to(tmp_path / "none")
    listing = list_photos(str(tmp_path), 4, "path")
    write_listing(listing, str(tmp_path / "listing"))
    assert contents(read_listing(str(tmp_path / "listing"))) == {
        r"L\xe4sion.jpg": b"loose",
        r"sh\xe4rd.tar/L\xe4sion.jpg": b"in a tar",
        "x": b"in Parquet",
        "itself.jpg": OSError,
        "itself.tar": OSError,
        "nowhere.jpg": FileNotFoundError,
        "nowhere.pq": FileNotFoundError,
    }


def test_a_compressed_shard_is_refused(tmp_path: Path) -> None:
    write_loose(tmp_path)
    stored(str(tmp_path), "a.tar.gz", b"")
    with pytest.raises(StorageError, match="unpack it"):
        list_photos(str(tmp_path), 4, "path")


def test_a_manifest_names_photos_and_what_is_known_of_them(place: str) -> None:
    paths = sorted(PHOTOS)
    uris = [stored(place, f"archive/{name}", PHOTOS[name]) for name in paths]
    written = [f"archive/{name}" if number % 2 else uris[number] for number, name in enumerate(paths)]
    table = pd.DataFrame({"path": [*written, "archive/gone.jpg"], "image_id": [*paths, "gone"], "patient_id": "007"})
    table["age"] = ["61", "", "unknown", *["40.5"] * 18]
    stored(place, "night.csv", table.to_csv(index=False).encode())
    listing = list_photos(storage.join(place, "night.csv"), 4, "path")
    found = contents(listing)
    assert found.pop("gone") is FileNotFoundError
    assert found == PHOTOS
    assert set(listing.photos["patient_id"].to_pylist()) == {"007"}
    assert listing.photos["age"].to_pylist()[:4] == [61, None, None, 40.5]
    assert listing.photos["file_bytes"].to_pylist()[0] == 1000
    assert len(set(listing.photos["file_version"].to_pylist())) > 1

    buffer = io.BytesIO()
    table.rename(columns={"path": "uri"}).drop(columns="image_id").to_parquet(buffer)
    stored(place, "night.parquet", buffer.getvalue())
    assert set(contents(list_photos(storage.join(place, "night.parquet"), 4, "stem"))) == {"gone", *(Path(p).stem for p in paths)}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_every_row_of_a_manifest_is_a_photo_with_a_name(tmp_path: Path, suffix: str) -> None:
    stored(str(tmp_path), "a.jpg", b"a")
    stored(str(tmp_path), "b.jpg", b"b")
    table = pd.DataFrame({"uri": ["a.jpg", None, "b.jpg", " ", None], "image_id": ["x", "y", None, None, None]})
    path = tmp_path / f"night{suffix}"
    table.to_csv(path, index=False) if suffix == ".csv" else table.to_parquet(path)
    missing = dict.fromkeys(("y", f"night{suffix}#3", f"night{suffix}#4"), FileNotFoundError)
    assert contents(list_photos(str(path), 4, "path")) == {"x": b"a", "b.jpg": b"b", **missing}


@pytest.mark.parametrize("rows", [1, 3, 7, 9])
def test_a_manifest_that_is_looked_up_in_parts_keeps_its_order(
    tmp_path: Path, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_listing, "_LOOKUPS_PLANNED", 3)
    for number in range(0, rows, 2):
        (tmp_path / f"{number}.jpg").write_bytes(b"x" * (number + 1))
    (tmp_path / "night.csv").write_text("\n".join(["uri", *(f"{number}.jpg" for number in range(rows))]))
    photos = list_photos(str(tmp_path / "night.csv"), 4, "path").photos
    assert photos["image_id"].to_pylist() == [f"{number}.jpg" for number in range(rows)]
    assert photos["file_bytes"].to_pylist() == [0 if number % 2 else number + 1 for number in range(rows)]


def test_a_row_of_a_manifest_that_no_file_can_be_called_fails_and_no_other(tmp_path: Path) -> None:
    stored(str(tmp_path), "a.jpg", b"a")
    uri = stored(str(tmp_path), "night.csv", b"uri,image_id\na.jpg,a\ns3:///b.jpg,b\nc.jpg ,c\n")
    listing = list_photos(uri, 4, "path")
    assert contents(listing) == {"a": b"a", "b": StorageError, "c": StorageError}
    rows = listing.photos.to_pylist()
    failed = zip(rows, read_contents(rows), strict=True)
    assert not any(may_be_read_yet(row, data) for row, data in failed if isinstance(data, Exception)), "no store is to blame"
    with pytest.raises(StorageError, match="https:// is not supported"):
        list_photos(stored(str(tmp_path), "web.csv", b"uri\na.jpg\nhttps://example.org/a.jpg\n"), 4, "path")


def test_numbers_name_patients_and_photos_as_text_does(tmp_path: Path) -> None:
    for name in "12":
        stored(str(tmp_path), f"{name}.jpg", name.encode())
    table = pa.table({"path": ["1.jpg", "2.jpg"], "image_id": [1, 2], "patient_id": [7.0, None], "lesion_id": [[1], [2]]})
    pq.write_table(table.append_column("age", pa.array([61, None])), tmp_path / "manifest.parquet")
    shard = table.drop_columns("path").append_column("image", pa.array([b"1", b"2"]))
    pq.write_table(shard.append_column("age", pa.array(["61", "unknown"])), tmp_path / "shard.parquet")
    for name in ("manifest", "shard"):
        listing = list_photos(str(tmp_path / f"{name}.parquet"), 4, "path")
        assert contents(listing) == {"1": b"1", "2": b"2"}
        assert listing.photos["patient_id"].to_pylist() == ["7", None]
        assert listing.photos["lesion_id"].to_pylist() == [None, None]
        assert listing.photos["age"].to_pylist() == [61, None]


def test_a_photo_in_a_shard_without_a_name_or_hash_is_known_by_its_row_and_its_shard(tmp_path: Path) -> None:
    hashes = [storage.sha256_of(b"0"), None, "", storage.sha256_of(b"another")]
    table = pa.table({"image_id": ["a", "", None, "d"], "image_sha256": hashes, "image": [b"0", b"1", b"2", b"3"]})
    pq.write_table(table, tmp_path / "night.pq")
    listing = list_photos(str(tmp_path / "night.pq"), 4, "path")
    assert contents(listing) == {"a": b"0", "night.pq#1": b"1", "night.pq#2": b"2", "d": "changed"}
    versions = listing.photos["file_version"].to_pylist()
    assert versions[0] == f"sha256:{hashes[0]}"
    assert versions[1] == versions[2] != ""
    pq.write_table(table.slice(0, 3), tmp_path / "night.pq")
    assert set(contents(listing).values()) == {"changed"}


def test_rows_that_a_shard_of_hashed_photos_has_no_more_are_changed(tmp_path: Path) -> None:
    photos = [bytes([number]) for number in range(10)]
    table = pa.table({"image": photos, "image_sha256": [storage.sha256_of(data) for data in photos]})
    pq.write_table(table, tmp_path / "night.pq", row_group_size=3)
    listing = list_photos(str(tmp_path / "night.pq"), 4, "path")
    pq.write_table(table.slice(0, 5), tmp_path / "night.pq", row_group_size=3)
    assert [*contents(listing).values()] == [*photos[:5], *["changed"] * 5]


@pytest.mark.parametrize("kind", ["loose", "tar"])
def test_a_file_too_large_for_any_photo_is_not_read(tmp_path: Path, kind: str) -> None:
    photos = {"a.jpg": b"a", "b.jpg": b"b"}
    if kind == "tar":
        with (tmp_path / "night.tar").open("wb") as tar:
            for name, size in (("a.jpg", 1), ("slide.tif", MAX_FILE_BYTES + 1), ("b.jpg", 1)):
                member = tarfile.TarInfo(name)
                member.size = size
                tar.write(member.tobuf())
                end = tar.tell() + math.ceil(size / tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                tar.write(photos.get(name, b""))
                tar.seek(end)
            tar.truncate(end + 2 * tarfile.BLOCKSIZE)
        photos = {f"night.tar/{name}": data for name, data in photos.items()}
    else:
        for name, data in photos.items():
            stored(str(tmp_path), name, data)
        with (tmp_path / "slide.tif").open("wb") as slide:
            slide.truncate(MAX_FILE_BYTES + 1)
    tracemalloc.start()
    found = contents(list_photos(str(tmp_path), 4, "path"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.pop("slide.tif" if kind == "loose" else "night.tar/slide.tif") == "too_large"
    assert found == photos
    assert peak < 20e6


def test_a_folder_that_is_called_like_a_file_is_a_folder(place: str) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"id": ["x"], "content": [b"x"]}), buffer)
    stored(place, "photos.parquet/part-0.snappy.parquet", buffer.getvalue())
    stored(place, "photos.parquet/_SUCCESS", b"")
    for uri in (f"{place}/photos.parquet", f"{place}/photos.parquet/"):
        assert contents(list_photos(uri, 4, "path")) == {"x": b"x"}


def test_a_manifest_without_uris_says_what_it_has(tmp_path: Path) -> None:
    uri = stored(str(tmp_path), "night.csv", b"picture,age\na.jpg,3\n")
    with pytest.raises(ConfigError, match=r"no column image_uri.*it has picture, age"):
        list_photos(uri, 4, "path")


@pytest.mark.parametrize("rule", ["path", "stem"])
def test_two_photos_of_one_name_are_refused(tmp_path: Path, rule: Any) -> None:
    if rule == "stem":
        stored(str(tmp_path), "one/a.jpg", b"1")
        stored(str(tmp_path), "two/a.jpg", b"2")
        source = str(tmp_path)
    else:
        source = stored(str(tmp_path), "m.csv", b"path,image_id\na.jpg,x\nb.jpg,x\n")
    with pytest.raises(ConfigError, match="stand twice"):
        list_photos(source, 4, rule)


@pytest.mark.ray
def test_a_prepared_data_set_is_listed_with_what_it_knows(prepared: PreparedDataset, drawn_photos: Path) -> None:
    listing = list_photos(prepared.uri, 100, "path")
    stated = pd.read_csv(drawn_photos / "metadata.csv", keep_default_na=False).set_index("image_id")
    photos = listing.photos.to_pandas().set_index("image_id")
    assert set(photos.index) == set(stated.index)
    assert (photos["sex"].fillna("") == stated["sex"].loc[photos.index]).all()
    for name, data in contents(listing).items():
        assert photos.loc[name, "file_version"] == f"sha256:{storage.sha256_of(data)}"
    test_alone = list_dataset(prepared, ("test",))
    assert test_alone.rows == prepared.rows("test")


@given(st.integers(1, 3000), st.integers(1, 512))
@settings(max_examples=50, deadline=None)
def test_blocks_are_the_photos_in_order_and_no_more_than_a_hundredth(rows: int, rows_per_block: int) -> None:
    names = pa.array([str(number) for number in range(rows)])
    listing = listed(pa.table({"image_id": names, "image_uri": names}), rows_per_block)
    blocks = listing.blocks()
    assert sum(blocks.values()) == rows
    assert list(blocks) == np.cumsum([0, *list(blocks.values())[:-1]]).tolist()
    assert max(blocks.values()) <= max(1, min(rows_per_block, rows // 100))
    assert listing.rows_per_task % listing.rows_per_block == 0


def test_a_written_listing_is_read_as_it_was(tmp_path: Path) -> None:
    write_loose(tmp_path / "photos")
    stored(str(tmp_path), "photos/a.heic", b"")
    listing = list_photos(str(tmp_path / "photos"), 7, "path")
    assert listing.left_out == {".heic": 1}
    write_listing(listing, str(tmp_path / "_listing.pq"))
    again = read_listing(str(tmp_path / "_listing.pq"))
    assert again.photos.equals(listing.photos)
    assert (again.rows_per_block, again.rows_per_task) == (listing.rows_per_block, listing.rows_per_task)
    assert again.left_out == listing.left_out
