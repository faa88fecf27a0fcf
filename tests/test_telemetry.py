"""Progress lines: few of them, with a rate and an honest estimate."""

import contextlib
import os
import pty
import subprocess
import sys
from typing import Any

import pytest

from skinray.telemetry import Progress, Tally, say, set_library_defaults, without_dashboard


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def run(clock: Clock, progress: Progress, steps: int, seconds_each: float, count: int = 1, note: str = "") -> None:
    for _ in range(steps):
        clock.now_s += seconds_each
        progress.advance(count, note)


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def test_one_line_every_few_seconds_however_often_it_advances(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    run(clock, Progress("score", 10_000, "photos", interval_s=5, clock=clock), steps=1000, seconds_each=0.05)
    lines = said(capsys)
    assert 8 <= len(lines) <= 10  # 50 s


def test_no_line_before_the_first_interval_has_passed(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    run(clock, Progress("score", 100, "photos", interval_s=5, clock=clock), steps=4, seconds_each=1)
    assert said(capsys) == []


def test_a_tally_speaks_only_of_what_takes_long(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally("listing", "files", interval_s=10, clock=clock)
    for _ in range(3000):
        clock.now_s += 1 / 128
        tally.advance()
    assert said(capsys) == ["listing: 1,280 files, 10 s", "listing: 2,560 files, 20 s"]


def test_what_is_said_is_told_as_numbers_too(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[dict[str, Any]] = []
    run(clock, Progress("score", 100, "photos", interval_s=5, clock=clock, told=told.append), steps=10, seconds_each=2, count=5)
    assert len(told) == len(said(capsys))
    assert [state["done"] for state in told] == [15, 30, 45]
    assert told[-1] == {
        "stage": "score",
        "unit": "photos",
        "done": 45,
        "total": 100,
        "seconds": 18.0,
        "per_s": 2.5,
        "seconds_left": 22,
    }


def test_slow_steps_are_said_one_by_one(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    run(clock, Progress("train", 3, "steps", interval_s=5, clock=clock), steps=3, seconds_each=60)
    assert [line.split(",")[0] for line in said(capsys)] == [
        "train: 1 of 3 steps (33%)",
        "train: 2 of 3 steps (67%)",
        "train: 3 of 3 steps (100%)",
    ]


def test_the_end_is_always_said_with_the_time_it_took(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("prepare", 4, "shards", interval_s=5, clock=clock)
    run(clock, progress, steps=4, seconds_each=0.5)
    progress.close()
    lines = said(capsys)
    assert len(lines) == 1
    assert lines[0].startswith("prepare: 4 of 4 shards (100%), 2 s")
    assert "left" not in lines[0]


def test_an_early_end_is_said(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("score", 1000, "photos", interval_s=5, clock=clock)
    run(clock, progress, steps=1, seconds_each=1, count=256)
    progress.close()
    assert said(capsys) == ["score: 256 of 1,000 photos (26%), 1 s, ended early"]


def test_the_rate_leaves_out_the_start_up(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("score", 1000, "photos", interval_s=0, clock=clock)
    run(clock, progress, steps=1, seconds_each=60, count=100)
    run(clock, progress, steps=4, seconds_each=10, count=100)
    lines = said(capsys)
    assert "photos/s" not in lines[0]
    assert lines[-1] == "score: 500 of 1,000 photos (50%), 100 s, 10.0 photos/s, 50 s left"


def test_a_note_stands_at_the_end_of_the_line(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    run(clock, Progress("train", 1, "steps", clock=clock), steps=1, seconds_each=1, note="loss 0.5")
    assert said(capsys) == ["train: 1 of 1 steps (100%), 1 s, loss 0.5"]


def test_nothing_to_do_is_no_error(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("score", 0, "photos", clock=clock)
    progress.advance(0)
    progress.close()
    assert all("0 of 0 photos (100%)" in line for line in said(capsys))


def test_a_clock_that_stands_still_is_no_error(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    run(clock, Progress("score", 10, "photos", interval_s=0, clock=clock), steps=10, seconds_each=0)
    assert len(said(capsys)) == 10


def test_what_is_said_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    say("score: done")
    assert said(capsys) == ["score: done"]


def test_what_the_user_set_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", {"TF_CPP_MIN_LOG_LEVEL": "0"})
        set_library_defaults()
        assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0"
        assert os.environ["KERAS_BACKEND"] == "tensorflow"


def test_without_a_dashboard_is_said_to_the_processes_started_meanwhile_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    with without_dashboard():
        assert os.environ["RAY_API_SERVER_ADDRESS"].startswith("http://127.0.0.1")
    assert "RAY_API_SERVER_ADDRESS" not in os.environ
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://mine:8265")
    with without_dashboard():
        assert os.environ["RAY_API_SERVER_ADDRESS"] == "http://mine:8265", "what the user set stays"
    assert os.environ["RAY_API_SERVER_ADDRESS"] == "http://mine:8265"


def test_on_a_terminal_there_is_a_bar_and_what_is_said_stands_above_it() -> None:
    script = (
        "import time\nfrom skinray.telemetry import Progress, say\n"
        "progress = Progress('score', 40, 'photos')\n"
        "for number in range(4):\n    progress.advance(10); say(f'[said] {number}'); time.sleep(0.15)\n"
        "say('after')\n"
    )
    master, slave = pty.openpty()
    terminal = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen([sys.executable, "-c", script], stderr=slave, env=terminal)
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError):  # how a terminal ends
        while some := os.read(master, 4096):
            shown += some
    os.close(master)
    assert process.wait(timeout=30) == 0
    text = shown.decode()
    assert "\u2501" in text, "a bar"
    assert "score: 20 of 40 photos (50%)" in text
    lines = [line.split("\x1b[2K")[-1].strip() for line in text.replace("\r", "\n").split("\n")]
    assert [line for line in lines if line.startswith("[said]")] == [f"[said] {number}" for number in range(4)]
    assert [line for line in lines if line][-1] == "after", "without a bar below it"
    assert "score: 40 of 40 photos (100%)" in text
