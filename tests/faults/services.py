"""Faults of the services that a night needs: a proxy in front of a server, that spoils chosen requests."""

import contextlib
import http.client
import json
import random
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

from tests.servers import HOST, free_port, started

Kind = Literal["busy", "reset", "lost", "unsaid", "cut", "slow", "held", "down"]
SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
HOP = {"connection", "transfer-encoding", "keep-alive", "date", "server"}


@dataclass
class Fault:
    """What happens to requests of `methods` whose address matches `pattern`.

    It strikes the share `share` of them, by a seeded chance, after the first `after`, at most `times` times. busy:
    answered 503, not passed on; reset: connection reset before it is passed on; lost: passed on and done, then reset,
    so that nobody hears of it; unsaid: passed on and done, then answered 503; cut: half of the answer's body, then the
    end; slow: `seconds` late; held: not before the fault is taken out; down: as `reset`, for every request from this
    one on, until the fault is taken out.
    """

    kind: Kind
    pattern: str = ""
    methods: str = "GET HEAD PUT POST DELETE PATCH"
    times: float = 1
    after: int = 0
    share: float = 1.0
    seconds: float = 0.0
    seen: int = 0
    struck: int = 0

    def strikes(self, method: str, address: str) -> bool:
        """Whether this request is spoiled; it is counted if it is."""
        if self.kind != "down" or self.struck == 0:
            if method not in self.methods.split() or not re.search(self.pattern, address):
                return False
            self.seen += 1
        spared = random.Random(self.seen).random() >= self.share
        if self.seen <= self.after or self.struck >= self.times or spared:
            return False
        self.struck += 1
        return True


@dataclass
class Count:
    """How many faults of `service` struck, in how many rounds, and in how many of these something was lost."""

    service: str
    faults: int = 0
    rounds: int = 0
    losses: int = 0

    def add(self, *faults: Fault, struck: int = 0, lost: bool) -> None:
        """One round more, of `faults` or of so many that `struck`."""
        self.faults += struck + sum(fault.struck for fault in faults)
        self.rounds += 1
        self.losses += lost

    @property
    def what(self) -> str:
        """What is counted."""
        return f"Faults of {self.service} at its start, in the middle and at commit; then all was run again undisturbed"

    def told(self) -> dict[str, float]:
        """What was counted."""
        return {"faults": self.faults, "rounds": self.rounds, "losses": self.losses}


class Proxy:
    """An HTTP server on `port` that passes requests on to the server on `upstream`, but for faults.

    It is a process of its own: libraries hold Python's lock while they wait for an answer.
    """

    def __init__(self, upstream: int) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", "tests.faults.services", str(self.port), str(upstream)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._tell(listening=True)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @contextlib.contextmanager
    def spoiled(self, *faults: Fault) -> Iterator[None]:
        """Within the block requests are spoiled by `faults`; afterwards these have counted them."""
        self._tell(faults=[asdict(fault) for fault in faults])
        try:
            yield
        finally:
            for fault, counted in zip(faults, self._tell(faults=[])["faults"], strict=True):
                fault.seen, fault.struck = counted["seen"], counted["struck"]

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """Within the block connections are refused, as where nothing runs."""
        self._tell(listening=False)
        try:
            yield
        finally:
            self._tell(listening=True)

    def requests(self) -> list[tuple[str, str]]:
        """Method and address of the requests that came since the last call."""
        return [(method, address) for method, address in self._tell()["requests"]]

    def end(self) -> None:
        self._process.terminate()
        self._process.communicate(timeout=30)

    def _tell(self, **order: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return dict(json.loads(self._process.stdout.readline()))


class _Relay:
    """The proxy's own process: it takes an order a line, and answers with what has happened since."""

    def __init__(self, port: int, upstream: int) -> None:
        self.port, self.upstream = port, upstream
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.server: _Server | None = None
        self._lock = threading.Lock()

    def fault_of(self, method: str, address: str) -> Fault | None:
        """The fault that strikes this request, if one does."""
        with self._lock:
            self.requests.append((method, address))
            return next((fault for fault in self.faults if fault.strikes(method, address)), None)

    def obey(self) -> None:
        """Take orders until there are no more."""
        for line in sys.stdin:
            order = json.loads(line)
            with self._lock:
                told = {"faults": [asdict(fault) for fault in self.faults], "requests": self.requests}
                print(json.dumps(self._follow(order, told)), flush=True)

    def _follow(self, order: dict[str, Any], told: dict[str, Any]) -> dict[str, Any]:
        if "faults" in order:
            self.faults = [Fault(**fault) for fault in order["faults"]]
        elif "listening" in order:
            self._listen(listening=order["listening"])
        else:
            self.requests = []
        return told

    def _listen(self, *, listening: bool) -> None:
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
        relay, self.server = self, None
        if listening:
            handler = type("Handler", (_Handler,), {"owner": relay})
            self.server = _Server((HOST, self.port), handler)
            threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, *_: object) -> None: ...  # clients that go away


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: _Relay

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.owner.fault_of(self.command, unquote(self.path))
        kind = fault.kind if fault else ""
        if self.owner.server is None or kind in ("reset", "down"):
            self._reset()
        elif kind == "busy":
            self._send(503, [("Content-Type", "application/xml")], SLOW_DOWN, len(SLOW_DOWN))
        else:
            time.sleep(fault.seconds if fault else 0)
            while kind == "held" and any(each is fault for each in self.owner.faults):
                time.sleep(0.02)
            status, headers, content = self._passed_on(body)
            if kind == "lost":
                self._reset()
            elif kind == "unsaid":
                self._send(503, [("Content-Type", "application/xml")], SLOW_DOWN, len(SLOW_DOWN))
            else:
                self._send(status, headers, content[: len(content) // 2] if kind == "cut" else content, len(content))
                self.close_connection |= kind == "cut"

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = answer  # noqa: N815 - as http.server calls them

    def _passed_on(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(HOST, self.owner.upstream, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect", "transfer-encoding"):
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, [(n, v) for n, v in answer.getheaders() if n.lower() not in HOP], answer.read()
        finally:
            connection.close()

    def _send(self, status: int, headers: list[tuple[str, str]], content: bytes, length: int) -> None:
        self.send_response(status)
        for name, value in headers:
            if name.lower() != "content-length" or self.command == "HEAD":
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.wfile.flush()
        socket.socket.close(self.connection)

    def log_message(self, *_: object) -> None: ...


@contextlib.contextmanager
def proxied(upstream: int) -> Iterator[Proxy]:
    """A running proxy in front of the port `upstream`, until the end of the block."""
    proxy = Proxy(upstream)
    try:
        yield proxy
    finally:
        proxy.end()


@contextlib.contextmanager
def object_store(folder: Path) -> Iterator[Proxy]:
    """A proxy in front of a running object store that speaks S3, until the end of the block."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(port)]
    with started("moto", port, command, folder / "moto.log"), proxied(port) as proxy:
        yield proxy


if __name__ == "__main__":
    _Relay(int(sys.argv[1]), int(sys.argv[2])).obey()
