"""When a worker speaks and saves: what steps cost, and after which of them a checkpoint is due."""

import math
import time
from collections.abc import Iterator
from typing import TypeVar

from ray.train.collective import broadcast_from_rank_zero

from skinray.training_config import TrainSettings

# Seconds between two lines of progress.
SAID_EVERY_S = 10.0

Item = TypeVar("Item")


class Meter:
    """What the steps of one epoch cost, in this process.

    Args:
        global_batch_size: Photos of one step.
    """

    def __init__(self, global_batch_size: int) -> None:
        self._global_batch_size = global_batch_size
        self._started = self._said = time.monotonic()
        self.steps = 0
        self.wait_s = 0.0

    def waited_for(self, batches: Iterator[Item]) -> Iterator[Item]:
        """The same batches; counts them and the seconds that each was waited for."""
        while True:
            asked = time.monotonic()
            batch = next(batches, None)
            if batch is None:
                return
            self.wait_s += time.monotonic() - asked
            yield batch
            self.steps += 1

    @property
    def elapsed_s(self) -> float:
        """Seconds since the epoch began."""
        return time.monotonic() - self._started

    @property
    def images_per_s(self) -> float:
        """Photos a second over all workers."""
        return self.steps * self._global_batch_size / max(1e-9, self.elapsed_s)

    @property
    def is_silent(self) -> bool:
        """True when the last line of progress is SAID_EVERY_S old; asking starts anew when it is."""
        silent = time.monotonic() - self._said >= SAID_EVERY_S
        if silent:
            self._said = time.monotonic()
        return silent


class CheckpointClock:
    """Says after which steps to checkpoint; all ranks get the same answer.

    Every `checkpoint_steps`, or by rank 0's clock: it looks after ten steps how long a step takes, and sets the step at which
    all look again.
    """

    _FIRST_LOOK = 10

    def __init__(self, settings: TrainSettings, rank: int, first_step: int) -> None:
        self._every, self._interval_s, self._rank = settings.checkpoint_steps, settings.checkpoint_minutes * 60, rank
        self._began, self._began_step = time.monotonic(), first_step
        self._next = first_step + self._FIRST_LOOK

    def due(self, done: int) -> bool:
        """True when a checkpoint belongs after step `done` of the epoch, counted from 1."""
        if self._every:
            return done % self._every == 0
        if done < self._next:
            return False
        due, self._next = broadcast_from_rank_zero(self._look(done) if self._rank == 0 else None)
        if due:
            self._began, self._began_step = time.monotonic(), done
        return bool(due)

    def _look(self, done: int) -> tuple[bool, int]:
        passed_s = time.monotonic() - self._began
        step_s = passed_s / max(1, done - self._began_step)
        # A look that comes a little early counts: better than another look for the last seconds.
        due = passed_s >= 0.9 * self._interval_s
        left_s = self._interval_s if due else self._interval_s - passed_s
        return due, done + max(1, math.ceil(left_s / step_s))
