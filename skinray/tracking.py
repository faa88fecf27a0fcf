"""Where a run's epochs go besides its own files: TensorBoard's event files and an MLflow run."""

import math
import os
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from skinray import storage
from skinray.errors import ConfigError

MLFLOW_RUN = "mlflow.json"

Record = Mapping[str, Any]

# Set before MLflow is imported, where the user has not set them.
MLFLOW_DEFAULTS = {
    # One attempt of at most ten seconds: an epoch that cannot be sent is sent with the next one. MLflow's own defaults
    # would hold the log back for minutes after every epoch.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_ALLOW_FILE_STORE": "true",  # it refuses a folder otherwise
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout is for results
    "MLFLOW_DISABLE_TELEMETRY": "true",  # nothing goes anywhere but to the server that was named
}
MLFLOW_EXPERIMENT = "skinray"
MLFLOW_BATCH = 100  # the most parameters that a server takes at once


def with_record(records: Sequence[Record], record: Record) -> list[Record]:
    """The records with another at the end; those of the same epoch and after it were of a run that was cut off."""
    return [*(earlier for earlier in records if earlier["epoch"] < record["epoch"]), record]


def data_wait_share(record: Record) -> float | None:
    """Share of the training time in which steps waited for photos."""
    whole_s = record.get("step_s") if record.get("kind") == "steps" else record.get("train_s")
    return record["data_wait_s"] / whole_s if whole_s and record.get("data_wait_s") is not None else None


def scalars(record: Record) -> dict[str, float]:
    """An epoch's figures, as far as they are numbers, by the names under which TensorBoard and MLflow group them."""
    names = {
        "train/loss": "train_loss",
        "train/auc": "train_auc",
        "train/balanced_accuracy": "train_balanced_accuracy",
        "validation/loss": "validation_loss",
        "validation/auc": "validation_auc",
        "validation/balanced_accuracy": "validation_balanced_accuracy",
        "speed/images_per_s": "images_per_s",
        "speed/epoch_s": "epoch_s",
        "learning_rate": "learning_rate",
    }
    values = {tag: record.get(name) for tag, name in names.items()} | {"speed/data_wait_share": data_wait_share(record)}
    return {tag: float(value) for tag, value in values.items() if value is not None and math.isfinite(value)}


class EventFile:
    """TensorBoard's event file; every process that works on the run has its own.

    It begins, and goes back when an epoch is repeated, with the event that makes TensorBoard forget that epoch and all after
    it, from the files before too: so none is drawn twice.

    Not by way of tensorboardX.SummaryWriter, which writes from a thread of its own: its flush does not wait for what that
    thread has not taken yet, so an upload might miss an epoch; and on a full disk the thread ends, its queue fills, and adding
    to it blocks for ever. Events are a kilobyte an epoch: here they are kept, and what a failure left out follows later.
    """

    def __init__(self, folder_uri: str) -> None:
        started_ns = time.time_ns()
        # The form that TensorBoard looks for; files are read in the order of their names.
        name = f"events.out.tfevents.{started_ns // 10**9}.{socket.gethostname()}.{started_ns}"
        self._uri = storage.join(folder_uri, name)
        self._events = b""
        self._written = 0  # bytes that are safely there
        self._next_epoch: int | None = None

    def write(self, record: Record) -> None:
        """Takes an epoch's record."""
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import scalar

        epoch, now_s = record["epoch"], time.time()
        if not self._events:
            self._add(Event(wall_time=now_s, file_version="brain.Event:2"))
        if self._next_epoch is None or epoch < self._next_epoch:
            self._add(Event(wall_time=now_s, step=epoch, session_log=SessionLog(status=SessionLog.START)))
        for tag, value in scalars(record).items():
            self._add(Event(wall_time=now_s, step=epoch, summary=scalar(tag, value)))
        self._next_epoch = epoch + 1
        self._store()

    def close(self, failed: bool) -> None:  # noqa: ARG002, what ended badly is drawn as well
        """Writes what a failure left out."""
        self._store()

    def _add(self, event: Any) -> None:
        """Appends one event in TFRecord's frame: length and content, each with its checksum."""
        from tensorboardX.record_writer import masked_crc32c

        content = event.SerializeToString()
        length = struct.pack("<Q", len(content))
        self._events += length + struct.pack("<I", masked_crc32c(length))
        self._events += content + struct.pack("<I", masked_crc32c(content))

    def _store(self) -> None:
        if self._written == len(self._events):
            return
        if storage.is_remote(self._uri):
            storage.write_bytes(self._uri, self._events)
        else:
            # Not replaced as a whole: a running TensorBoard holds the file open and reads what is appended.
            path = Path(storage.path_of(self._uri))
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                file.truncate(self._written)  # from the middle of an event that a full disk cut off
                file.write(self._events[self._written :])
        self._written = len(self._events)


class MlflowRun:
    """The run at an MLflow tracking server, or in a folder.

    What could not be sent is sent with the next epoch, or at the end. MLflow cannot take back: of an epoch that was repeated
    it shows both values, and counts the later one.
    """

    def __init__(
        self, tracking_uri: str, output: str, settings: Mapping[str, Any], run_name: str, history: Sequence[Record]
    ) -> None:
        for name, value in MLFLOW_DEFAULTS.items():
            os.environ.setdefault(name, value)
        try:
            import mlflow
        except ImportError as error:
            raise ConfigError(
                f"mlflow_uri needs MLflow: pip install 'skinray[mlflow]', or leave mlflow_uri out ({error})"
            ) from error
        self._mlflow: Any = mlflow
        self._tracking_uri, self._stored_uri = tracking_uri, storage.join(output, MLFLOW_RUN)
        self._parameters = {name: str(value) for name, value in _flat(settings).items() if name != "mlflow_uri"}
        self._run_name = run_name
        self._earlier, self._pending = list(history), list[Record]()
        self._client: Any = None
        self._run_id: str | None = None
        self._ready = False
        try:
            self._client = self._connect()
        except mlflow.exceptions.MlflowException as error:  # a server is not asked yet: it is the URI that is wrong
            raise ConfigError(f"mlflow_uri: {error}") from error
        except OSError:
            pass  # a folder that cannot be made now; said with the first epoch, if it still cannot

    def write(self, record: Record) -> None:
        """Takes an epoch's record."""
        self._pending = with_record(self._pending, record)
        self._send()

    def close(self, failed: bool) -> None:
        """Sends what is left and ends the run, as finished or `failed`."""
        self._send()
        self._client.set_terminated(self._run_id, "FAILED" if failed else "FINISHED")

    def _connect(self) -> Any:
        return self._mlflow.MlflowClient(tracking_uri=self._tracking_uri)

    def _send(self) -> None:
        if not self._ready:
            self._start()
        while self._pending:
            record = self._pending[0]
            step, now_ms = int(record["epoch"]), int(1000 * time.time())
            metrics = [
                self._mlflow.entities.Metric(name, value, now_ms, step)
                for name, value in ({"epoch": float(step)} | scalars(record)).items()
            ]
            self._client.log_batch(self._run_id, metrics=metrics)
            del self._pending[0]

    def _start(self) -> None:
        """Finds the run of the process before, or makes one; whatever of it failed is done again at the next call."""
        self._client = self._client or self._connect()
        run = self._existing()
        if run is None:
            run = self._client.create_run(self._experiment_id(), run_name=self._run_name)
            self._run_id = run.info.run_id
        storage.write_json(self._stored_uri, {"run_id": self._run_id})
        if not run.data.params:
            parameters = [self._mlflow.entities.Param(name, value) for name, value in self._parameters.items()]
            for begin in range(0, len(parameters), MLFLOW_BATCH):
                self._client.log_batch(self._run_id, params=parameters[begin : begin + MLFLOW_BATCH])
        self._client.update_run(self._run_id, status="RUNNING")
        sent = {metric.step for metric in self._client.get_metric_history(self._run_id, "epoch")}
        self._pending = [record for record in self._earlier if record["epoch"] not in sent] + self._pending
        self._ready = True

    def _existing(self) -> Any:
        """The run that this one or the process before made, if the server still has it."""
        if self._run_id is None and storage.exists(self._stored_uri):
            self._run_id = storage.read_json(self._stored_uri)["run_id"]
        if self._run_id is None:
            return None
        try:
            run = self._client.get_run(self._run_id)
        except self._mlflow.exceptions.MlflowException as error:
            # Another server than before does not know it; any other error is one of reaching the server.
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run if run.info.lifecycle_stage == "active" else None

    def _experiment_id(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", MLFLOW_EXPERIMENT)
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
