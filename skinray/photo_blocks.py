"""Decodes blocks of photos for the training workers, and hands out references to them.

A block is one row group of a shard. One actor for all workers decodes blocks by tasks all over the cluster; what it hands out
are references, and workers read the pixels straight from shared memory. It keeps the blocks that were asked for last. A block
that is lost with a machine is decoded again when it is next asked for.
"""

import asyncio
import contextlib
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from skinray import storage
from skinray.errors import DatasetError, ImageError
from skinray.images import Preprocessing, decode_photo

# How often a block is decoded again because a machine or a process was lost on the way, before that becomes an error.
ATTEMPTS = 5

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class BlockPlan:
    """What a task needs to know of the block that it decodes."""

    uri: str
    row_group: int
    rows: int


class _Source:
    """Hands out references to decoded blocks: an actor that waits much and computes nothing.

    Args:
        plans: One a block.
        decode_block: Decodes one, in a task.
        preprocessing: The model's size.
        kept_rows: Photos to keep for whoever asks next; what was asked for longest ago is let go first.
    """

    def __init__(self, plans: list[BlockPlan], decode_block: Any, preprocessing: Preprocessing, kept_rows: int) -> None:
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
        # a CPU that training has reserved since. `received_block` asks again instead.
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


def start_source(plans: list[BlockPlan], preprocessing: Preprocessing, kept_rows: int) -> Any:
    """Starts the actor that hands out blocks; arguments as `_Source` takes them. It is gone when the last handle of it is."""
    # On the driver's machine, without which there is no run anyway: all blocks are lost with the actor that owns them.
    where = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(_Source)
    actor = actor.options(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=where)
    return actor.remote(plans, decode_block, preprocessing, kept_rows)


def received_block(source: Any, block: int, asked: "ray.ObjectRef[Any]", pixels: bool = True) -> Pixels | None:
    """Waits for a block that was asked for, and asks again when it, or who decodes it, is lost.

    Args:
        source: The actor.
        block: Number of the block.
        asked: What asking the actor for it gave.
        pixels: Also fetch the pixels.

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


def decode_block(plan: BlockPlan, preprocessing: Preprocessing) -> tuple[Pixels, None]:
    """Reads and decodes a block: uint8 [rows, size, size, 3], and a small thing to wait for in its place."""
    with opened_shard(plan.uri) as file:
        table = file.read_row_group(plan.row_group, columns=["image_id", "image_bytes"])
    size = preprocessing.image_size_px
    pixels = np.empty((len(table), size, size, 3), np.uint8)
    for target, image_id, data in zip(pixels, table["image_id"].to_pylist(), table["image_bytes"].to_pylist(), strict=True):
        try:
            target[:] = decode_photo(data, preprocessing).pixels
        except ImageError as error:
            raise DatasetError(f"{plan.uri}#{image_id} cannot be decoded any more: {error.detail}; prepare again") from error
    return pixels, None


@contextlib.contextmanager
def opened_shard(uri: str) -> Iterator[pq.ParquetFile]:
    """A shard to read from.

    Raises:
        DatasetError: It cannot be read.
    """
    try:
        # pre_buffer fetches neighbouring columns at once, which counts where every read is a request.
        with pq.ParquetFile(storage.path_of(uri), filesystem=storage.arrow_filesystem(uri), pre_buffer=True) as file:
            yield file
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"cannot read the shard {uri}: {type(error).__name__}: {error}; prepare again") from error
