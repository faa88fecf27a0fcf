"""A proxy in front of an S3 server that misbehaves as stores do under load, as often as it is told to, by a seeded draw.

It passes everything on unchanged, the Host header too, which S3 signatures cover, and keeps its clients' connections open as
stores do. What it does to a call depends on the seed, the call and how often that call came before: not on the order in which
calls from several processes happen to arrive, nor on the bucket, whose name differs from run to run.
"""

import asyncio
import contextlib
import random
import threading
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

_Head = tuple[str, dict[str, str]]

_ERROR = '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
_SLOW_DOWN = (503, "SlowDown", "Please reduce your request rate.")
_UNAVAILABLE = (503, "ServiceUnavailable", "Service is unable to handle request.")
_INTERNAL = (500, "InternalError", "We encountered an internal error. Please try again.")
_NO_SUCH_KEY = (404, "NoSuchKey", "The specified key does not exist.")


@dataclass
class Faults:
    """What goes wrong, as shares of the calls; nothing unless told.

    Attributes:
        slow_down: Answered with 503 SlowDown, every fourth of them with 503 ServiceUnavailable.
        internal: Answered with 500 InternalError.
        cut: A read's connection is closed after half of the body; that of another call before it is passed on, or after it was
            done and before its answer, one as often as the other.
        slow: Answered late.
        slow_s: So much later.
        latency_s: Of every call.
        gone: Tells which paths ("/bucket/key") are not there any more when they are read, though they are listed.
        only: Tells which calls (method, path with its query) anything at all goes wrong with.
        most_in_a_row: So often at most one call goes wrong before it passes, so that no test fails by bad luck.
        seed: Of the draws.
    """

    slow_down: float = 0.0
    internal: float = 0.0
    cut: float = 0.0
    slow: float = 0.0
    slow_s: float = 0.05
    latency_s: float = 0.0
    gone: Callable[[str], bool] = lambda path: False
    only: Callable[[str, str], bool] = lambda method, target: True
    most_in_a_row: int = 1 << 30
    seed: int = 0
    seen: Counter[tuple[str, str]] = field(default_factory=Counter)
    _in_a_row: Counter[tuple[str, str]] = field(default_factory=Counter)

    def drawn(self, method: str, target: str) -> str:
        """What becomes of a call: one of the names above, or "" for nothing."""
        if not self.only(method, target):
            return ""
        self.seen[method, target] += 1
        in_bucket = target.lstrip("/").partition("/")[2]
        draw = random.Random(f"{self.seed} {self.seen[method, target]} {method} {in_bucket}").random()
        for name in ("slow_down", "internal", "cut", "slow"):
            draw -= getattr(self, name)
            if draw < 0 and self._in_a_row[method, target] < self.most_in_a_row:
                self._in_a_row[method, target] += 1
                return name
        self._in_a_row[method, target] = 0
        return ""


class FaultyProxy:
    """The proxy, on a thread of its own.

    Attributes:
        faults: What goes wrong from now on; replace it to change that.
        calls: How many calls came, by method.
        done: What was done to how many of them, by name, "passed" among the names.
    """

    def __init__(self, backend_host: str, backend_port: int) -> None:
        self.faults = Faults()
        self.calls: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self._backend = (backend_host, backend_port)
        self._loop = asyncio.new_event_loop()
        self._clients: set[asyncio.Task[None]] = set()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=[started], daemon=True, name="faulty-s3")
        self._thread.start()
        started.wait(10)

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self._port}"

    @contextlib.contextmanager
    def misbehaving(self, faults: Faults) -> Iterator[None]:
        """Lets things go wrong inside the block, and counts anew."""
        self.calls.clear()
        self.done.clear()
        self.faults = faults
        try:
            yield
        finally:
            self.faults = Faults()

    def close(self) -> None:
        """Ends it and its connections."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve(started))
        self._loop.close()

    async def _serve(self, started: threading.Event) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._client, "127.0.0.1", 0, limit=1 << 20)
        self._port = server.sockets[0].getsockname()[1]
        started.set()
        await self._stop.wait()
        server.close()
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            while await self._call(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client went away
        finally:
            self._clients.discard(task)
            writer.close()

    async def _call(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Deals with one call; False when the connection is not to be used again."""
        line, headers = await _head(reader)
        method, target, _ = line.split(" ")
        self.calls[method] += 1
        faults = self.faults
        what = faults.drawn(method, target)
        path = urllib.parse.unquote(target.partition("?")[0])
        if method in ("GET", "HEAD") and faults.gone(path):
            what = "gone"
        self.done[what or "passed"] += 1
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await _body(reader, headers)
        late = faults.slow_s if what == "slow" else 0.0
        if late + faults.latency_s:
            await asyncio.sleep(late + faults.latency_s)
        if what in ("slow_down", "internal", "gone"):
            odd = faults.seen[method, target] % 4 == 0
            answer = {"slow_down": _UNAVAILABLE if odd else _SLOW_DOWN, "internal": _INTERNAL, "gone": _NO_SUCH_KEY}[what]
            writer.write(_error(*answer, with_body=method != "HEAD"))
            await writer.drain()
            return True
        if what == "cut" and method != "GET" and faults.seen[method, target] % 2:
            return False
        status, answered, content = await self._passed_on(line, headers, body)
        if what == "cut" and not (method == "GET" and content):
            return False
        writer.write(_answer(status, answered) + (content[: len(content) // 2] if what == "cut" else content))
        await writer.drain()
        return what != "cut"

    async def _passed_on(self, line: str, headers: dict[str, str], body: bytes) -> tuple[str, dict[str, str], bytes]:
        reader, writer = await asyncio.open_connection(*self._backend, limit=1 << 20)
        try:
            sent = {name: value for name, value in headers.items() if name not in ("connection", "expect", "transfer-encoding")}
            sent |= {"connection": "close", "content-length": str(len(body))}
            writer.write(_answer(line, sent) + body)
            await writer.drain()
            status, answered = await _head(reader)
            content = b"" if line.startswith("HEAD ") else await _body(reader, answered, until_end=True)
            answered.pop("transfer-encoding", None)
            if not line.startswith("HEAD "):
                answered["content-length"] = str(len(content))
            return status.replace("HTTP/1.0", "HTTP/1.1"), answered | {"connection": "keep-alive"}, content
        finally:
            writer.close()


async def _head(reader: asyncio.StreamReader) -> _Head:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.split(":", 1) for line in lines[1:] if line)
    return lines[0], {name.strip().lower(): value.strip() for name, value in pairs}


async def _body(reader: asyncio.StreamReader, headers: dict[str, str], until_end: bool = False) -> bytes:
    if headers.get("transfer-encoding", "").lower() == "chunked":
        parts = []
        while size := int((await reader.readline()).split(b";")[0], 16):
            parts.append(await reader.readexactly(size))
            await reader.readline()
        await reader.readline()
        return b"".join(parts)
    if "content-length" in headers:
        return await reader.readexactly(int(headers["content-length"]))
    return await reader.read() if until_end else b""


def _answer(line: str, headers: dict[str, str]) -> bytes:
    return (line + "\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n").encode("latin-1")


def _error(status: int, code: str, message: str, with_body: bool) -> bytes:
    content = _ERROR.format(code=code, message=message).encode() if with_body else b""
    headers = {"content-type": "application/xml", "content-length": str(len(content)), "connection": "keep-alive"}
    return _answer(f"HTTP/1.1 {status} {code}", headers) + content
