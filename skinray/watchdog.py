"""A lost peer is an error and not a hang: aborts a worker's collectives when no step ends for too long.

A worker whose peer is gone waits in a collective for ever. Ray replaces the group as soon as it sees a process or a
node die; the watchdog is for what Ray cannot see: a peer that lives and does not answer, or waits for another step.
"""

import threading
import time
from collections.abc import Callable


class Watchdog:
    """Calls `abort` once when `beat` was not called for `timeout_s` seconds.

    Args:
        timeout_s: Seconds without a beat.
        abort: Called in the watchdog's thread with one sentence that says what happened.
        clock: Seconds that only grow.
    """

    def __init__(self, timeout_s: float, abort: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._timeout_s, self._abort, self._clock = timeout_s, abort, clock
        self._beaten = clock()
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

    def beat(self) -> None:
        """Says that a step has ended."""
        self._beaten = self._clock()

    def stop(self) -> None:
        """Ends the watch."""
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(min(1.0, self._timeout_s / 4)):
            silent_s = self._clock() - self._beaten
            if silent_s > self._timeout_s:
                self._abort(f"no step ended for {silent_s:.0f} s (collective_timeout_s): a peer is lost or out of step")
                return


def abort_collectives(reason: str) -> None:
    """Ends every running collective of this process with an UnavailableError that carries the reason."""
    import tensorflow as tf
    from tensorflow.python.eager import context

    context.context().abort_collective_ops(tf.errors.UNAVAILABLE, reason)
