"""Workers are started where there is room, counted machine by machine, and their loss is one line."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import ray.train

from skinray.errors import TrainingError
from skinray.worker_group import START_ATTEMPTS, _lack_of_room_said, may_grow, room_for_workers, run_workers, survived
from tests.conftest import toy_settings


@pytest.mark.parametrize(
    ("machines", "cpus", "gpus", "room"),
    [
        ([{"CPU": 2.0}, {"CPU": 2.0}], 1, 0, 4),
        ([{"CPU": 2.0}, {"CPU": 2.0}], 4, 0, 0),  # as many CPUs as one worker needs, on two machines
        ([{"CPU": 3.0}, {"CPU": 3.0}], 2, 0, 2),
        ([{"CPU": 8.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 4.0}], 2, 1, 1),
        ([{"CPU": 8.0}], 2, 1, 0),
        ([], 1, 0, 0),
    ],
)
def test_a_worker_lies_on_one_machine(machines: list[dict[str, float]], cpus: int, gpus: int, room: int) -> None:
    assert room_for_workers(machines, cpus, gpus) == room


@pytest.mark.parametrize(
    ("environment", "grows"),
    [
        ({}, False),
        ({"RAY_CLUSTER_NAME": "skinray-train", "KUBERAY_GEN_RAY_START_CMD": "ray start --head  --num-cpus=0 "}, False),
        ({"RAY_CLUSTER_NAME": "skinray-jobs", "KUBERAY_GEN_RAY_START_CMD": "ray start --head  --no-monitor "}, True),
        ({"RAY_CLUSTER_NAME": "skinray-train", "KUBERAY_GEN_RAY_START_CMD": "ray start  --address=head:6379 "}, True),  # unknown
        ({"RAY_CLUSTER_NAME": "another"}, True),
    ],
)
def test_a_cluster_grows_where_kuberay_runs_an_autoscaler(
    environment: dict[str, str], grows: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert may_grow(environment) is grows


def test_a_lack_of_room_is_said_while_it_lasts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rooms = iter([(1, 1), (2, 2), (0, 1)])
    monkeypatch.setattr("skinray.worker_group._room", lambda *_: next(rooms, (2, 2)))
    monkeypatch.setattr("skinray.worker_group._ROOM_SAID_EVERY_S", 0.01)
    with _lack_of_room_said(toy_settings("d", Path("o"), num_workers=2)):
        time.sleep(0.5)
    assert capsys.readouterr().err.splitlines() == [
        f"waiting for room for 2 workers, there is room for {room}" for room in (1, 0)
    ]


def test_it_is_not_waited_for_ever() -> None:
    assert survived(2).controller_failure_limit == START_ATTEMPTS


def _die(_: dict[str, Any]) -> None:
    # Not at once: where a worker dies while its function is handed to it, Ray Train keeps its cores until the driver ends.
    time.sleep(5)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.ray
def test_a_lost_worker_is_an_error_in_one_line(ray_cluster: None, tmp_path: Path) -> None:
    free = ray.available_resources()["CPU"]
    run = ray.train.RunConfig(name="lost", storage_path=str(tmp_path), failure_config=survived(0))
    with pytest.raises(TrainingError, match=r"^training failed: .*died"):
        run_workers(_die, {}, toy_settings("d", tmp_path, num_workers=1), run)
    deadline = time.monotonic() + 20
    while ray.available_resources().get("CPU", 0) < free:
        assert time.monotonic() < deadline, "what was set aside for it is not given back"
        time.sleep(0.2)
