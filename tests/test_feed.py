"""The order of training: a permutation that every number of workers shares, and a thread that ends with its consumer."""

import threading
import time
from collections.abc import Iterator
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from skinray.feed import blocks_of, prefetched, worker_batches
from skinray.feed import epoch_order as order_of_blocks

blocks = st.lists(st.integers(0, 20), max_size=12)


def epoch_order(block_rows: list[int], seed: int, epoch: int, window_rows: int = 8192) -> NDArray[np.int64]:
    """The order of all rows of the blocks."""
    return order_of_blocks(blocks_of(np.arange(sum(block_rows)), block_rows), seed, epoch, window_rows=window_rows)


def batches(
    order: NDArray[np.int64], batch: int, rank: int = 0, workers: int = 1, first: int = 0, steps: int | None = None
) -> list[list[int]]:
    taken = worker_batches(order, batch, rank, workers, first, len(order) // batch if steps is None else steps)
    return [rows.tolist() for rows in taken]


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def wait_until_no_thread() -> bool:
    deadline = time.monotonic() + 5
    while prefetch_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not prefetch_threads()


# The order of an epoch


@settings(deadline=None, max_examples=50)
@given(block_rows=blocks, seed=st.integers(0, 2**32), epoch=st.integers(0, 1000), window_rows=st.integers(1, 100))
def test_every_photo_comes_exactly_once(block_rows: list[int], seed: int, epoch: int, window_rows: int) -> None:
    order = epoch_order(block_rows, seed, epoch, window_rows)
    assert sorted(order.tolist()) == list(range(sum(block_rows)))
    assert order.dtype == np.int64


@settings(deadline=None, max_examples=50)
@given(block_rows=blocks, seed=st.integers(0, 2**32), epoch=st.integers(0, 1000), window_rows=st.integers(1, 100))
def test_the_order_follows_from_the_seed_and_the_epoch_alone(
    block_rows: list[int], seed: int, epoch: int, window_rows: int
) -> None:
    once, again = (epoch_order(block_rows, seed, epoch, window_rows) for _ in range(2))
    np.testing.assert_array_equal(once, again)


def test_another_seed_or_epoch_is_another_order() -> None:
    orders = {tuple(epoch_order([50, 50], seed, epoch).tolist()) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


@settings(deadline=None, max_examples=50)
@given(block_rows=st.lists(st.integers(1, 10), min_size=1, max_size=12), window_rows=st.integers(1, 60), seed=st.integers(0, 99))
def test_no_more_than_one_window_of_blocks_is_open_at_a_time(block_rows: list[int], window_rows: int, seed: int) -> None:
    left = dict(enumerate(block_rows))
    for block in np.repeat(np.arange(len(block_rows)), block_rows)[epoch_order(block_rows, seed, 0, window_rows)].tolist():
        left[block] -= 1
        open_rows = sum(rows for number, rows in enumerate(block_rows) if 0 < left[number] < rows)
        assert open_rows < window_rows + max(block_rows)


def test_a_data_set_within_one_window_is_shuffled_as_a_whole() -> None:
    order = epoch_order([100] * 10, seed=0, epoch=0, window_rows=1000)
    blocks_in_the_first_tenth = set((order[:100] // 100).tolist())
    assert len(blocks_in_the_first_tenth) == 10


@settings(deadline=None, max_examples=50)
@given(block_rows=blocks, chosen=st.sets(st.integers(0, 240)))
def test_the_chosen_rows_are_parted_by_their_blocks(block_rows: list[int], chosen: set[int]) -> None:
    rows = np.array(sorted(row for row in chosen if row < sum(block_rows)), np.int64)
    parts = blocks_of(rows, block_rows)
    assert np.concatenate([*parts, rows[:0]]).tolist() == rows.tolist()
    ends = np.cumsum(block_rows)
    for part, rows_of_block, end in zip(parts, block_rows, ends, strict=False):
        assert all(end - rows_of_block <= row < end for row in part)


# Balance


@settings(deadline=None, max_examples=100)
@given(
    classes=st.lists(st.integers(0, 3), min_size=1, max_size=80),
    split=st.integers(1, 80),
    seed=st.integers(0, 99),
    window_rows=st.integers(1, 100),
)
def test_balanced_every_class_comes_equally_often(classes: list[int], split: int, seed: int, window_rows: int) -> None:
    split = min(split, len(classes))
    parts = blocks_of(np.arange(len(classes)), [split, len(classes) - split])
    kinds = np.array(classes, np.int32)
    order = order_of_blocks(parts, seed, 0, balanced_by=kinds, window_rows=window_rows)
    assert len(order) == len(classes), "an epoch stays as long"
    if window_rows >= len(classes):
        counts = np.bincount(kinds[order])[np.unique(kinds)]
        assert counts.max() - counts.min() <= 1
        for code in np.unique(kinds):
            taken = np.bincount(order[kinds[order] == code], minlength=len(classes))[kinds == code]
            assert taken.max() - taken.min() <= 1, "no photo of a class comes twice more often than another of it"


def test_balanced_epochs_differ_in_which_photos_of_the_frequent_class_they_take() -> None:
    kinds = np.array([0] * 90 + [1] * 10, np.int32)
    taken = [set(order_of_blocks([np.arange(100)], 0, epoch, balanced_by=kinds).tolist()) for epoch in range(3)]
    assert taken[0] != taken[1] != taken[2]
    assert all(set(range(90, 100)) <= rows for rows in taken), "every rare photo comes in every epoch"


# Workers


@settings(deadline=None)
@given(
    rows=st.integers(0, 200),
    share=st.integers(1, 8),
    workers=st.sampled_from([1, 2, 3, 4, 6, 8]),
    first=st.integers(0, 30),
)
def test_the_slices_of_all_workers_together_are_the_global_batches(rows: int, share: int, workers: int, first: int) -> None:
    order = epoch_order([rows], seed=3, epoch=0)
    batch = share * workers
    slices = [batches(order, batch, rank, workers, first) for rank in range(workers)]
    joined = [list(chain.from_iterable(parts)) for parts in zip(*slices, strict=True)]  # strict: every worker takes as many steps
    assert joined == batches(order, batch, first=first)
    assert all(len(part) == share for parts in slices for part in parts)


@settings(deadline=None, max_examples=50)
@given(rows=st.integers(0, 200), batch=st.integers(1, 20), first=st.integers(0, 40))
def test_a_resumed_epoch_is_the_tail_of_the_whole_one(rows: int, batch: int, first: int) -> None:
    order = epoch_order([rows], seed=0, epoch=0)
    assert batches(order, batch, first=first) == batches(order, batch)[first:]


@settings(deadline=None, max_examples=50)
@given(rows=st.integers(0, 200), batch=st.integers(1, 20))
def test_an_epoch_repeats_no_photo_and_drops_less_than_one_batch(rows: int, batch: int) -> None:
    taken = list(chain.from_iterable(batches(epoch_order([rows], seed=0, epoch=0), batch)))
    assert len(set(taken)) == len(taken)
    assert rows - len(taken) < batch


def test_fewer_steps_stop_early() -> None:
    assert batches(np.arange(10), 2, steps=3) == [[0, 1], [2, 3], [4, 5]]


# Prefetching


@settings(deadline=None, max_examples=30)
@given(items=st.lists(st.none() | st.integers()), depth=st.integers(1, 5))
def test_prefetched_items_are_the_same_in_the_same_order(items: list[int | None], depth: int) -> None:
    assert list(prefetched(iter(items), depth)) == items


def test_the_next_item_is_made_while_the_consumer_works() -> None:
    made = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        made.set()
        yield 2

    feed = prefetched(items())
    assert next(feed) == 1
    assert made.wait(5)
    assert list(feed) == [2]


def test_no_more_is_made_than_asked_for() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    feed = prefetched(items(), depth=2)
    next(feed)
    time.sleep(0.1)
    assert len(made) <= 5  # one taken, two waiting, one in the producer's hand, one for the race
    feed.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("error", [ValueError("shard 3 is gone"), KeyboardInterrupt(), StopAsyncIteration()])
def test_an_error_is_raised_at_its_place(error: BaseException) -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise error

    feed = prefetched(items())
    assert [next(feed), next(feed)] == [1, 2]
    with pytest.raises(type(error)) as caught:
        next(feed)
    assert caught.value is error


def test_nothing_runs_before_the_first_item_is_asked_for() -> None:
    feed = prefetched(iter([1, 2]))
    assert prefetch_threads() == []
    assert next(feed) == 1


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("taken", [1, 2, 5])
def test_the_thread_ends_when_the_consumer_leaves_early(depth: int, taken: int) -> None:
    feed = prefetched(iter(range(1000)), depth)
    for _ in range(taken):
        next(feed)
    time.sleep(0.02)  # let the producer fill the queue and block
    feed.close()  # type: ignore[attr-defined]
    assert wait_until_no_thread()


def test_the_thread_ends_when_the_consumer_fails() -> None:
    def consume() -> None:
        for number in prefetched(iter(range(1000))):
            if number == 3:
                raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        consume()
    assert wait_until_no_thread()


def test_the_thread_ends_with_its_items() -> None:
    assert list(prefetched(iter([1, 2, 3]))) == [1, 2, 3]
    assert wait_until_no_thread()


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_thread_ends_when_the_consumer_leaves_just_before_the_end(count: int) -> None:
    feed = prefetched(iter(range(count)), depth=1)
    next(feed)
    time.sleep(0.02)
    feed.close()  # type: ignore[attr-defined]
    assert wait_until_no_thread()
