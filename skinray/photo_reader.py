"""Reads training photos in a worker: by row number, with the blocks that come next fetched ahead."""

from collections import OrderedDict, deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from skinray.photo_blocks import Pixels, received_block
from skinray.photo_cache import TrainingPhotos


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
            self._held[block] = self._threads.submit(received_block, self._photos.source, block, asked)
        self._held.move_to_end(block)
        while len(self._held) > 1 and self._rows_held() > self._held_rows:
            self._let_go(next(iter(self._held)))

    def _let_go(self, block: int) -> None:
        self._held.pop(block).cancel()

    def _rows_held(self) -> int:
        return sum(self._photos.block_rows[block] for block in self._held)

    def _blocks_of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
        return np.searchsorted(self._first, rows, side="right") - 1
