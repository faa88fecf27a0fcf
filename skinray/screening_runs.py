"""The folder of a scoring run: a new one, or that of a run of the same command that did not come to its end.

<output>/model_id=M/scored_date=D/run_id=R/_incomplete.json   what is being scored; gone when the run is published
<output>/model_id=M/scored_date=D/run_id=R/_alive.json        which process does it, and when it last said so; as above
"""

import contextlib
import datetime
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from skinray import file_listing, storage
from skinray.config import ScoreSettings
from skinray.errors import OutputExistsError
from skinray.telemetry import say

ALIVE_NAME = "_alive.json"
# How often a run says that it is alive, and how long it may be silent before another host takes it for dead.
_BEAT_S = 10.0
_SILENT_S = 45.0
# What may differ between a run and the command that goes on with it: how it is computed, and what is made of the outcome.
_STEERING = (
    "actors",
    "batch_size",
    "cpus_per_actor",
    "gpus_per_actor",
    "isic_csv",
    "max_bad_fraction",
    "output",
    "rows_per_block",
    "run_id",
)


def open_run(settings: ScoreSettings, model_id: str, now: datetime.datetime) -> str:
    """Claims the folder of a run.

    Args:
        settings: Of the command.
        model_id: What scores.
        now: The time of the start, with its time zone.

    Returns:
        The run's URI: that of the last run of the same command that was cut off, else a new one.

    Raises:
        OutputExistsError: A run of this name is published, was begun with other settings, or is still going on.
    """
    identity = {name: value for name, value in settings.recorded().items() if name not in _STEERING}
    identity |= {"input": storage.normalize(settings.input), "model_id": model_id}
    model_uri = storage.join(settings.output, f"model_id={model_id}")
    for run_uri in _unfinished(model_uri, settings.run_id):
        marker = storage.read_json(storage.join(run_uri, storage.INCOMPLETE_NAME))
        if marker == {"kind": "predictions", "settings": identity}:
            _wait_until_silent(run_uri)
            say(f"score: goes on with {run_uri}, which did not come to its end")
            return run_uri
    run_id = settings.run_id or now.strftime("%Y%m%dT%H%M%S%fZ")
    run_uri = storage.join(model_uri, f"scored_date={now.date().isoformat()}", f"run_id={run_id}")
    storage.claim_folder(run_uri, "predictions", identity)
    return run_uri


def _unfinished(model_uri: str, run_id: str | None) -> list[str]:
    """The newest first."""
    if not storage.exists(model_uri):
        return []
    markers = [path for path in file_listing.list_files(model_uri) if path.endswith(f"/{storage.INCOMPLETE_NAME}")]
    folders = [path.removesuffix(f"/{storage.INCOMPLETE_NAME}") for path in markers]
    return [storage.join(model_uri, folder) for folder in reversed(folders) if run_id in (None, _run_id(folder))]


def _run_id(folder: str) -> str:
    return folder.rpartition("run_id=")[2]


def _wait_until_silent(run_uri: str) -> None:
    """Returns when the process that last wrote there is dead; raises when it is not."""
    uri = storage.join(run_uri, ALIVE_NAME)
    if not storage.exists(uri):
        return
    last = storage.read_json(uri)
    if last["host"] == socket.gethostname():
        if last["process"] != _process(os.getpid()) and _process(int(last["process"].split(" ")[0])) == last["process"]:
            raise OutputExistsError(f"{run_uri} is being written by process {last['process'].split(' ')[0]} of this machine")
        return
    while (silent := time.time() - last["at"]) < _SILENT_S:
        say(f"score: {run_uri} was written to {silent:.0f} s ago by {last['host']}; waiting whether it still is")
        time.sleep(min(_BEAT_S, _SILENT_S - silent) + 0.1)
        if (again := storage.read_json(uri)) != last:
            raise OutputExistsError(f"{run_uri} is being written by {again['host']}")


def _process(number: int) -> str:
    """A process of this machine: its number and, because numbers return, the time of its start; "" when there is none."""
    with contextlib.suppress(OSError):
        return f"{number} {Path(f'/proc/{number}/stat').read_text().rsplit(')', 1)[1].split()[19]}"
    return ""


@contextlib.contextmanager
def alive(run_uri: str) -> Iterator[None]:
    """Says every few seconds that the run goes on, and takes it back at the end."""
    uri, ended = storage.join(run_uri, ALIVE_NAME), threading.Event()
    about: dict[str, Any] = {"host": socket.gethostname(), "process": _process(os.getpid())}

    def beat() -> None:
        while not ended.wait(_BEAT_S):
            with contextlib.suppress(Exception):  # the run itself says what is wrong with its storage
                storage.write_json(uri, about | {"at": time.time()})

    storage.write_json(uri, about | {"at": time.time()})
    thread = threading.Thread(target=beat, daemon=True, name="alive")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        storage.delete_file(uri)
