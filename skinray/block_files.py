"""Blocks of a run that is going on, each a file of its own -> the few files that the run publishes.

    <run>/_blocks/000000000256.block   Parquet, the rows of the block whose first photo stands there in the listing
    <run>/part-00000.parquet ...    all of them in order, when the last one is there

A block's file appears whole or not at all, and its footer says what became of its photos. So what a killed run has done can
be told from its files alone. Their names do not end in .parquet: whoever reads a folder of predictions meets no row twice.
"""

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from skinray import file_listing, storage
from skinray.errors import StorageError
from skinray.telemetry import say

BLOCKS = "_blocks"
# Rows of one published file, about 50 MB, and of one of its row groups.
_FILE_ROWS = 1 << 20
_GROUP_ROWS = 1 << 16
_FOOTER_KEY = b"skinray"
_READ_AT_ONCE = 16


@dataclass(frozen=True)
class BlockResult:
    """What became of a block's photos.

    Attributes:
        first_index: Where its first photo stands in the listing.
        rows: How many photos.
        statuses: Photos by status.
        errors: Photos by error code.
        flagged: Photos at or above the operating point.
    """

    first_index: int
    rows: int
    statuses: dict[str, int]
    errors: dict[str, int]
    flagged: int

    def encoded(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def decoded(text: str) -> "BlockResult":
        """Of JSON; raises ValueError, TypeError or KeyError for anything else."""
        return BlockResult(**json.loads(text))

    @staticmethod
    def of(first_index: int, rows: pa.Table) -> "BlockResult":
        """Counts prediction rows."""
        statuses, errors = Counter(rows["status"].to_pylist()), Counter(rows["error_code"].drop_null().to_pylist())
        flagged = int(pa.compute.sum(rows["flagged"], min_count=0).as_py())
        return BlockResult(first_index, rows.num_rows, dict(statuses), dict(errors), flagged)


def write_block(run_uri: str, first_index: int, rows: pa.Table) -> BlockResult:
    """Writes the file of one block, in the place of an earlier one."""
    result = BlockResult.of(first_index, rows)
    buffer = io.BytesIO()
    # As fast as can be, because it is read once: the published files are small and have statistics.
    plain: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(rows.replace_schema_metadata({_FOOTER_KEY: result.encoded().encode()}), buffer, **plain)
    storage.write_bytes(_uri(run_uri, first_index), buffer.getvalue())
    return result


def finished_blocks(run_uri: str, planned: Iterable[tuple[int, int]]) -> dict[int, BlockResult]:
    """What a run has done already.

    Args:
        run_uri: The run's folder.
        planned: First index and number of photos of every block of the run.

    Returns:
        First index -> result, of the blocks whose file is there and holds as many rows as planned.
    """
    folder = storage.join(run_uri, BLOCKS)
    if not storage.exists(folder):
        return {}
    there = set(file_listing.list_files(folder))
    wanted = [(first, rows) for first, rows in planned if _name(first) in there]
    with ThreadPoolExecutor(_READ_AT_ONCE, thread_name_prefix="blocks") as threads:
        found = threads.map(lambda block: _read_result(run_uri, *block), wanted)
        return {result.first_index: result for result in found if result is not None}


def finished_block(run_uri: str, first_index: int, rows: int) -> BlockResult | None:
    """What became of one block; None when its file is not there or does not hold so many rows."""
    return _read_result(run_uri, first_index, rows) if storage.exists(_uri(run_uri, first_index)) else None


def _read_result(run_uri: str, first_index: int, rows: int) -> BlockResult | None:
    uri = _uri(run_uri, first_index)
    try:
        with storage.reading(uri) as file:
            footer = pq.read_metadata(file)
        result = BlockResult.decoded((footer.metadata or {})[_FOOTER_KEY].decode())
    except (pa.ArrowInvalid, ValueError, TypeError, KeyError) as error:
        say(f"score: {uri} is no whole block and is done again ({type(error).__name__})")
        return None
    return result if (result.first_index, result.rows, footer.num_rows) == (first_index, rows, rows) else None


def merge_blocks(run_uri: str, results: Sequence[BlockResult]) -> list[dict[str, Any]]:
    """Writes the files that the run publishes; the same blocks give the same files, whatever was there before.

    Args:
        run_uri: The run's folder.
        results: Every block, in the order of the listing.

    Returns:
        Path, rows, bytes and sha256 of each file.

    Raises:
        StorageError: A block's file is not there, or has not its rows.
    """
    files = []
    for number, some in enumerate(_runs_of(results, _FILE_ROWS)):
        path = f"part-{number:05d}.parquet"
        with storage.writing(storage.join(run_uri, path)) as file:
            _write_merged(file, run_uri, some)
        files.append({"path": path, "rows": sum(block.rows for block in some), "bytes": file.size, "sha256": file.sha256})
    return files


def drop_blocks(run_uri: str) -> None:
    """Removes the blocks' own files, when what was merged of them is published."""
    storage.delete_folder(storage.join(run_uri, BLOCKS))


def _write_merged(file: Any, run_uri: str, blocks: Sequence[BlockResult]) -> None:
    writer: pq.ParquetWriter | None = None
    try:
        for group in _runs_of(blocks, _GROUP_ROWS):
            rows = pa.concat_tables(_tables(run_uri, group))
            writer = writer or pq.ParquetWriter(file, rows.schema, compression="zstd")
            writer.write_table(rows, row_group_size=_GROUP_ROWS)
    finally:
        if writer is not None:
            writer.close()


def _tables(run_uri: str, blocks: Sequence[BlockResult]) -> Iterator[pa.Table]:
    for start in range(0, len(blocks), _READ_AT_ONCE):
        some = blocks[start : start + _READ_AT_ONCE]
        uris = [_uri(run_uri, block.first_index) for block in some]
        for uri, block, data in zip(uris, some, storage.read_many(uris), strict=True):
            if isinstance(data, Exception):
                raise StorageError(
                    f"cannot read {uri}, which was written: {type(data).__name__}; run the same command again "
                    "(on several machines the output must be s3:// or a disk that they share)"
                ) from data
            rows = pq.read_table(io.BytesIO(data)).replace_schema_metadata(None)
            if len(rows) != block.rows:
                raise StorageError(f"{uri} has {len(rows)} rows instead of {block.rows}; run the same command again")
            yield rows


def _runs_of(blocks: Sequence[BlockResult], most_rows: int) -> list[list[BlockResult]]:
    """The same blocks in order, cut so that no run has more rows, but where a single block has."""
    runs: list[list[BlockResult]] = []
    rows = 0
    for block in blocks:
        if not runs or rows + block.rows > most_rows:
            runs.append([])
            rows = 0
        runs[-1].append(block)
        rows += block.rows
    return runs


def _name(first_index: int) -> str:
    return f"{first_index:012d}.block"


def _uri(run_uri: str, first_index: int) -> str:
    return storage.join(run_uri, BLOCKS, _name(first_index))
