"""Whatever is killed, the run ends with the same epochs, and repeats no more than the steps since its last checkpoint."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skinray.bundle import load_bundle
from skinray.checkpoints import Progress, checkpoint_name, newest_checkpoint
from skinray.shards import PreparedDataset
from skinray.training import TrainedModel, train
from skinray.training_config import CHECKPOINTS
from tests.conftest import CHECKPOINT_STEPS, EPOCHS, drawing_settings, toy_settings

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def weights_of(bundle_uri: str) -> list[np.ndarray[Any, Any]]:
    weights: list[np.ndarray[Any, Any]] = load_bundle(bundle_uri).load_model().get_weights()
    return weights


def largest_difference(one: str, other: str) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(weights_of(one), weights_of(other), strict=True))


def check_same(history: list[dict[str, Any]], bundle_uri: str, undisturbed: TrainedModel) -> None:
    assert [record["epoch"] for record in history] == list(range(1, EPOCHS + 1))
    resumed = [record["resumed_at_step"] for record in history]
    assert any(resumed), "an epoch went on in its middle"
    assert all(step % CHECKPOINT_STEPS == 0 for step in resumed)
    for name in ("train_loss", "validation_loss", "train_auc", "validation_auc"):
        np.testing.assert_allclose(
            [record[name] for record in history], [record[name] for record in undisturbed.history], rtol=1e-6, err_msg=name
        )
    assert largest_difference(bundle_uri, undisturbed.bundle_uri) <= 1e-6


def wait_for_checkpoint_within_an_epoch(run: Path, after_epochs: int = 1, timeout_s: float = 200) -> None:
    """Waits until the newest whole checkpoint, noted by Ray Train or not, is the first one of an epoch."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        newest = newest_checkpoint(str(run / CHECKPOINTS)) or ""
        if newest.endswith(f"{CHECKPOINT_STEPS:09d}") and newest > checkpoint_name(Progress(after_epochs)):
            return
        time.sleep(0.02)
    raise AssertionError("no checkpoint within an epoch")


def training_workers(root: int) -> list[int]:
    """The process ids of the training workers below a process."""
    parent_of: dict[int, int] = {}
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent_of[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                if (entry / "cmdline").read_bytes().startswith(b"ray::RayTrainWorker"):
                    found.append(int(entry.name))

    def ours(process: int) -> bool:
        while process in parent_of:
            process = parent_of[process]
            if process == root:
                return True
        return False

    return [process for process in found if ours(process)]


def test_a_killed_worker_is_replaced_and_the_same_command_goes_on_after_its_driver_was_killed(
    prepared: PreparedDataset, trained_drawing: TrainedModel, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = drawing_settings(prepared.uri, run)
    config = tmp_path / "train.yaml"
    config.write_text(json.dumps(settings.recorded()))
    command = [sys.executable, str(Path(__file__).parents[1] / "jobs" / "train.py"), "--config", str(config)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    first = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        wait_for_checkpoint_within_an_epoch(run)
        before = training_workers(first.pid)
        os.kill(before[0], signal.SIGKILL)
        wait_for_checkpoint_within_an_epoch(run, after_epochs=2)
        workers = training_workers(first.pid)
    finally:
        first.kill()
        first.wait(timeout=30)
    assert len(workers) == 2
    assert before[0] not in workers
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{worker}/cmdline").exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(Path(f"/proc/{worker}/cmdline").exists() for worker in workers), "workers end with their driver"
    assert not (run / "bundle").exists()
    again = train(settings)
    assert [bool(record["resumed_at_step"]) for record in again.history] == [False, True, True]
    check_same(again.history, again.bundle_uri, trained_drawing)
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in history] == list(range(1, EPOCHS + 1))


def processes_below(root: int) -> set[int]:
    """The process ids of all that a process has started, and these in their turn."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found, waiting = set[int](), [root]
    while waiting:
        waiting += (below := children.get(waiting.pop(), []))
        found.update(below)
    return found


def test_ctrl_c_ends_the_command_at_once_and_all_that_it_started(prepared: PreparedDataset, tmp_path: Path) -> None:
    config = tmp_path / "train.yaml"
    settings = toy_settings(prepared.uri, tmp_path / "run", epochs=10_000, num_workers=1)
    config.write_text(json.dumps(settings.recorded()))
    command = [sys.executable, str(Path(__file__).parents[1] / "jobs" / "train.py"), "--config", str(config)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    # A shell lets what it starts in the background ignore Ctrl-C, and so all that this starts.
    command = ["env", "--default-signal=INT", *command]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    before = []
    try:
        for line in process.stderr:
            before.append(line)
            if line.startswith("epoch 1 "):
                break
        started = processes_below(process.pid)
        assert training_workers(process.pid), "".join(before)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    except BaseException:
        process.kill()
        process.communicate(timeout=30)
        raise
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == "skinray: interrupted"
    assert "Traceback" not in said
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{each}/cmdline").exists() for each in started) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [each for each in started if Path(f"/proc/{each}/cmdline").exists()]


NODE_LOSS = """
import json, sys, threading
from pathlib import Path
from skinray import telemetry
telemetry.set_library_defaults()
import ray
from ray.cluster_utils import Cluster
from skinray.training import train
from skinray.training_config import TrainSettings
from tests.test_training_faults import training_workers, wait_for_checkpoint_within_an_epoch
settings = TrainSettings.model_validate(json.loads(Path(sys.argv[1]).read_text()))
if __name__ == "__main__":
    small = {"object_store_memory": 200_000_000}
    # One worker fits on each node; of the two that are not the head, one that trains is lost.
    with telemetry.without_dashboard():
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **small})
        others = [cluster.add_node(num_cpus=1, **small) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)

    def lose_the_node():
        wait_for_checkpoint_within_an_epoch(Path(settings.output))
        raylet_of = {node: node.all_processes["raylet"][0].process.pid for node in others}
        lost = next(node for node in others if training_workers(raylet_of[node]))
        cluster.remove_node(lost, allow_graceful=False)
        print("lost a node", flush=True)

    thread = threading.Thread(target=lose_the_node, daemon=True)
    thread.start()
    trained = train(settings)
    thread.join()
    print(json.dumps({"bundle": trained.bundle_uri, "history": trained.history}), flush=True)
    ray.shutdown()
    cluster.shutdown()
"""


def test_a_lost_node_is_replaced_by_another(prepared: PreparedDataset, trained_drawing: TrainedModel, tmp_path: Path) -> None:
    config, script = tmp_path / "settings.json", tmp_path / "node_loss.py"
    config.write_text(json.dumps(drawing_settings(prepared.uri, tmp_path / "run").recorded()))
    script.write_text(NODE_LOSS)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    ended = subprocess.run(
        [sys.executable, str(script), str(config)], env=environment, capture_output=True, text=True, timeout=400
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "lost a node" in ended.stdout
    result = json.loads(ended.stdout.splitlines()[-1])
    check_same(result["history"], result["bundle"], trained_drawing)
