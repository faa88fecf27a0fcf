"""What a run shows: its lines, its history, the files that TensorBoard and MLflow read, and none of it can end the training."""

import errno
import json
import math
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skinray import file_listing, storage, tracking
from skinray.errors import ConfigError, StorageError
from skinray.tracking import MLFLOW_DEFAULTS
from skinray.training_log import TrainingLog, epoch_line, in_words, step_line
from tests.conftest import free_port

STEPS = {
    "kind": "steps",
    "epoch": 3,
    "epochs": 20,
    "step": 40,
    "steps_per_epoch": 80,
    "phase": "fine-tuning",
    "loss": 0.41,
    "learning_rate": 3e-4,
    "images_per_s": 31.2,
    "step_s": 1.02,
    "data_wait_s": 0.004,
}
SETTINGS = {"model": {"name": "resnet50", "dropout": 0.2}, "epochs": 20, "fold": None, "mlflow_uri": "http://me:secret@host"}


def epoch(number: int, **changes: Any) -> dict[str, Any]:
    """An epoch's record; the figures tell which."""
    return {
        "kind": "epoch",
        "epoch": number,
        "epochs": 20,
        "phase": "fine-tuning",
        "train_loss": 1 / number,
        "train_auc": 0.9 - 0.1 / number,
        "train_balanced_accuracy": 0.7,
        "validation_loss": 1.5 / number,
        "validation_auc": 0.8 - 0.1 / number,
        "validation_balanced_accuracy": 0.6,
        "learning_rate": 3e-4,
        "images_per_s": 31.2,
        "step_s": 1.0,
        "data_wait_s": 2.0,
        "train_s": 80.0,
        "validation_s": 20.0,
        "epoch_s": 100.0,
        "steps": 80,
        "workers": 2,
        **changes,
    }


def log(output: str | Path, history: list[dict[str, Any]] | None = None, **changes: Any) -> TrainingLog:
    """A log that writes nothing but the history, unless told otherwise."""
    named: dict[str, Any] = {"tensorboard": False, "mlflow_uri": None} | changes
    return TrainingLog(str(output), SETTINGS, run_name="resnet50", history=history or [], **named)


def fail_after(shown: TrainingLog, *records: dict[str, Any]) -> None:
    with shown:
        for record in records:
            shown.record(record)
        raise RuntimeError("a worker was lost")


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a run goes."""
    if request.param == "local":
        return str(tmp_path / "runs" / "a run")
    return f"{request.getfixturevalue('s3_bucket')}/runs/a run"


@pytest.fixture(autouse=True)
def mlflow_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the log sets for MLflow is gone after each test."""
    for name in MLFLOW_DEFAULTS:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def warnings_in(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("warning:")]


def stored(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in storage.read_bytes(storage.join(output, "history.jsonl")).splitlines()]


# --- Lines -----------------------------------------------------------------------------------------------------------


def test_the_line_of_some_steps() -> None:
    assert step_line(STEPS, 700) == (
        "epoch 3 of 20, step 40 of 80 (fine-tuning): "
        "loss 0.4100, lr 3.0e-04, 31.2 photos/s, step 1020 ms, data wait 0.4 %, 12 min left"
    )


def test_the_line_of_an_epoch() -> None:
    assert epoch_line(epoch(2), 3000) == (
        "epoch 2 of 20 (fine-tuning): train loss 0.5000, train AUC 0.8500, validation loss 0.7500, validation AUC 0.7500, "
        "31.2 photos/s, step 1000 ms, waited 2.0 s for photos, 50 min left"
    )


def test_the_last_epoch_has_no_time_left() -> None:
    assert "left" not in epoch_line(epoch(20), 0.0)


def test_a_record_of_an_older_version_has_a_line_too() -> None:
    old = {"epoch": 2, "epochs": 4, "train_loss": 0.5, "validation_auc": None}
    assert epoch_line(old) == "epoch 2 of 4: train loss 0.5000"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0 s"),
        (45, "45 s"),
        (99, "99 s"),
        (100, "2 min"),
        (59.4 * 60, "59 min"),
        (59.6 * 60, "1 h 0 min"),
        (12_000, "3 h 20 min"),
        (23 * 3600 + 3599, "1 d 0 h"),
        (2 * 86400 + 4 * 3600, "2 d 4 h"),
    ],
)
def test_durations_are_said_as_people_say_them(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_before_the_first_epoch_ends_the_steps_tell_how_long_it_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log(tmp_path).record(STEPS)
    # 17.5 epochs of 80 steps of 1.02 s
    assert said(capsys)[0].endswith(f", {in_words(17.5 * 80 * 1.02)} left")


def test_after_it_the_epochs_of_this_process_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = log(tmp_path, history=[epoch(1, epoch_s=9999.0)])
    shown.record(epoch(2, epoch_s=100.0))
    shown.record(epoch(3, epoch_s=140.0))
    shown.record(STEPS | {"epoch": 4})
    assert [line.rsplit(", ", 1)[1] for line in said(capsys)] == ["30 min left", "34 min left", "33 min left"]


def test_the_pace_of_a_frozen_backbone_says_nothing_about_fine_tuning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = log(tmp_path)
    shown.record(epoch(1, phase="frozen backbone", epoch_s=10.0))
    shown.record(STEPS)
    frozen, fine = said(capsys)
    assert frozen.endswith(", 3 min left")
    assert fine.endswith(", 24 min left")


# --- history.jsonl ---------------------------------------------------------------------------------------------------


def test_the_history_is_there_after_every_epoch(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    with log(output) as shown:
        for number in (1, 2, 3):
            shown.record(STEPS | {"epoch": number})
            shown.record(epoch(number))
            assert stored(output) == [epoch(earlier) for earlier in range(1, number + 1)]
    assert shown.history == stored(output)
    assert len(said(capsys)) == 6


def test_a_resumed_run_adds_to_its_history(output: str) -> None:
    log(output).record(epoch(1))
    log(output, history=[epoch(1)]).record(epoch(2))
    assert stored(output) == [epoch(1), epoch(2)]


def test_an_epoch_that_ran_again_replaces_itself_and_all_after_it(tmp_path: Path) -> None:
    shown = log(tmp_path)
    for number in (1, 2, 3):
        shown.record(epoch(number))
    shown.record(epoch(2, train_loss=0.1))
    assert stored(str(tmp_path)) == [epoch(1), epoch(2, train_loss=0.1)]


def test_a_history_of_a_later_epoch_that_no_checkpoint_has_is_replaced(tmp_path: Path) -> None:
    earlier = log(tmp_path)
    for number in (1, 2):
        earlier.record(epoch(number))
    log(tmp_path, history=[epoch(1)]).record(epoch(2, train_loss=0.1))
    assert stored(str(tmp_path)) == [epoch(1), epoch(2, train_loss=0.1)]


def test_the_history_that_the_run_kept_fills_holes_and_is_what_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr("skinray.training_log.training_curves", lambda history, *_: drawn.extend(history) or b"")
    with log(tmp_path, history=[epoch(1)]) as shown:
        shown.record(epoch(3))
        shown.complete([epoch(1), epoch(2), epoch(3)])
    assert stored(str(tmp_path)) == drawn == [epoch(1), epoch(2), epoch(3)]


def test_what_is_not_a_number_is_null_in_json(tmp_path: Path) -> None:
    log(tmp_path).record(epoch(1, train_auc=math.nan, train_loss=math.inf))
    line = (tmp_path / "history.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail) == epoch(1, train_auc=None, train_loss=None)


def test_a_history_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").mkdir()
    with pytest.raises(StorageError, match=r"history\.jsonl"):
        log(tmp_path).record(epoch(1))


# --- curves.png ------------------------------------------------------------------------------------------------------


def test_the_curves_are_written_at_the_end(output: str) -> None:
    with log(output) as shown:
        shown.record(epoch(1))
        assert not storage.exists(storage.join(output, "curves.png"))
    assert storage.read_bytes(storage.join(output, "curves.png")).startswith(b"\x89PNG")


def test_a_failed_run_has_its_curves_too_and_keeps_its_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a worker was lost"):
        fail_after(log(tmp_path), epoch(1))
    assert (tmp_path / "curves.png").exists()


def test_without_an_epoch_there_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with log(tmp_path, tensorboard=True) as shown:
        shown.record(STEPS)
    assert list(tmp_path.iterdir()) == []
    assert warnings_in(said(capsys)) == []


def test_curves_that_cannot_be_written_are_said_and_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "curves.png").mkdir()
    with log(tmp_path) as shown:
        shown.record(epoch(1))
    [warning] = warnings_in(said(capsys))
    assert "curves.png" in warning


# --- TensorBoard -----------------------------------------------------------------------------------------------------


def events(output: str) -> list[Any]:
    """Every event of all files, in the order in which TensorBoard reads them; checksums are verified."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    found = []
    for name in sorted(file_listing.list_files(storage.join(output, "tensorboard"))):
        assert ".tfevents." in name
        data = storage.read_bytes(storage.join(output, "tensorboard", name))
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            assert struct.unpack("<I", data[8:12]) == (masked_crc32c(data[:8]),)
            payload, data = data[12 : 12 + length], data[12 + length :]
            assert struct.unpack("<I", data[:4]) == (masked_crc32c(payload),)
            data = data[4:]
            found.append(Event.FromString(payload))
    return found


def drawn(output: str) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard draws, by tag: when a process starts at a step, it forgets that step and those after it."""
    from tensorboardX.proto.event_pb2 import SessionLog

    points: dict[str, list[tuple[int, float]]] = {}
    for event in events(output):
        if event.HasField("session_log") and event.session_log.status == SessionLog.START:
            points = {tag: [point for point in old if point[0] < event.step] for tag, old in points.items()}
        for value in event.summary.value:
            points.setdefault(value.tag, []).append((event.step, value.simple_value))
    return points


def test_the_scalars_of_an_epoch_by_their_groups(output: str) -> None:
    with log(output, tensorboard=True) as shown:
        shown.record(epoch(4))
        # Before the end: it is looked at while the run goes on.
        expected = {
            "train/loss": 0.25,
            "train/auc": 0.875,
            "train/balanced_accuracy": 0.7,
            "validation/loss": 0.375,
            "validation/auc": 0.775,
            "validation/balanced_accuracy": 0.6,
            "learning_rate": 3e-4,
            "speed/images_per_s": 31.2,
            "speed/epoch_s": 100,
            "speed/data_wait_share": 0.025,
        }
        assert drawn(output) == {tag: [(4, pytest.approx(value))] for tag, value in expected.items()}


def test_a_resumed_run_draws_no_epoch_twice(output: str) -> None:
    with log(output, tensorboard=True) as shown:
        for number in (1, 2, 3):
            shown.record(epoch(number))
    # The checkpoint of epoch 3 was lost.
    with log(output, history=[epoch(1), epoch(2)], tensorboard=True) as shown:
        shown.record(epoch(3, train_loss=0.1))
        shown.record(epoch(4))
    assert len(file_listing.list_files(storage.join(output, "tensorboard"))) == 2
    assert drawn(output)["train/loss"] == [(1, 1.0), (2, 0.5), (3, pytest.approx(0.1)), (4, 0.25)]


def test_an_epoch_that_ran_again_in_the_same_process_is_drawn_once(tmp_path: Path) -> None:
    with log(tmp_path, tensorboard=True) as shown:
        for record in (epoch(1), epoch(2), epoch(3), epoch(2, train_loss=0.25), epoch(3)):
            shown.record(record)
    assert drawn(str(tmp_path))["train/loss"] == [(1, 1.0), (2, 0.25), (3, pytest.approx(1 / 3))]


def test_tensorflow_reads_the_files(tmp_path: Path) -> None:
    from skinray import telemetry

    telemetry.set_library_defaults()
    import tensorflow as tf

    with log(tmp_path, tensorboard=True) as shown:
        shown.record(epoch(1))
        shown.record(epoch(2))
    [file] = (tmp_path / "tensorboard").iterdir()
    read = [tf.compat.v1.Event.FromString(record.numpy()) for record in tf.data.TFRecordDataset(str(file))]
    assert read[0].file_version == "brain.Event:2"
    assert [event.step for event in read for value in event.summary.value if value.tag == "validation/auc"] == [1, 2]


def test_figures_that_a_record_has_not_are_not_drawn(tmp_path: Path) -> None:
    with log(tmp_path, tensorboard=True) as shown:
        shown.record({"epoch": 1, "epochs": 2, "train_loss": 0.5, "train_auc": None, "validation_auc": math.nan})
    assert drawn(str(tmp_path)) == {"train/loss": [(1, 0.5)]}


def test_without_it_nothing_is_written(tmp_path: Path) -> None:
    with log(tmp_path) as shown:
        shown.record(epoch(1))
    assert {path.name for path in tmp_path.iterdir()} == {"history.jsonl", "curves.png"}


def test_a_folder_that_cannot_be_made_is_said_once_and_made_up_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    with log(tmp_path, tensorboard=True) as shown:
        shown.record(epoch(1))
        shown.record(epoch(2))
        (tmp_path / "tensorboard").unlink()
        shown.record(epoch(3))
    [warning] = warnings_in(said(capsys))
    assert "TensorBoard" in warning
    assert stored(str(tmp_path)) == [epoch(1), epoch(2), epoch(3)]
    assert [step for step, _ in drawn(str(tmp_path))["train/loss"]] == [1, 2, 3]


def test_a_full_disk_does_not_end_or_block_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = Path.open

    class Full:
        """Takes some bytes, then no more."""

        def __init__(self, path: Path, mode: str) -> None:
            self._file = opened(path, mode)

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

        def truncate(self, size: int) -> None:
            self._file.truncate(size)

        def write(self, data: bytes) -> None:
            self._file.write(data[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def open_full(path: Path, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        return Full(path, mode) if "tfevents" in path.name else opened(path, mode, *arguments, **named)

    with log(tmp_path, tensorboard=True) as shown:
        shown.record(epoch(1))
        monkeypatch.setattr(Path, "open", open_full)
        for number in range(2, 30):
            shown.record(epoch(number))
        monkeypatch.setattr(Path, "open", opened)
        shown.record(epoch(30))
    [warning] = warnings_in(said(capsys))
    assert "No space left on device" in warning
    assert [step for step, _ in drawn(str(tmp_path))["train/loss"]] == list(range(1, 31))


@pytest.mark.s3
def test_an_s3_upload_that_fails_is_said_once_and_made_up_for(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_bytes = storage.write_bytes

    def refused(uri: str, data: bytes) -> None:
        if "tfevents" in uri:
            raise StorageError(f"cannot write {uri}: access denied")
        write_bytes(uri, data)

    shown = log(f"{s3_bucket}/run", tensorboard=True)
    monkeypatch.setattr(storage, "write_bytes", refused)
    shown.record(epoch(1))
    shown.record(epoch(2))
    monkeypatch.setattr(storage, "write_bytes", write_bytes)
    shown.close()
    [warning] = warnings_in(said(capsys))
    assert "access denied" in warning
    assert [step for step, _ in drawn(f"{s3_bucket}/run")["train/loss"]] == [1, 2]


def test_an_interrupt_is_no_failure_of_a_sink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    shown = log(tmp_path, tensorboard=True)
    monkeypatch.setattr(tracking, "scalars", interrupted)
    with pytest.raises(KeyboardInterrupt):
        shown.record(epoch(1))


def test_neither_tensorboardx_nor_mlflow_is_imported_for_nothing() -> None:
    program = "import sys, skinray.training_log; assert not {'tensorboardX', 'mlflow', 'matplotlib', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


# --- MLflow ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder that MLflow keeps its runs in."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return str(tmp_path / "mlflow")


def mlflow_runs(server: str) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=server)
    experiment = client.get_experiment_by_name("skinray")
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


def metric(server: str, run: Any, name: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    history = MlflowClient(tracking_uri=server).get_metric_history(run.info.run_id, name)
    return [(point.step, point.value) for point in sorted(history, key=lambda point: (point.step, point.timestamp))]


def test_mlflow_gets_settings_and_metrics(output: str, server: str, capsys: pytest.CaptureFixture[str]) -> None:
    with log(output, mlflow_uri=server) as shown:
        shown.record(epoch(1))
        [run] = mlflow_runs(server)
        assert run.info.status == "RUNNING"
        shown.record(epoch(2))
    [run] = mlflow_runs(server)
    assert run.info.run_name == "resnet50"
    assert run.info.status == "FINISHED"
    # Not the server's own URI, which may hold a password.
    assert run.data.params == {"model.name": "resnet50", "model.dropout": "0.2", "epochs": "20", "fold": "None"}
    assert metric(server, run, "train/loss") == [(1, 1.0), (2, 0.5)]
    assert metric(server, run, "validation/auc") == [(1, pytest.approx(0.7)), (2, 0.75)]
    assert storage.read_json(storage.join(output, "mlflow.json")) == {"run_id": run.info.run_id}
    assert warnings_in(said(capsys)) == []


def test_more_settings_than_one_batch_are_all_sent(tmp_path: Path, server: str) -> None:
    many = {f"s{number}": number for number in range(250)}
    with TrainingLog(str(tmp_path / "run"), many, False, server, "many") as shown:
        shown.record(epoch(1))
    [run] = mlflow_runs(server)
    assert run.data.params == {name: str(value) for name, value in many.items()}


def test_a_resumed_run_goes_on_with_the_same_mlflow_run(output: str, server: str) -> None:
    with pytest.raises(RuntimeError, match="a worker was lost"):
        fail_after(log(output, mlflow_uri=server), epoch(1), epoch(2))
    [run] = mlflow_runs(server)
    assert run.info.status == "FAILED"
    with log(output, history=[epoch(1), epoch(2)], mlflow_uri=server) as shown:
        shown.record(epoch(3))
        [run] = mlflow_runs(server)
        assert run.info.status == "RUNNING"
    [run] = mlflow_runs(server)
    assert run.info.status == "FINISHED"
    assert [step for step, _ in metric(server, run, "train/loss")] == [1, 2, 3]


def test_an_epoch_that_ran_again_has_its_new_value(tmp_path: Path, server: str) -> None:
    with log(tmp_path / "run", mlflow_uri=server) as shown:
        shown.record(epoch(1))
        shown.record(epoch(2))
    time.sleep(0.01)  # MLflow tells the two apart by the millisecond
    with log(tmp_path / "run", history=[epoch(1)], mlflow_uri=server) as shown:
        shown.record(epoch(2, train_loss=0.1))
    [run] = mlflow_runs(server)
    assert run.data.metrics["train/loss"] == 0.1


def test_a_run_that_is_resumed_with_mlflow_brings_the_epochs_before(tmp_path: Path, server: str) -> None:
    with log(tmp_path / "run", history=[epoch(1), epoch(2)], mlflow_uri=server) as shown:
        shown.record(epoch(3))
    [run] = mlflow_runs(server)
    assert [step for step, _ in metric(server, run, "train/loss")] == [1, 2, 3]


def test_on_another_server_or_after_a_deletion_it_is_another_run(tmp_path: Path, server: str) -> None:
    from mlflow import MlflowClient

    with log(tmp_path / "run", mlflow_uri=server) as shown:
        shown.record(epoch(1))
    [first] = mlflow_runs(server)
    other = str(tmp_path / "other")
    with log(tmp_path / "run", history=[epoch(1)], mlflow_uri=other) as shown:
        shown.record(epoch(2))
    [second] = mlflow_runs(other)
    assert second.info.run_id != first.info.run_id
    assert [step for step, _ in metric(other, second, "epoch")] == [1, 2]
    MlflowClient(tracking_uri=other).delete_run(second.info.run_id)
    with log(tmp_path / "run", history=[epoch(1), epoch(2)], mlflow_uri=other) as shown:
        shown.record(epoch(3))
    [third] = mlflow_runs(other)
    assert [step for step, _ in metric(other, third, "epoch")] == [1, 2, 3]


def test_the_experiment_may_be_named_from_outside(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "moles")
    with log(tmp_path / "run", mlflow_uri=server) as shown:
        shown.record(epoch(1))
    assert mlflow_runs(server) == []
    assert MlflowClient(tracking_uri=server).get_experiment_by_name("moles") is not None


def test_a_server_that_is_not_there_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started_s = time.monotonic()
    with log(tmp_path, tensorboard=True, mlflow_uri=f"http://127.0.0.1:{free_port()}") as shown:
        for number in (1, 2, 3):
            shown.record(epoch(number))
    lines = said(capsys)
    [warning] = warnings_in(lines)
    assert warning.startswith("warning: MLflow cannot be written, training goes on: API request to http://127.0.0.1")
    assert len(lines) == 4
    assert time.monotonic() - started_s < 20
    assert stored(str(tmp_path)) == [epoch(1), epoch(2), epoch(3)]
    assert len(drawn(str(tmp_path))["train/loss"]) == 3
    assert not (tmp_path / "mlflow.json").exists()


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes calls and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield int(listening.getsockname()[1])


def test_a_server_that_never_answers_holds_an_epoch_up_for_no_longer_than_its_timeout(
    tmp_path: Path, silent_port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    shown = log(tmp_path, mlflow_uri=f"http://127.0.0.1:{silent_port}")
    assert int(MLFLOW_DEFAULTS["MLFLOW_HTTP_REQUEST_TIMEOUT"]) <= 10
    started_s = time.monotonic()
    shown.record(epoch(1))
    assert 0.9 < time.monotonic() - started_s < 5
    assert len(warnings_in(said(capsys))) == 1


def test_what_could_not_be_sent_is_sent_later(tmp_path: Path, server: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(server).write_text("in the way")
    with log(tmp_path / "run", mlflow_uri=server) as shown:
        shown.record(epoch(1))
        shown.record(epoch(2))
        Path(server).unlink()
        shown.record(epoch(3))
        [run] = mlflow_runs(server)
        assert [step for step, _ in metric(server, run, "train/loss")] == [1, 2, 3]
    assert len(warnings_in(said(capsys))) == 1


def test_what_came_back_after_the_last_epoch_gets_all_at_the_end(tmp_path: Path, server: str) -> None:
    Path(server).write_text("in the way")
    with log(tmp_path / "run", mlflow_uri=server) as shown:
        shown.record(epoch(1))
        Path(server).unlink()
    [run] = mlflow_runs(server)
    assert run.info.status == "FINISHED"
    assert metric(server, run, "train/loss") == [(1, 1.0)]


@pytest.mark.parametrize("uri", ["s3://bucket/mlflow", "ftp://host"])
def test_a_tracking_uri_that_mlflow_does_not_know_is_refused_at_once(tmp_path: Path, uri: str) -> None:
    with pytest.raises(ConfigError, match="mlflow_uri"):
        log(tmp_path, mlflow_uri=uri)


def test_a_missing_extra_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r"pip install 'skinray\[mlflow\]'"):
        log(tmp_path, mlflow_uri="http://127.0.0.1:1")


def test_what_the_user_set_for_mlflow_stays(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    log(tmp_path, mlflow_uri=server)
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "3"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
