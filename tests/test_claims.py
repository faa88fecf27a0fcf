"""Of processes that are told to do the same at the same time, one does; what a dead one claimed goes to one other."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Any

import pytest

from skinray import claims, storage
from skinray.claims import CLAIMS, claimed
from skinray.errors import OutputExistsError

WHAT = {"input": "/archive", "model_id": "abc"}
ELSEWHERE = {"host": "elsewhere", "process": "7 7", "claim": "other"}


def files(output: str | Path) -> list[str]:
    return sorted(path.name for path in (Path(output) / CLAIMS).iterdir())


def newest(output: str | Path) -> Path:
    return max((Path(output) / CLAIMS).iterdir(), key=lambda path: int(path.stem.rpartition("-")[2]))


def left_by(output: Path, holder: dict[str, Any]) -> Path:
    """A claim as another process left it."""
    with claimed(str(output), WHAT):
        pass
    newest(output).write_text(json.dumps(holder))
    return newest(output)


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An output, on disk and in an object store."""
    return str(tmp_path) if request.param == "local" else storage.join(request.getfixturevalue("s3_bucket"), "output")


def test_a_file_is_created_by_one(place: str) -> None:
    uri = storage.join(place, "claim.json")
    assert storage.create_file(uri, b"first")
    assert not storage.create_file(uri, b"second")
    assert storage.read_if_there(uri) == b"first"
    assert storage.read_if_there(storage.join(place, "other.json")) is None


def test_what_is_done_may_be_done_again_and_leaves_one_small_file(place: str) -> None:
    for _ in range(3):
        with claimed(place, WHAT) as claim:
            claim.check()
    with claimed(place, WHAT), claimed(place, {**WHAT, "input": "/other"}):
        pass
    assert sorted(claims._numbers(place, claim.what)) == [4]


def enter(output: str, together: Barrier, found: "multiprocessing.Queue[str]", all_said: Event) -> None:
    """One of several processes that are told to do the same."""
    together.wait()
    try:
        with claimed(output, WHAT):
            found.put("in")
            all_said.wait()
    except OutputExistsError as error:
        found.put(str(error))


@pytest.mark.parametrize("before", ["nothing", "dead"])
def test_of_several_that_come_at_once_one_is_let_in(tmp_path: Path, before: str) -> None:
    if before == "dead":
        left_by(tmp_path, {**ELSEWHERE, "host": socket.gethostname(), "process": f"{2**22 + 1} 1"})
    spawn = multiprocessing.get_context("spawn")
    together, found, all_said = spawn.Barrier(3), spawn.Queue(), spawn.Event()
    processes = [spawn.Process(target=enter, args=(str(tmp_path), together, found, all_said)) for _ in range(3)]
    for process in processes:
        process.start()
    said = [found.get(timeout=120) for _ in processes]
    all_said.set()
    for process in processes:
        process.join()
    assert said.count("in") == 1
    assert all("is being written by" in refused for refused in said if refused != "in")


def test_who_comes_too_late_to_take_over_finds_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looked at a dead claim, and others took it, ended and were followed before it came to its own."""
    with claimed(str(tmp_path), WHAT) as first:
        pass
    looked = [[1]]
    numbers = claims._numbers
    monkeypatch.setattr(claims, "_numbers", lambda *where: looked.pop() if looked else numbers(*where))
    monkeypatch.setattr(claims, "_refuse_if_alive", lambda uri, output: None)
    (tmp_path / CLAIMS / f"{first.what}-1.json").rename(tmp_path / CLAIMS / f"{first.what}-5.json")
    with claimed(str(tmp_path), WHAT) as late:
        assert late.number == 6, "not 2, which was free"


def test_a_process_that_lives_is_left_alone_and_one_that_was_killed_is_not(tmp_path: Path) -> None:
    begin = (
        "import time; from skinray.claims import claimed\n"
        f"with claimed({str(tmp_path)!r}, {WHAT!r}): print('going', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", begin], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    try:
        assert other.stdout.readline() == "going\n"
        with pytest.raises(OutputExistsError, match=f"by process {other.pid} of this machine"), claimed(str(tmp_path), WHAT):
            pass
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    with claimed(str(tmp_path), WHAT) as claim:
        assert claim.number == 2


def test_a_process_number_that_returned_is_another_process(tmp_path: Path) -> None:
    parent = claims._process(os.getppid())
    left_by(tmp_path, {**ELSEWHERE, "host": socket.gethostname(), "process": f"{parent.split(' ')[0]} 1"})
    with claimed(str(tmp_path), WHAT):
        pass
    left_by(tmp_path, {**ELSEWHERE, "host": socket.gethostname(), "process": parent})
    with pytest.raises(OutputExistsError, match="of this machine"), claimed(str(tmp_path), WHAT):
        pass


@pytest.fixture
def beating(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An output that another host writes, whose clock is wrong by a year and which says so every 0.1 s."""
    monkeypatch.setattr(claims, "_LOOK_S", 0.02)
    monkeypatch.setattr(claims, "_SILENT_S", 1.0)
    uri, ended = left_by(tmp_path, ELSEWHERE), threading.Event()

    def beat() -> None:
        beats = 0
        while not ended.wait(0.1):
            beats += 1
            storage.write_json(str(uri), ELSEWHERE | {"beats": beats})

    thread = threading.Thread(target=beat)
    thread.start()
    yield tmp_path
    ended.set()
    thread.join()


def test_another_host_is_alive_as_long_as_it_says_something(beating: Path) -> None:
    with pytest.raises(OutputExistsError, match="by elsewhere"), claimed(str(beating), WHAT):
        pass


@pytest.mark.parametrize("content", [json.dumps(ELSEWHERE), "", '{"host": "els'])
def test_another_host_that_says_nothing_is_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.setattr(claims, "_LOOK_S", 0.02)
    monkeypatch.setattr(claims, "_SILENT_S", 0.5)
    left_by(tmp_path, {}).write_text(content)
    began = time.monotonic()
    with claimed(str(tmp_path), WHAT):
        assert time.monotonic() - began > 0.5


def test_a_holder_says_that_it_is_alive_and_that_it_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_BEAT_S", 0.05)
    with claimed(str(tmp_path), WHAT):
        first = newest(tmp_path).read_bytes()
        deadline = time.monotonic() + 10
        while newest(tmp_path).read_bytes() == first and time.monotonic() < deadline:
            time.sleep(0.02)
        assert json.loads(newest(tmp_path).read_text())["beats"] >= 1
    assert json.loads(newest(tmp_path).read_text())["done"]
    assert len(files(tmp_path)) == 1


def test_who_was_taken_for_dead_hears_of_it(tmp_path: Path) -> None:
    with claimed(str(tmp_path), WHAT) as claim:
        with claimed(str(tmp_path), WHAT):  # its own process never keeps it out
            pass
        with pytest.raises(OutputExistsError, match="took over"):
            claim.check()
