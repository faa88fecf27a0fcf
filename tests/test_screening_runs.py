"""The same command goes on with a run that was cut off, and with no other."""

import datetime
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from skinray import screening_runs, storage
from skinray.config import ScoreSettings
from skinray.errors import OutputExistsError
from skinray.screening_runs import ALIVE_NAME, alive, open_run

NIGHT = datetime.datetime(2026, 11, 21, 2, 0, tzinfo=datetime.UTC)
NEXT = NIGHT + datetime.timedelta(days=1)


def asked(output: Path, **changes: object) -> ScoreSettings:
    return ScoreSettings.model_validate({"bundle": "/bundle", "input": "/archive", "output": str(output), **changes})


def test_a_run_has_its_model_date_and_time_in_its_name(tmp_path: Path) -> None:
    run = open_run(asked(tmp_path), "abc", NIGHT)
    assert run == f"{tmp_path}/model_id=abc/scored_date=2026-11-21/run_id=20261121T020000000000Z"
    named = open_run(asked(tmp_path, run_id="first"), "abc", NIGHT)
    assert named.endswith("/run_id=first")


def test_the_same_command_goes_on_with_what_was_cut_off(tmp_path: Path) -> None:
    first = open_run(asked(tmp_path), "abc", NIGHT)
    assert open_run(asked(tmp_path, batch_size=7, actors=3, max_bad_fraction=0.5), "abc", NEXT) == first
    storage.publish_folder(first, {})
    second = open_run(asked(tmp_path), "abc", NEXT)
    assert second != first, "what is published is done"


@pytest.mark.parametrize(("changes", "model_id"), [({"input": "/other"}, "abc"), ({"image_id": "stem"}, "abc"), ({}, "def")])
def test_another_command_does_not(tmp_path: Path, changes: dict[str, str], model_id: str) -> None:
    first = open_run(asked(tmp_path), "abc", NIGHT)
    assert open_run(asked(tmp_path, **changes), model_id, NEXT) != first
    assert open_run(asked(tmp_path), "abc", NEXT) == first


def test_a_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    run = open_run(asked(tmp_path, run_id="night"), "abc", NIGHT)
    assert open_run(asked(tmp_path, run_id="night"), "abc", NEXT) == run, "on the next day too"
    with pytest.raises(OutputExistsError, match="other settings"):
        open_run(asked(tmp_path, run_id="night", input="/other"), "abc", NIGHT)
    storage.publish_folder(run, {})
    with pytest.raises(OutputExistsError, match="already exists"):
        open_run(asked(tmp_path, run_id="night"), "abc", NIGHT)


def test_of_two_that_were_cut_off_the_newer_is_gone_on_with(tmp_path: Path) -> None:
    open_run(asked(tmp_path, run_id="a"), "abc", NIGHT)
    newer = open_run(asked(tmp_path, run_id="b"), "abc", NIGHT)
    assert open_run(asked(tmp_path), "abc", NEXT) == newer


def test_a_run_that_is_going_on_is_left_alone(tmp_path: Path) -> None:
    run = open_run(asked(tmp_path), "abc", NIGHT)
    begin = (
        "import sys, time; from skinray.screening_runs import alive\n"
        f"with alive({run!r}): print('going', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", begin], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    try:
        assert other.stdout.readline() == "going\n"
        with pytest.raises(OutputExistsError, match=f"by process {other.pid} of this machine"):
            open_run(asked(tmp_path), "abc", NEXT)
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    assert (Path(run) / ALIVE_NAME).exists(), "it had no time to take it back"
    assert open_run(asked(tmp_path), "abc", NEXT) == run


def test_a_process_number_that_returned_is_another_process(tmp_path: Path) -> None:
    run = open_run(asked(tmp_path), "abc", NIGHT)
    noted = {"host": socket.gethostname(), "process": f"{os.getppid()} 1", "at": time.time()}
    (Path(run) / ALIVE_NAME).write_text(json.dumps(noted))
    assert open_run(asked(tmp_path), "abc", NEXT) == run


def test_another_hosts_run_is_waited_for_until_it_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(asked(tmp_path), "abc", NIGHT)
    noted = {"host": "elsewhere", "process": "7 7", "at": time.time()}
    monkeypatch.setattr(screening_runs, "_SILENT_S", 1.0)
    (Path(run) / ALIVE_NAME).write_text(json.dumps(noted))
    started = time.monotonic()
    assert open_run(asked(tmp_path), "abc", NEXT) == run
    assert time.monotonic() - started > 0.5

    monkeypatch.setattr(screening_runs, "_SILENT_S", 60.0)
    monkeypatch.setattr(screening_runs, "_BEAT_S", 0.1)
    (Path(run) / ALIVE_NAME).write_text(json.dumps(noted | {"at": time.time()}))
    monkeypatch.setattr(time, "sleep", lambda _: (Path(run) / ALIVE_NAME).write_text(json.dumps(noted | {"at": time.time() + 9})))
    with pytest.raises(OutputExistsError, match="by elsewhere"):
        open_run(asked(tmp_path), "abc", NEXT)


def test_a_run_says_that_it_is_alive_as_long_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screening_runs, "_BEAT_S", 0.05)
    with alive(str(tmp_path)):
        first = json.loads((tmp_path / ALIVE_NAME).read_text())["at"]
        deadline = time.monotonic() + 10
        while json.loads((tmp_path / ALIVE_NAME).read_text())["at"] == first and time.monotonic() < deadline:
            time.sleep(0.02)
        assert json.loads((tmp_path / ALIVE_NAME).read_text())["at"] > first
    assert list(tmp_path.iterdir()) == []
