"""Who may do what is to be done once: one process at a time, on whatever machine.

    <output>/_claims/HASH-NUMBER.json   of what is done, and how often it was claimed: by which process, whether it is done

A claim is a file that one process alone can create, and that it changes every few seconds. Who finds its holder done or dead
creates the next number, which again one alone can do. The highest number is the one that counts, and it is never removed: who
creates one too late finds a higher one beside it. A store that knows no conditional writes (If-None-Match) keeps two processes
apart unless they come within the same second.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skinray import file_listing, storage
from skinray.errors import OutputExistsError, StorageError
from skinray.telemetry import say

CLAIMS = "_claims"
# How often a holder says that it is alive, how often another host looks whether it did, and how long it may say nothing.
_BEAT_S = 10.0
_LOOK_S = 2.0
_SILENT_S = 45.0


@dataclass(frozen=True)
class Claim:
    """A claim that is held.

    Attributes:
        what: Hash of what is claimed.
        output: Below which the claims lie.
        number: Of this claim.
    """

    output: str
    what: str
    number: int

    @property
    def uri(self) -> str:
        """Its file."""
        return _uri(self.output, self.what, self.number)

    def check(self) -> None:
        """Raises an OutputExistsError when this process said nothing for so long that another one took over."""
        if max(_numbers(self.output, self.what), default=0) > self.number:
            raise OutputExistsError(
                f"{self.output}: another process took over, because this one said nothing for {_SILENT_S:.0f} s"
            )


@contextlib.contextmanager
def claimed(output: str, what: Mapping[str, Any]) -> Iterator[Claim]:
    """Claims something as long as the block lasts.

    Args:
        output: Below which the result is written.
        what: What is done, in JSON values: who does the same must not do it meanwhile.

    Raises:
        OutputExistsError: Another process does it.
    """
    about = {"host": socket.gethostname(), "process": _process(os.getpid()), "claim": uuid.uuid4().hex}
    claim = _take(output, storage.sha256_of(json.dumps(what, sort_keys=True).encode())[:16], about)
    ended = threading.Event()

    def beat() -> None:
        beats = 0
        while not ended.wait(_BEAT_S):
            beats += 1
            with contextlib.suppress(Exception):  # the work itself says what is wrong with its storage
                storage.write_json(claim.uri, about | {"beats": beats})

    thread = threading.Thread(target=beat, daemon=True, name="claim")
    thread.start()
    try:
        yield claim
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(StorageError):  # what was done is done; the next one finds this process silent
            storage.write_json(claim.uri, about | {"done": True})


def _take(output: str, what: str, about: Mapping[str, Any]) -> Claim:
    content = json.dumps(about).encode()
    while True:
        before = _numbers(output, what)
        if before:
            _refuse_if_alive(_uri(output, what, max(before)), output)
        claim = Claim(output, what, max(before, default=0) + 1)
        if storage.create_file(claim.uri, content) and max(_numbers(output, what)) == claim.number:
            for number in before:
                storage.delete_file(_uri(output, what, number))
            return claim


def _uri(output: str, what: str, number: int) -> str:
    return storage.join(output, CLAIMS, f"{what}-{number}.json")


def _numbers(output: str, what: str) -> list[int]:
    folder = storage.join(output, CLAIMS)
    names = file_listing.list_files(folder) if storage.exists(folder) else ()
    return [int(name.removesuffix(".json").rpartition("-")[2]) for name in names if name.startswith(f"{what}-")]


def _refuse_if_alive(uri: str, output: str) -> None:
    """Returns when the holder of a claim is done or dead; raises when it is not."""
    content = storage.read_if_there(uri)
    holder = _holder(content)
    if holder.get("done"):
        return
    here = holder.get("host") == socket.gethostname()
    if here:
        process = str(holder["process"])
        if process == _process(os.getpid()) or process != _process(int(process.split(" ")[0])):
            return
    else:
        say(f"{output} was being written by {_words(holder)}: looking for {_SILENT_S:.0f} s whether it still is")
        # By what changes meanwhile, because the clock of another host may be wrong.
        began = time.monotonic()
        while (now := storage.read_if_there(uri)) == content:
            if time.monotonic() - began > _SILENT_S:
                return
            time.sleep(_LOOK_S)
        holder = _holder(now)
        if holder.get("done"):
            return
    raise OutputExistsError(f"{output} is being written by {_words(holder)}, which was told to do the same")


def _holder(content: bytes | None) -> dict[str, Any]:
    """What a claim says, or nothing when it was not written to its end; one that was removed for a newer one is done."""
    if content is None:
        return {"done": True}
    try:
        holder: dict[str, Any] = json.loads(content)
    except ValueError:
        return {}
    return holder


def _words(holder: Mapping[str, Any]) -> str:
    if holder.get("host") == socket.gethostname():
        return f"process {str(holder['process']).split(' ')[0]} of this machine"
    return str(holder.get("host", "a process that has just begun"))


def _process(number: int) -> str:
    """A process of this machine: its number and, because numbers return, the time of its start; "" when there is none."""
    with contextlib.suppress(OSError):
        return f"{number} {Path(f'/proc/{number}/stat').read_text().rsplit(')', 1)[1].split()[19]}"
    return ""
