"""What a training run shows while it runs and leaves behind for those who look at it; on the driver's side.

<output>/history.jsonl    one line an epoch
<output>/tensorboard/     event files: `tensorboard --logdir <output>/tensorboard`
<output>/mlflow.json      the id of the run at the MLflow server, so that a resumed run goes on with it
<output>/curves.png       training against validation, written at the end

Workers send two kinds of records: a few steps' every ten seconds or so, and an epoch's. Steps are said and not stored: the
epoch's record has their means, the job's log has the lines, and on S3 a file of them would be written whole again each time.

history.jsonl is part of the run's result, and a failure to write it is an error. All else can be done without: its first
failure is said in one line, the training goes on, and it is tried again after the next epoch.
"""

import json
import math
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

from skinray import storage
from skinray.overfitting import best_epoch
from skinray.reports import training_curves
from skinray.telemetry import say
from skinray.tracking import EventFile, MlflowRun, Record, data_wait_share, with_record

HISTORY, EVENTS, CURVES = "history.jsonl", "tensorboard", "curves.png"


class TrainingLog:
    """Takes the records of a run and shows them; a context manager that ends with the run.

    Args:
        output_uri: Folder or s3:// prefix of the run.
        settings: The run's settings, nested.
        tensorboard: Whether event files are written.
        mlflow_uri: MLflow tracking server or folder; none: not used.
        run_name: For people.
        history: The records of the epochs done before, when a run is resumed.

    Raises:
        ConfigError: MLflow is not installed, or `mlflow_uri` is nothing that it knows.
    """

    def __init__(
        self,
        output_uri: str,
        settings: Mapping[str, Any],
        tensorboard: bool,
        mlflow_uri: str | None,
        run_name: str,
        history: Sequence[Record] = (),
    ) -> None:
        self.history: list[Record] = list(history)
        self._output, self._run_name = storage.normalize(output_uri), run_name
        self._epoch_seconds: dict[str | None, list[float]] = {}
        self._sinks: list[tuple[_Dispensable, _Sink]] = []
        if tensorboard:
            self._sinks.append((_Dispensable("TensorBoard"), EventFile(storage.join(self._output, EVENTS))))
        if mlflow_uri:
            self._sinks.append((_Dispensable("MLflow"), MlflowRun(mlflow_uri, self._output, settings, run_name, history)))
        # Records come in a thread of their own; a close must not meet one that is half written.
        self._lock = threading.Lock()

    def __enter__(self) -> "TrainingLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close(failed=error is not None)

    def record(self, record: Record) -> None:
        """Shows one record.

        Args:
            record: Of some steps (`kind` is "steps") or of an epoch. An epoch's that was recorded before, because it ran again
                after a kill, takes the place of that one and of all after it.

        Raises:
            StorageError: history.jsonl cannot be written.
        """
        with self._lock:
            if record.get("kind") == "steps":
                say(step_line(record, self._remaining_s(record)))
                return
            if "epoch_s" in record:
                self._epoch_seconds.setdefault(record.get("phase"), []).append(record["epoch_s"])
            say(epoch_line(record, self._remaining_s(record)))
            self.history = with_record(self.history, record)
            self._write_history()
            for dispensable, sink in self._sinks:
                with dispensable:
                    sink.write(record)

    def complete(self, history: Sequence[Record]) -> None:
        """Takes the history that the run itself has kept: a kill may have come between an epoch's checkpoint and its record.

        Raises:
            StorageError: history.jsonl cannot be written.
        """
        with self._lock:
            self.history = list(history)
            self._write_history()

    def _write_history(self) -> None:
        lines = "".join(json.dumps(_as_json(epoch)) + "\n" for epoch in self.history)
        storage.write_bytes(storage.join(self._output, HISTORY), lines.encode())

    def close(self, failed: bool = False) -> None:
        """Writes what is written at the end, and closes everything.

        Args:
            failed: Whether the run ended in an error.
        """
        with self._lock:
            if self.history:
                with _Dispensable(CURVES):
                    png = training_curves(self.history, best_epoch(self.history), self._run_name)
                    storage.write_bytes(storage.join(self._output, CURVES), png)
            for dispensable, sink in self._sinks:
                with dispensable:
                    sink.close(failed)

    def _remaining_s(self, record: Record) -> float | None:
        """Seconds to the end of the last epoch: at the pace of this process' epochs of the same phase, else of the last steps.

        Phases differ in speed, several times over with a frozen backbone; those to come are taken to be like this one.
        """
        epochs = record["epochs"] - record["epoch"]
        if record.get("kind") == "steps":
            epochs += 1 - record["step"] / record["steps_per_epoch"]
        done = self._epoch_seconds.get(record.get("phase"))
        if done:
            return float(epochs * sum(done) / len(done))
        if "steps_per_epoch" in record and "step_s" in record:
            return float(epochs * record["steps_per_epoch"] * record["step_s"])
        return None


def read_history(output_uri: str) -> list[dict[str, Any]]:
    """The epochs that a run has recorded so far, one record each; none of a run that has not begun."""
    uri = storage.join(output_uri, HISTORY)
    return [json.loads(line) for line in storage.read_bytes(uri).splitlines()] if storage.exists(uri) else []


STEP_PARTS = (
    ("loss", "loss {:.4f}"),
    ("learning_rate", "lr {:.1e}"),
    ("images_per_s", "{:.1f} photos/s"),
    ("step_ms", "step {:.0f} ms"),
    ("data_wait_percent", "data wait {:.1f} %"),
)
EPOCH_PARTS = (
    ("train_loss", "train loss {:.4f}"),
    ("train_auc", "train AUC {:.4f}"),
    ("validation_loss", "validation loss {:.4f}"),
    ("validation_auc", "validation AUC {:.4f}"),
    ("images_per_s", "{:.1f} photos/s"),
    ("step_ms", "step {:.0f} ms"),
    ("data_wait_s", "waited {:.1f} s for photos"),
)


def step_line(record: Record, remaining_s: float | None = None) -> str:
    """The last few steps for the person who watches.

    Args:
        record: Of some steps.
        remaining_s: Seconds to the end of the run; none: not known.
    """
    begin = f"epoch {record['epoch']} of {record['epochs']}, step {record['step']} of {record['steps_per_epoch']}"
    phase = f" ({record['phase']})" if record.get("phase") else ""
    return f"{begin}{phase}: {_listed(record, STEP_PARTS, remaining_s)}"


def epoch_line(record: Record, remaining_s: float | None = None) -> str:
    """One epoch for the person who watches.

    Args:
        record: Of an epoch; figures that it has not are left out.
        remaining_s: Seconds to the end of the run; none: not known.
    """
    phase = f" ({record['phase']})" if record.get("phase") else ""
    done = f"epoch {record['epoch']} of {record['epochs']}{phase}"
    return f"{done}: {_listed(record, EPOCH_PARTS, None if record['epoch'] == record['epochs'] else remaining_s)}"


def _listed(record: Record, parts: Sequence[tuple[str, str]], remaining_s: float | None) -> str:
    step_s, wait_share = record.get("step_s"), data_wait_share(record)
    known = dict(record) | {
        "step_ms": None if step_s is None else 1000 * step_s,
        "data_wait_percent": None if wait_share is None else 100 * wait_share,
    }
    said = [form.format(known[name]) for name, form in parts if known.get(name) is not None]
    if remaining_s is not None:
        said.append(f"{in_words(remaining_s)} left")
    return ", ".join(said)


def in_words(seconds: float) -> str:
    """A duration as a person says it: 45 s, 12 min, 3 h 20 min, 2 d 4 h."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def _as_json(record: Record) -> dict[str, Any]:
    """The record with null for what is not a number, for which JSON has no word."""
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in record.items()}


class _Sink(Protocol):
    """A place that the records of epochs go to."""

    def write(self, record: Record) -> None:
        """Takes an epoch's record."""

    def close(self, failed: bool) -> None:
        """Ends with the run, which `failed` or did not."""


class _Dispensable:
    """What a training can do without: an error in its `with` block is said, the first time, and goes no further."""

    def __init__(self, name: str) -> None:
        self._name, self._said = name, False

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> bool:
        if not isinstance(error, Exception):  # an interrupt ends the training as it should
            return False
        if not self._said:
            self._said = True
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            say(f"warning: {self._name} cannot be written, training goes on: {reason}")
        return True
