"""A block's file is whole or is done again; what is published is all of them, once and in order."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skinray import block_files, storage
from skinray.block_files import BLOCKS, BlockResult, drop_blocks, finished_blocks, merge_blocks, write_block
from skinray.errors import StorageError

SCHEMA = pa.schema([("image_id", pa.string()), ("status", pa.string()), ("error_code", pa.string()), ("flagged", pa.bool_())])


def block(first: int, count: int, failed: int = 0) -> pa.Table:
    """Rows of which the first ones failed, and every other one of the rest is flagged."""
    return pa.table(
        {
            "image_id": [f"photo{first + number}" for number in range(count)],
            "status": ["failed"] * failed + ["scored"] * (count - failed),
            "error_code": ["truncated"] * failed + [None] * (count - failed),
            "flagged": [None] * failed + [number % 2 == 0 for number in range(count - failed)],
        },
        schema=SCHEMA,
    )


def test_a_block_says_what_became_of_its_photos(tmp_path: Path) -> None:
    result = write_block(str(tmp_path), 32, block(32, 7, failed=2))
    assert result == BlockResult(32, 7, {"failed": 2, "scored": 5}, {"truncated": 2}, 3)
    assert finished_blocks(str(tmp_path), [(0, 32), (32, 7), (39, 7)]) == {32: result}
    assert BlockResult.decoded(result.encoded()) == result


def test_nothing_is_done_where_nothing_was_begun(tmp_path: Path) -> None:
    assert finished_blocks(str(tmp_path / "nowhere"), [(0, 5)]) == {}


@pytest.mark.parametrize("damage", ["empty", "cut", "other rows", "other place", "plain parquet"])
def test_a_block_that_is_not_whole_is_done_again(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path)
    kept = write_block(run, 0, block(0, 5))
    write_block(run, 5, block(5, 5))
    path = tmp_path / BLOCKS / "000000000005.block"
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "other rows":
        write_block(run, 5, block(5, 4))
    elif damage == "other place":
        path.write_bytes((tmp_path / BLOCKS / "000000000000.block").read_bytes())
    else:
        pq.write_table(block(5, 5), path)
    assert finished_blocks(run, [(0, 5), (5, 5)]) == {0: kept}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 30), st.data())
def test_what_is_published_is_every_row_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], most_rows: int, data: st.DataObject
) -> None:
    run = str(tmp_path_factory.mktemp("run"))
    firsts = [sum(sizes[:number]) for number in range(len(sizes))]
    order = data.draw(st.permutations(range(len(sizes))))
    done = {number: write_block(run, firsts[number], block(firsts[number], sizes[number])) for number in order}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_files, "_FILE_ROWS", most_rows)
        patch.setattr(block_files, "_GROUP_ROWS", max(1, most_rows // 2))
        patch.setattr(block_files, "_READ_AT_ONCE", 3)
        files = merge_blocks(run, [done[number] for number in range(len(sizes))])
    assert all(file["rows"] <= max(most_rows, *sizes) for file in files)
    tables = [pq.read_table(f"{run}/{file['path']}", partitioning=None) for file in files]
    assert [name for table in tables for name in table["image_id"].to_pylist()] == [f"photo{n}" for n in range(sum(sizes))]
    assert {table.schema for table in tables} == {SCHEMA}
    for file in files:
        written = storage.read_bytes(f"{run}/{file['path']}")
        assert (len(written), storage.sha256_of(written)) == (file["bytes"], file["sha256"])
    assert not [path for path in Path(run).rglob("*.parquet") if BLOCKS in path.parts], "nobody reads a row twice"
    drop_blocks(run)
    assert sorted(path.name for path in Path(run).iterdir()) == [file["path"] for file in files]


def test_a_block_that_vanished_or_changed_is_not_published(tmp_path: Path) -> None:
    run = str(tmp_path)
    results = [write_block(run, 0, block(0, 5)), write_block(run, 5, block(5, 5))]
    write_block(run, 5, block(5, 3))
    with pytest.raises(StorageError, match="has 3 rows instead of 5"):
        merge_blocks(run, results)
    (tmp_path / BLOCKS / "000000000005.block").unlink()
    with pytest.raises(StorageError, match="run the same command again"):
        merge_blocks(run, results)
    assert not list(tmp_path.glob("*.parquet"))
