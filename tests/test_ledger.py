"""What is known is what a published run has, as the file is now; nothing else."""

import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skinray import ledger as ledgers
from skinray import outputs
from skinray.config import ScoreSettings
from skinray.ledger import read_ledger, select, write_ledger
from skinray.listing import LISTING_NAME, listed, write_listing

FIRST = datetime.datetime(2026, 11, 20, 2, 0, tzinfo=datetime.UTC)
SECOND = datetime.datetime(2026, 11, 21, 2, 0, tzinfo=datetime.UTC)


def listing_of(files: dict[str, tuple[int, str]], input_: str = "/archive") -> pa.Table:
    """image_id -> size and version."""
    return pa.table(
        {
            "index": pa.array(range(len(files)), pa.int64()),
            "image_id": pa.array(list(files), pa.string()),
            "image_uri": pa.array([f"{input_}/{name}" for name in files], pa.string()),
            "shard": pa.array([""] * len(files), pa.string()),
            "file_bytes": pa.array([size for size, _ in files.values()], pa.int64()),
            "file_version": pa.array([version for _, version in files.values()], pa.string()),
        }
    )


def run(
    output: Path,
    name: str,
    when: datetime.datetime,
    files: dict[str, tuple[int, str]],
    failed: tuple[str, ...] = (),
    published: bool = True,
    input_: str = "/archive",
) -> Path:
    """A run of two files of predictions that scored all but what failed."""
    folder = output / "model_id=abc" / f"run_id={name}"
    folder.mkdir(parents=True)
    rows = pa.table(
        {
            "image_id": list(files),
            "image_sha256": [f"hash of {file} {version}" for file, (_, version) in files.items()],
            "status": ["failed" if file in failed else "scored" for file in files],
        }
    )
    half = len(rows) // 2
    parts = [("a.parquet", rows.slice(0, half)), ("b.parquet", rows.slice(half))]
    for path, part in parts:
        pq.write_table(part, folder / path)
    listing = listed(listing_of(files, input_), 2)
    write_listing(listing, str(folder / LISTING_NAME))
    write_ledger(str(folder), listing, [{"path": path} for path, _ in parts], when)
    if published:
        outputs.publish_folder(str(folder), {})
    return folder


def names(table: pa.Table) -> list[str]:
    chosen: list[str] = table["image_id"].to_pylist()
    return chosen


def test_nothing_is_known_where_nothing_was_scored(tmp_path: Path) -> None:
    files = listing_of({"a": (1, "v"), "b": (2, "v")})
    assert names(select(files, read_ledger(str(tmp_path / "none"), "abc"), "new")) == ["a", "b"]
    assert names(select(files, read_ledger(str(tmp_path / "none"), "abc"), "failed")) == []


def test_new_and_changed_photos_are_taken_and_known_ones_are_not(tmp_path: Path) -> None:
    run(tmp_path, "1", FIRST, {"a": (1, "v"), "b": (2, "v"), "c": (3, "v"), "d": (4, "v")}, failed=("d",))
    now = listing_of({"e": (9, "v"), "d": (4, "v"), "c": (3, "w"), "b": (7, "v"), "a": (1, "v")})
    chosen = select(now, read_ledger(str(tmp_path), "abc"), "new")
    assert names(chosen) == ["e", "c", "b"], "new, another version, another size; in the order of the listing"
    assert chosen.schema == now.schema
    assert names(select(now, read_ledger(str(tmp_path), "another model"), "new")) == names(now)
    assert names(select(now, read_ledger(str(tmp_path), "abc"), "all")) == names(now)


def test_the_newest_run_that_has_a_photo_counts_whatever_it_is_called(tmp_path: Path) -> None:
    run(tmp_path, "z", FIRST, {"a": (1, "v"), "b": (2, "v"), "c": (3, "v")}, failed=("a", "b"))
    run(tmp_path, "y", SECOND, {"a": (1, "w"), "d": (4, "v")}, failed=("d",))
    now = listing_of({"a": (1, "w"), "b": (2, "v"), "c": (3, "v"), "d": (4, "v")})
    assert names(select(now, read_ledger(str(tmp_path), "abc"), "failed")) == ["b", "d"]
    assert names(select(listing_of({"a": (1, "v")}), read_ledger(str(tmp_path), "abc"), "new")) == ["a"], "as it was before"


def test_the_photos_of_a_shard_that_failed_and_is_whole_now_are_taken_with_what_failed(tmp_path: Path) -> None:
    before = {"a.tar/1": (1, "cut off"), "a.tar": (0, "cut off"), "b.pq": (0, "damaged"), "x/b.pq/1": (1, "v"), "c": (1, "v")}
    run(tmp_path, "1", FIRST, before, failed=("a.tar", "b.pq", "c"))
    now = {"a.tar/1": (1, "w"), "a.tar/2": (2, "w"), "p": (3, "w"), "x/b.pq/1": (1, "v"), "c": (1, "v"), "d": (1, "v")}
    shards = pa.array([*["/archive/a.tar"] * 2, "/archive/b.pq", "/archive/x/b.pq", "", ""])
    listing = listing_of(now).drop_columns("shard").append_column("shard", shards)
    ledger = read_ledger(str(tmp_path), "abc")
    assert names(select(listing, ledger, "failed")) == ["a.tar/1", "a.tar/2", "p", "c"]
    assert names(select(listing, ledger, "refused")) == []
    assert names(select(listing_of(before), ledger, "failed")) == ["a.tar", "b.pq", "c"], "still as it was"


def test_photos_known_by_their_hash_alone_are_known(tmp_path: Path) -> None:
    """Those in Parquet shards, whose size only reading would tell."""

    def in_shards(input_: str = "/archive", **versions: str) -> pa.Table:
        sizes = pa.nulls(len(versions), pa.int64())
        return listing_of({name: (0, version) for name, version in versions.items()}, input_).set_column(4, "file_bytes", sizes)

    ledger = in_shards(a="sha256:1", b="sha256:2").append_column("status", pa.array(["scored", "failed"]))
    assert names(select(in_shards(a="sha256:1", b="sha256:3", c="sha256:1"), ledger, "new")) == ["b", "c"]
    assert names(select(in_shards("/resharded", a="sha256:1", b="sha256:2", c="sha256:3"), ledger, "new")) == ["c"]
    assert names(select(in_shards("/resharded", a="sha256:1", b="sha256:2"), ledger, "failed")) == ["b"]
    assert names(select(in_shards(a="sha256:1", b="sha256:3"), ledger, "failed")) == ["b"], "in its place, and repaired"


def test_a_photo_that_was_sharded_anew_and_scored_there_has_failed_no_more(tmp_path: Path) -> None:
    run(tmp_path, "1", FIRST, {"a": (1, "sha256:1")}, failed=("a",))
    run(tmp_path, "2", SECOND, {"a": (1, "sha256:1")}, input_="/resharded")
    for input_ in ("/archive", "/resharded"):
        now = listing_of({"a": (1, "sha256:1")}, input_)
        assert names(select(now, read_ledger(str(tmp_path), "abc"), "failed")) == []
        assert names(select(now, read_ledger(str(tmp_path), "abc"), "new")) == []


@pytest.mark.parametrize("older", [False, True])
def test_photos_of_one_name_in_two_inputs_are_two_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, older: bool) -> None:
    """Also where ledgers do not say where a photo lies, as they did not at first."""
    if older:
        monkeypatch.setattr(ledgers, "_KEY", ("image_id", "file_bytes", "file_version"))
    run(tmp_path, "1", FIRST, {"1.jpg": (1, "v"), "2.jpg": (2, "v")}, input_="/clinic_a")
    second = run(tmp_path, "2", SECOND, {"1.jpg": (7, "w")}, failed=("1.jpg",), input_="/clinic_b")
    monkeypatch.undo()
    assert ("image_uri" in pq.read_schema(second / ledgers.LEDGER_NAME).names) != older
    ledger = read_ledger(str(tmp_path), "abc")
    of_a = listing_of({"1.jpg": (1, "v"), "2.jpg": (2, "v")}, "/clinic_a")
    of_b = listing_of({"1.jpg": (7, "w"), "2.jpg": (2, "v")}, "/clinic_b")
    assert names(select(of_a, ledger, "new")) == [], "whatever was scored since of the other clinic"
    assert names(select(of_b, ledger, "new")) == ["2.jpg"], "nobody has looked at it, however like the other one's file it is"
    assert names(select(of_a, ledger, "failed")) == []
    assert names(select(of_b, ledger, "failed")) == ["1.jpg"]


def test_a_run_that_is_not_published_does_not_count(tmp_path: Path) -> None:
    run(tmp_path, "1", FIRST, {"a": (1, "v")}, published=False)
    assert names(select(listing_of({"a": (1, "v")}), read_ledger(str(tmp_path), "abc"), "new")) == ["a"]


def test_rows_that_are_not_the_listings_are_not_noted(tmp_path: Path) -> None:
    run(tmp_path, "1", FIRST, {"a": (1, "v"), "b": (2, "v")})
    folder = tmp_path / "model_id=abc" / "run_id=1"
    with pytest.raises(ValueError, match="order of the listing"):
        write_ledger(
            str(folder),
            listed(listing_of({"b": (2, "v"), "a": (1, "v")}), 2),
            [{"path": "a.parquet"}, {"path": "b.parquet"}],
            FIRST,
        )


def test_what_is_new_and_what_failed_are_not_asked_for_at_once() -> None:
    with pytest.raises(ValueError, match="give one of them"):
        ScoreSettings(bundle="b", input="i", output="o", only_new=True, retry="failed")
