"""Where the training workers' photos come from: blocks that are decoded once and kept, or decoded anew for every epoch.

A block is one row group of a shard. One actor for all workers decodes blocks by tasks all over the cluster and hands out
references; workers read them straight from shared memory. The two modes differ in when that happens and in how much is
kept: in memory, everything is decoded before training begins and nothing is let go; without a cache, a block is decoded
when the first worker asks, shared with the others, and let go when newer blocks take its place. A block that is lost with
a machine is decoded again when it is next asked for.
"""

import asyncio
import contextlib
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from skinray import storage
from skinray.config import SplitName
from skinray.errors import DatasetError, ImageError
from skinray.feed import WINDOW_ROWS
from skinray.images import Preprocessing, decode_photo
from skinray.shards import SHARD_SCHEMA, PreparedDataset, ShardFile
from skinray.telemetry import Progress, say

# Ray begins to write blocks to disk when a store is four fifths full; a fifth is left for the copies of blocks that the
# machines read from each other, weights and checkpoints.
STORE_SHARE = 0.6
# Without a cache: the window that the workers are in and the next one, which is as much as they ask for.
KEPT_ROWS = 2 * WINDOW_ROWS
# How often a block is decoded again because a machine or a process was lost on the way, before that becomes an error.
ATTEMPTS = 5

Pixels = npt.NDArray[np.uint8]

_DESCRIPTION = pa.schema([SHARD_SCHEMA.field(name) for name in ("image_id", "label", "lesion_id", "age", "sex", "site", "fold")])


@dataclass(frozen=True, eq=False)
class TrainingPhotos:
    """The photos of some splits: what is known of each, and where its pixels are to be had. Row by row, in shard order.

    Attributes:
        block_rows: Rows of each block.
        image_size_px: Width and height of the decoded photos.
        image_ids, labels, splits, sex, site, lesion_ids: str [rows], "" where unknown.
        folds: int64 [rows], -1 where there is none.
        age: float64 [rows] in years, NaN where unknown.
        source: Handle of the actor that hands out blocks; they are gone when the last copy of it is.
    """

    block_rows: list[int]
    image_size_px: int
    image_ids: npt.NDArray[np.str_]
    labels: npt.NDArray[np.str_]
    splits: npt.NDArray[np.str_]
    folds: npt.NDArray[np.int64]
    age: npt.NDArray[np.float64]
    sex: npt.NDArray[np.str_]
    site: npt.NDArray[np.str_]
    lesion_ids: npt.NDArray[np.str_]
    source: Any

    @property
    def rows(self) -> int:
        """Number of photos."""
        return sum(self.block_rows)

    @property
    def bytes(self) -> int:
        """Size of all decoded photos."""
        return self.rows * self.image_size_px**2 * 3


@dataclass(frozen=True)
class _Plan:
    """What a task needs to know of the block that it decodes."""

    uri: str
    row_group: int
    rows: int


def gather_photos(
    dataset: PreparedDataset, splits: Sequence[SplitName], preprocessing: Preprocessing, cache: Literal["auto", "memory", "none"]
) -> TrainingPhotos:
    """Looks up the photos of some splits; those to be kept in memory are decoded now, on every CPU of the cluster.

    Args:
        dataset: Where they are.
        splits: Which of them, in this order.
        preprocessing: The model's size.
        cache: memory, none, or auto: memory where the decoded photos fit.

    Raises:
        DatasetError: A shard cannot be read, or a photo that prepare decoded no longer can be: it was damaged.
    """
    files = [file for split in splits for file in dataset.files(split)]
    uris = [storage.join(dataset.uri, file.path) for file in files]
    with ThreadPoolExecutor(16, thread_name_prefix="shards") as threads:
        tables = list(threads.map(_describe, uris, files))
    columns = pa.concat_tables([_DESCRIPTION.empty_table(), *tables])
    plans = [_Plan(uri, group, rows) for uri, file in zip(uris, files, strict=True) for group, rows in enumerate(file.row_groups)]
    total_bytes = len(columns) * preprocessing.image_size_px**2 * 3
    in_memory = _fits(total_bytes) if cache == "auto" else cache == "memory"
    photos = TrainingPhotos(
        block_rows=[plan.rows for plan in plans],
        image_size_px=preprocessing.image_size_px,
        image_ids=_texts(columns["image_id"]),
        labels=_texts(columns["label"]),
        splits=np.repeat(np.array([file.split for file in files], np.str_), [file.rows for file in files]),
        folds=columns["fold"].cast(pa.int64()).fill_null(-1).to_numpy(),
        age=columns["age"].cast(pa.float64()).fill_null(np.nan).to_numpy(),
        sex=_texts(columns["sex"]),
        site=_texts(columns["site"]),
        lesion_ids=_texts(columns["lesion_id"]),
        source=_start_source(plans, preprocessing, kept_rows=len(columns) if in_memory else KEPT_ROWS),
    )
    if in_memory:
        _decode_all(photos)
    return photos


class PhotoReader:
    """Reads photos by row number, in a worker. Used by one thread at a time.

    Args:
        photos: What to read.
        held_rows: Photos to hold at most, those included that are fetched ahead; one block is always held.
    """

    def __init__(self, photos: TrainingPhotos, held_rows: int) -> None:
        self._photos = photos
        self._first = np.cumsum([0, *photos.block_rows[:-1]])
        self._held_rows = held_rows
        # Block -> its pixels, here or on their way; the one that was used or asked for longest ago comes first.
        self._held: OrderedDict[int, Future[Any]] = OrderedDict()
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="blocks")
        self.expect(np.empty(0, np.int64))

    def expect(self, rows: npt.NDArray[np.int64]) -> None:
        """Says which rows will be read, so that their blocks are fetched while the ones before are used.

        Args:
            rows: Row numbers in the order of reading, in place of those that were expected before. They may repeat, and
                those that other workers read may be among them: the slices of `worker_batches` or the order they come from.
        """
        self._length, self._passed = len(rows), 0
        # Every row number with its place in the order, as one sorted number: that finds a row's next place at once.
        self._places = np.sort(rows * self._length + np.arange(self._length))
        blocks = self._blocks_of(rows)
        coming, first = np.unique(blocks, return_index=True)
        _, last = np.unique(blocks[::-1], return_index=True)
        self._over_at = dict(zip(coming.tolist(), (self._length - last).tolist(), strict=True))
        self._coming = deque(coming[np.argsort(first)].tolist())
        # What is held for later than the first blocks to come would stand in their way.
        near = np.cumsum([self._photos.block_rows[block] for block in self._coming]) <= self._held_rows
        for block in set(self._held) - {block for block, is_near in zip(self._coming, near, strict=True) if is_near}:
            self._let_go(block)
        self._fetch_ahead()

    def read(self, rows: npt.NDArray[np.int64]) -> Pixels:
        """The photos with the given row numbers, uint8 [len(rows), size, size, 3], in their order.

        Raises:
            DatasetError: One of them, or of their block, cannot be decoded any more.
        """
        size = self._photos.image_size_px
        pixels = np.empty((len(rows), size, size, 3), np.uint8)
        blocks = self._blocks_of(rows)
        needed = list(dict.fromkeys(blocks.tolist()))
        for block in needed:  # all at the same time
            self._fetch(block)
        for block in needed:
            self._fetch(block)  # again, if there was no room for all
            pixels[blocks == block] = self._held[block].result()[rows[blocks == block] - self._first[block]]
        self._pass(rows)
        return pixels

    def _pass(self, rows: npt.NDArray[np.int64]) -> None:
        """Goes on to behind the next places of `rows` in the expected order, and lets go of the blocks that are over there."""
        if self._length:
            found = np.searchsorted(self._places, rows * self._length + self._passed)
            row_there, place = np.divmod(self._places[np.minimum(found, self._length - 1)], self._length)
            self._passed = max([self._passed, *(place[row_there == rows] + 1).tolist()])
        for block in [block for block in self._held if self._is_over(block)]:
            self._let_go(block)
        self._fetch_ahead()

    def _is_over(self, block: int) -> bool:
        return block in self._over_at and self._over_at[block] <= self._passed

    def _fetch_ahead(self) -> None:
        while self._coming:
            block = self._coming[0]
            if block not in self._held and not self._is_over(block):
                if self._rows_held() + self._photos.block_rows[block] > self._held_rows:
                    return
                self._fetch(block)
            self._coming.popleft()

    def _fetch(self, block: int) -> None:
        if block not in self._held:
            asked = self._photos.source.block.remote(block)
            self._held[block] = self._threads.submit(_received, self._photos.source, block, asked)
        self._held.move_to_end(block)
        while len(self._held) > 1 and self._rows_held() > self._held_rows:
            self._let_go(next(iter(self._held)))

    def _let_go(self, block: int) -> None:
        self._held.pop(block).cancel()

    def _rows_held(self) -> int:
        return sum(self._photos.block_rows[block] for block in self._held)

    def _blocks_of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
        return np.searchsorted(self._first, rows, side="right") - 1


class _Source:
    """Hands out references to decoded blocks: an actor that waits much and computes nothing.

    Args:
        plans: One a block.
        decode_block: Decodes one, in a task.
        preprocessing: The model's size.
        kept_rows: Photos to keep for whoever asks next; what was asked for longest ago is let go first.
    """

    def __init__(self, plans: list[_Plan], decode_block: Any, preprocessing: Preprocessing, kept_rows: int) -> None:
        self._plans, self._preprocessing, self._kept_rows = plans, preprocessing, kept_rows
        self._task: Any = ray.remote(decode_block)
        self._kept: OrderedDict[int, asyncio.Task[ray.ObjectRef[Any]]] = OrderedDict()
        self._busy: Counter[str] = Counter()  # tasks on each machine
        self._turn, self._freed = asyncio.Lock(), asyncio.Event()

    async def block(self, number: int, lost: str = "", reserve_cpu: bool = False) -> "list[ray.ObjectRef[Any]]":
        """A reference to a block's pixels, uint8 [rows, size, size, 3], once they are decoded.

        Args:
            number: Of the block.
            lost: The reference, in hexadecimal, that was handed out before and leads nowhere any more.
            reserve_cpu: Decode on a CPU that nobody has reserved; on a cluster that grows, that makes it grow.

        Returns:
            The reference, in a list because Ray would replace a bare one by what it refers to.
        """
        kept = self._kept.get(number)
        if kept is None or (lost and kept.done() and (await kept).hex() == lost):
            kept = self._kept[number] = asyncio.create_task(self._decode(number, reserve_cpu))
            while len(self._kept) > 1 and sum(self._plans[block].rows for block in self._kept) > self._kept_rows:
                self._kept.popitem(last=False)
        self._kept.move_to_end(number)
        try:
            return [await asyncio.shield(kept)]  # shielded, because others wait for the same block
        except BaseException:
            if self._kept.get(number) is kept:
                del self._kept[number]  # who asks next may have more luck
            raise

    async def _decode(self, number: int, reserve_cpu: bool) -> "ray.ObjectRef[Any]":
        if reserve_cpu:
            return await self._run(number, num_cpus=1)
        async with self._idle_core() as node:
            return await self._run(number, num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True))

    async def _run(self, number: int, **options: Any) -> "ray.ObjectRef[Any]":
        # Without Ray's own retries: it would decode a lost block again on the terms of the first time, and wait for ever for
        # a CPU that training has reserved since. `_received` asks again instead.
        pixels: ray.ObjectRef[Any]
        pixels, done = self._task.options(num_returns=2, max_retries=0, **options).remote(
            self._plans[number], self._preprocessing
        )
        await done
        return pixels

    @contextlib.asynccontextmanager
    async def _idle_core(self) -> AsyncIterator[str]:
        """A machine on which fewer of these tasks run than it has CPUs. They share them with training, which reserved all."""
        async with self._turn:
            while (node := self._idlest()) is None:
                self._freed.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._freed.wait(), timeout=5)  # or until a machine has joined
            self._busy[node] += 1
        try:
            yield node
        finally:
            self._busy[node] -= 1
            self._freed.set()

    def _idlest(self) -> str | None:
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        cores = {node["NodeID"]: node["Resources"].get("CPU", 0) for node in nodes if node["Alive"]}
        idle = {node: count - self._busy[node] for node, count in cores.items()}
        idlest = max(idle, key=idle.__getitem__)
        return idlest if idle[idlest] > 0 else None


def _start_source(plans: list[_Plan], preprocessing: Preprocessing, kept_rows: int) -> Any:
    # On the driver's machine, without which there is no run anyway: all blocks are lost with the actor that owns them.
    where = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(_Source)
    actor = actor.options(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=where)
    return actor.remote(plans, _decode_block, preprocessing, kept_rows)


def _decode_all(photos: TrainingPhotos) -> None:
    asked = [photos.source.block.remote(block, reserve_cpu=True) for block in range(len(photos.block_rows))]
    progress = Progress("decode", total=photos.rows, unit="photos")
    for block, rows in enumerate(photos.block_rows):
        _received(photos.source, block, asked[block], pixels=False)
        progress.advance(rows)


def _received(source: Any, block: int, asked: "ray.ObjectRef[Any]", pixels: bool = True) -> Pixels | None:
    """Waits for a block that was asked for, and asks again when it, or who decodes it, is lost.

    Returns:
        uint8 [rows, size, size, 3] in shared memory; None when no pixels are wanted here.
    """
    for attempt in range(ATTEMPTS):
        time.sleep(attempt)
        lost = ""
        try:
            [reference] = ray.get(asked)
            lost = reference.hex()
            return ray.get(reference) if pixels else None
        except ray.exceptions.RayError as error:
            failure: BaseException = error
        while isinstance(failure, ray.exceptions.RayTaskError):
            failure = failure.cause
        if not isinstance(failure, ray.exceptions.RayError):
            break
        asked = source.block.remote(block, lost=lost)
    raise failure


def _decode_block(plan: _Plan, preprocessing: Preprocessing) -> tuple[Pixels, None]:
    """Reads and decodes a block: uint8 [rows, size, size, 3], and a small thing to wait for in its place."""
    with _opened(plan.uri) as file:
        table = file.read_row_group(plan.row_group, columns=["image_id", "image_bytes"])
    size = preprocessing.image_size_px
    pixels = np.empty((len(table), size, size, 3), np.uint8)
    for target, image_id, data in zip(pixels, table["image_id"].to_pylist(), table["image_bytes"].to_pylist(), strict=True):
        try:
            target[:] = decode_photo(data, preprocessing).pixels
        except ImageError as error:
            raise DatasetError(f"{plan.uri}#{image_id} cannot be decoded any more: {error.detail}; prepare again") from error
    return pixels, None


def _describe(uri: str, shard: ShardFile) -> pa.Table:
    """The descriptive columns of one shard; the photos beside them are not read."""
    with _opened(uri) as file:
        table = file.read(columns=_DESCRIPTION.names)
    if len(table) != shard.rows:
        raise DatasetError(f"{uri} holds {len(table)} photos, its manifest says {shard.rows}; prepare again")
    return table


@contextlib.contextmanager
def _opened(uri: str) -> Iterator[pq.ParquetFile]:
    try:
        # pre_buffer fetches neighbouring columns at once, which counts where every read is a request.
        with pq.ParquetFile(storage.path_of(uri), filesystem=storage.arrow_filesystem(uri), pre_buffer=True) as file:
            yield file
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"cannot read the shard {uri}: {type(error).__name__}: {error}; prepare again") from error


def _texts(column: pa.ChunkedArray) -> npt.NDArray[np.str_]:
    return np.array(column.fill_null("").to_pylist(), np.str_)


def _fits(photo_bytes: int) -> bool:
    """True when photos of so many bytes can be kept in memory; says so, and why."""
    cluster: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    store_bytes = cluster.get("object_store_memory", 0.0)
    fits = photo_bytes <= STORE_SHARE * store_bytes
    limit = f"{STORE_SHARE:.0%} of the object store's {store_bytes / 1e9:.1f} GB"
    if fits:
        say(f"photos: decoded once and kept in memory, {photo_bytes / 1e9:.1f} GB are within {limit}")
    else:
        say(f"photos: decoded anew for every epoch, {photo_bytes / 1e9:.1f} GB are more than {limit}")
    return fits
