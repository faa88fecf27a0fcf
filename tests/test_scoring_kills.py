"""Whatever process of a run is killed, and whenever: no photo is lost, none stands twice, what was done is not done again."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import ray

from skinray import storage
from skinray.audit_chain import check_chain
from skinray.training import TrainedModel

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# What is killed in each life of the driver, which is killed itself at the end of all but the last: 20 in all.
LIVES = [{"task": 5, "actor": 1}, {"task": 5, "actor": 1}, {"task": 5, "actor": 1}]
COPIES = 25
PROCESSES = {"actor": b"_ClassifyAndWrite", "task": b"read_and_decode"}


def workers(name: bytes) -> list[int]:
    """Processes of our Ray that run a stage of the pipeline, by the title that Ray gives them."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            title = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            if title.startswith(b"ray::") and name in title and _is_ours(int(entry.name)):
                found.append(int(entry.name))
    return found


def _is_ours(process: int) -> bool:
    session = ray.get_runtime_context().worker.node.get_session_dir_path()
    return session.encode() in (Path("/proc") / str(_parent(process)) / "cmdline").read_bytes()


def _parent(process: int) -> int:
    return int((Path("/proc") / str(process) / "stat").read_text().rsplit(")", 1)[1].split()[1])


def test_twenty_kills_of_driver_actor_and_tasks_lose_nothing(
    trained: TrainedModel, drawn_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, output = tmp_path / "archive", tmp_path / "scores"
    archive.mkdir()
    for path in sorted((drawn_photos / "images").iterdir()):
        for copy in range(COPIES):
            os.link(path, archive / f"{copy} {path.name}")
    command = [sys.executable, str(Path(__file__).parents[1] / "jobs" / "score.py"), "--bundle", trained.bundle_uri]
    command += ["--input", str(archive), "--output", str(output), "--rows-per-block", "16"]
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    log = (tmp_path / "log").open("w")

    def start() -> "subprocess.Popen[bytes]":
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def blocks() -> dict[str, int]:
        """The blocks that are there -> when each was written."""
        found = {}
        with contextlib.suppress(FileNotFoundError):  # the run is published, and its blocks go
            for path in output.rglob("*.block"):
                found[path.name] = path.stat().st_mtime_ns
        return found

    chance = random.Random(7)
    seen: dict[str, int] = {}

    def kill(driver: "subprocess.Popen[bytes]", victim: str) -> None:
        """Kills a process of the run; the driver and an actor only when a block has come to its end since the last time."""
        running: list[int] = []
        deadline = time.monotonic() + 60
        while not running or (victim != "task" and len(blocks()) <= len(seen)):
            assert driver.poll() is None, "it ended before all kills"
            assert time.monotonic() < deadline, f"no {victim} to kill"
            time.sleep(0.002)
            running = [driver.pid] if victim == "driver" else workers(PROCESSES[victim])
        time.sleep(chance.random() * 0.1)
        with contextlib.suppress(ProcessLookupError):  # a task that ended by itself meanwhile
            os.kill(chance.choice(running), signal.SIGKILL)
        now = blocks()
        assert {name: now.get(name) for name in seen} == seen, "what was written is not written again"
        seen.update(now)

    for life in LIVES:
        driver = start()
        try:
            for victim, times in life.items():
                for _ in range(times):
                    kill(driver, victim)
            if life is not LIVES[-1]:
                kill(driver, "driver")
                driver.wait(timeout=30)
        except BaseException:
            driver.kill()
            driver.wait(timeout=30)
            raise
    assert driver.wait(timeout=200) == 0, (tmp_path / "log").read_text()[-2000:]
    log.close()
    [manifest] = output.rglob(storage.MANIFEST_NAME)
    rows = pd.read_parquet(manifest.parent)
    assert sorted(rows["image_id"]) == sorted(path.name for path in archive.iterdir()), "none lost and none twice"
    assert (rows["status"] == "scored").all()
    assert check_chain(str(output)).problems == ()
    by_photo = rows.assign(photo=rows["image_id"].str[2:]).groupby("photo")["malignancy_score"]
    assert (by_photo.max() - by_photo.min()).max() <= 1e-6, "the same photo has the same score, whatever happened on the way"
