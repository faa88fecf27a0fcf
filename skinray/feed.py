"""Which photo every training step sees: a pure function of the seed, the epoch and the step.

The order knows nothing of workers: global batch k is the same photos for one worker and for many, each of which takes
its own equal slice. That is what makes N workers comparable with one, keeps their step counts equal (unequal ones would
hang the collectives) and makes an epoch that is run again after a kill the same epoch.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from queue import Queue
from typing import TypeVar

import numpy as np
import numpy.typing as npt

# Photos are shuffled within windows of whole blocks, so that a worker holds one window and not the data set. 8,192
# photos of 224x224 are 1.2 GB; a data set up to that size is shuffled as a whole.
WINDOW_ROWS = 8192

Item = TypeVar("Item")


def blocks_of(rows: npt.NDArray[np.int64], block_rows: Sequence[int]) -> list[npt.NDArray[np.int64]]:
    """Which of the given rows each block holds.

    Args:
        rows: Row numbers, ascending; row r of block b has the number sum(block_rows[:b]) + r.
        block_rows: Number of photos in each block.

    Returns:
        int64 [rows of the block that were given], a block each.
    """
    return np.split(rows, np.searchsorted(rows, np.cumsum(block_rows)[:-1]))


def epoch_order(
    blocks: Sequence[npt.NDArray[np.int64]],
    seed: int,
    epoch: int,
    balanced_by: npt.NDArray[np.int32] | None = None,
    window_rows: int = WINDOW_ROWS,
) -> npt.NDArray[np.int64]:
    """The order in which one epoch takes the photos.

    Args:
        blocks: The row numbers of each block.
        seed: Of the run.
        epoch: From 0.
        balanced_by: The class of every row number; given, every class comes as often as the others.
        window_rows: Photos that are shuffled together, at least one block.

    Returns:
        int64 [rows of all blocks]: every row number exactly once; with `balanced_by`, as many, of which rare classes' are
        repeated and frequent classes' are partly left out, window by window.
    """
    generator = np.random.default_rng((seed, epoch))
    order: list[npt.NDArray[np.int64]] = []
    window: list[npt.NDArray[np.int64]] = []

    def close_window() -> None:
        rows = np.concatenate(window)
        if balanced_by is not None:
            rows = _balanced(rows, balanced_by[rows], generator)
        order.append(generator.permutation(rows))
        window.clear()

    for block in generator.permutation(len(blocks)):
        window.append(blocks[block])
        if sum(map(len, window)) >= window_rows:
            close_window()
    if window:
        close_window()
    return np.concatenate(order) if order else np.empty(0, np.int64)


def _balanced(
    rows: npt.NDArray[np.int64], classes: npt.NDArray[np.int32], generator: np.random.Generator
) -> npt.NDArray[np.int64]:
    """As many rows, of every class equally many, give or take one; of a class no row twice more often than another."""
    present = np.unique(classes)
    counts = np.full(len(present), len(rows) // max(1, len(present)))
    counts[generator.permutation(len(present))[: len(rows) - counts.sum()]] += 1
    drawn = [np.empty(0, np.int64)]
    for code, count in zip(present, counts, strict=True):
        mine = rows[classes == code]
        rounds = -(-count // len(mine))
        drawn.append(np.concatenate([generator.permutation(mine) for _ in range(rounds)])[:count])
    return np.concatenate(drawn)


def worker_batches(
    order: npt.NDArray[np.int64], global_batch_size: int, rank: int, num_workers: int, first_step: int, steps: int
) -> Iterator[npt.NDArray[np.int64]]:
    """The row numbers that one worker takes at each step.

    Args:
        order: From `epoch_order`.
        global_batch_size: Photos a step over all workers, a multiple of `num_workers`.
        rank: Of this worker, from 0.
        num_workers: How many there are.
        first_step: Where to begin, from 0.
        steps: Steps in the epoch; `steps * global_batch_size` is at most `len(order)`.

    Yields:
        int64 [global_batch_size / num_workers] for every step from `first_step` on.
    """
    share = global_batch_size // num_workers
    for step in range(first_step, steps):
        start = step * global_batch_size + rank * share
        yield order[start : start + share]


def prefetched(items: Iterator[Item], depth: int = 2) -> Iterator[Item]:
    """The same items, made by a thread while the consumer works on the one before; an error is raised in its place."""
    queue: Queue[Callable[[], Item] | None] = Queue(depth)
    stopped = threading.Event()

    def produce() -> None:
        try:
            for item in items:
                queue.put(lambda item=item: item)  # type: ignore[misc]
                if stopped.is_set():
                    return
        except BaseException as error:  # handed to the consumer, whatever it is
            queue.put(lambda error=error: _raise(error))  # type: ignore[misc]
        queue.put(None)

    thread = threading.Thread(target=produce, daemon=True, name="prefetch")
    thread.start()
    try:
        while (made := queue.get()) is not None:
            yield made()
    finally:
        stopped.set()
        while not queue.empty():
            queue.get_nowait()


def _raise(error: BaseException) -> Item:  # type: ignore[type-var]
    raise error
