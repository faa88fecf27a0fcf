"""What a run says while it runs, and what keeps the libraries' own chatter and detours out of the way."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import rich.console
import rich.markup
import rich.progress


class Progress:
    """Progress of a counted stage on stderr: a line every few seconds, so that a job's log stays readable; on a terminal a bar.

    Args:
        stage: What is being done.
        total: How many there are.
        unit: Of what.
        interval_s: Seconds between two lines.
        clock: Seconds that only grow.
        told: Called with `state()` whenever a line is said.
    """

    def __init__(
        self,
        stage: str,
        total: int,
        unit: str,
        interval_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        told: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.stage, self.total, self.unit = stage, total, unit
        self._told = told
        self.done = 0
        self._interval_s, self._clock = interval_s, clock
        self._started = self._said = clock()
        self._first: tuple[float, int] | None = None
        self._bar = _Bar(stage, total) if sys.stderr.isatty() else None

    def advance(self, count: int, note: str = "") -> None:
        """Counts `count` more and says so when the last line is old enough."""
        self.done += count
        now = self._clock()
        if self._first is None:
            # The rate is taken from here on, once as much again is done: what came before holds the start-up.
            self._first = (now, self.done)
        line = self._line(now, note)
        if self._bar is not None:
            self._bar.show(self.done, line)
        if now - self._said >= self._interval_s or self.done >= self.total:
            self._said = now
            if self._bar is None or self.done >= self.total:
                self._leave_bar()
                say(line)
            if self._told is not None:
                self._told(self.state())

    def state(self) -> dict[str, Any]:
        """Where it stands, as JSON values: done, total, seconds, and per_s and seconds_left as soon as they can be told."""
        now = self._clock()
        rate = self._rate(now)
        return {
            "stage": self.stage,
            "unit": self.unit,
            "done": self.done,
            "total": self.total,
            "seconds": round(now - self._started, 1),
            "per_s": rate and round(rate, 1),
            "seconds_left": rate and round((self.total - self.done) / rate),
        }

    def close(self) -> None:
        """Says how long it took when the last line did not."""
        self._leave_bar()
        if self.done < self.total:
            say(self._line(self._clock(), "ended early"))

    def _leave_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _line(self, now: float, note: str) -> str:
        share = self.done / self.total if self.total else 1.0
        line = f"{self.stage}: {self.done:,} of {self.total:,} {self.unit} ({share:.0%}), {now - self._started:.0f} s"
        rate = self._rate(now)
        if rate is not None:
            line += f", {rate:.1f} {self.unit}/s"
            if self.done < self.total:
                line += f", {(self.total - self.done) / rate:.0f} s left"
        return f"{line}, {note}" if note else line

    def _rate(self, now: float) -> float | None:
        if self._first is None or now - self._first[0] < 0.5 or self.done < 2 * self._first[1]:
            return None
        return (self.done - self._first[1]) / (now - self._first[0])


class Tally:
    """How far a stage has come whose end is not known: a line on stderr every few seconds, none of a short one.

    Args:
        stage: What is being done.
        unit: Of what.
        interval_s: Seconds between two lines.
        clock: Seconds that only grow.
    """

    def __init__(self, stage: str, unit: str, interval_s: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._stage, self._unit, self._done = stage, unit, 0
        self._interval_s, self._clock = interval_s, clock
        self._started = self._said = clock()

    def advance(self) -> None:
        """Counts one more and says so when the last line is old enough."""
        self._done += 1
        now = self._clock()
        if now - self._said >= self._interval_s:
            self._said = now
            say(f"{self._stage}: {self._done:,} {self._unit}, {now - self._started:.0f} s")


class _Bar:
    """A bar on a terminal, under which lines go on being said."""

    shown: rich.progress.Progress | None = None

    def __init__(self, stage: str, total: int) -> None:
        columns = (rich.progress.BarColumn(bar_width=24), rich.progress.TextColumn("{task.description}"))
        console = rich.console.Console(stderr=True, highlight=False, markup=False)
        self._progress = rich.progress.Progress(*columns, console=console, transient=True)
        self._task = self._progress.add_task(rich.markup.escape(stage), total=total)
        self._progress.start()
        _Bar.shown = self._progress

    def show(self, done: int, line: str) -> None:
        """Moves it, with a line beside it."""
        self._progress.update(self._task, completed=done, description=rich.markup.escape(line))

    def close(self) -> None:
        """Takes it away."""
        self._progress.stop()
        _Bar.shown = None


def say(line: str) -> None:
    """Prints one line for the person who watches, at once; results go to stdout, this goes to stderr."""
    if _Bar.shown is not None:
        _Bar.shown.console.print(line, soft_wrap=True)
    else:
        print(line, file=sys.stderr, flush=True)


def process_age_s() -> float:
    """Seconds since this process was started, which was before its first line of Python."""
    ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    return float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")


def import_tensorflow() -> None:
    """Imports TensorFlow in the driver without the lines that it writes to stderr before its log level counts."""
    sys.stderr.flush()
    saved = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        import tensorflow as tf

        tf.config.list_physical_devices()  # the search for GPUs has its say here
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def set_library_defaults() -> None:
    """Sets the environment variables that TensorFlow, Keras and Ray read when they are imported.

    Must run before either is imported; what the user set already stays.
    """
    defaults = {
        "TF_CPP_MIN_LOG_LEVEL": "2",  # errors only
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",  # a GPU is shared by training, scoring and serving
        "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",  # it asks the dashboard, which local runs have not
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how late, of 2 s by default, a run's end is noticed
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # with it, Ctrl-C would end a search as if it were finished
        "KERAS_BACKEND": "tensorflow",
    }
    if "RAY_ADDRESS" not in os.environ:
        # Ray's switch for machines that are no cluster's: with it off, every port of a local Ray is bound to 127.0.0.1.
        defaults["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        # Ray Data's own actors draw an error line about their arguments at every start; what matters reaches Python.
        defaults["RAY_BACKEND_LOG_LEVEL"] = "fatal"
        # Nobody takes this machine back from a local Ray; a process that asks for it costs each training 2 s of processor time.
        defaults["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def without_dashboard() -> Iterator[None]:
    """For starting a local Ray that has no dashboard: tells its processes that there is none to ask.

    Ray Train asks it whether a run's controller is alive, and without an answer holds every run up at its end for 13 s.
    """
    name = "RAY_API_SERVER_ADDRESS"
    if name in os.environ:
        yield
        return
    os.environ[name] = "http://127.0.0.1:9"  # the discard port: refused at once
    try:
        yield
    finally:
        del os.environ[name]
