"""FaultyProxy: a real HTTP proxy in front of a server, which fails as it is told.

Faults are taken in order, one for each request of an object's bytes (GET); without one, requests pass.
"""

import http.client
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive"}
POLL_S = 0.01  # how soon the proxy notices that it should end


@dataclass(frozen=True, slots=True)
class Cut:
    """The connection is lost after this many bytes of the body."""

    after_bytes: int


@dataclass(frozen=True, slots=True)
class Busy:
    """The service refuses for now: 503 SlowDown."""


@dataclass(frozen=True, slots=True)
class Stall:
    """Nothing comes until the proxy is closed."""


@dataclass(frozen=True, slots=True)
class Before:
    """Something happens just before the request passes."""

    action: Callable[[], object]


@dataclass(frozen=True, slots=True)
class Pass:
    """Nothing happens: for counting up to a later request."""


Fault = Cut | Busy | Stall | Before | Pass


@dataclass(frozen=True, slots=True)
class Seen:
    """A request that came in."""

    method: str
    path: str
    headers: dict[str, str]  # names in lower case


class FaultyProxy:
    """Passes requests on to `upstream`. A context manager."""

    def __init__(self, upstream: str) -> None:
        self.faults: deque[Fault] = deque()
        self.seen: list[Seen] = []
        self.closed = threading.Event()
        self._upstream = urlsplit(upstream).netloc
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                proxy._handle(self)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

            def log_message(self, *args: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(POLL_S,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()

    def _handle(self, request: BaseHTTPRequestHandler) -> None:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.seen.append(Seen(request.command, request.path, headers))
        fault = self.faults.popleft() if request.command == "GET" and self.faults else Pass()
        match fault:
            case Busy():
                _answer(request, 503, {}, b"<Error><Code>SlowDown</Code></Error>")
                return
            case Stall():
                self.closed.wait()
                request.close_connection = True
                return
            case Before(action):
                action()
        status, answered, body = self._forward(request)
        if isinstance(fault, Cut):
            _answer(request, status, answered, body[: fault.after_bytes], num_bytes=len(body))
            request.close_connection = True
        else:
            _answer(request, status, answered, body)

    def _forward(self, request: BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes]:
        sent = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        upstream = http.client.HTTPConnection(self._upstream)
        try:
            upstream.request(request.command, request.path, sent, dict(request.headers.items()))
            answer = upstream.getresponse()
            kept = {name: value for name, value in answer.getheaders() if name.lower() not in HOP_BY_HOP}
            return answer.status, kept, answer.read()
        finally:
            upstream.close()


def _answer(
    request: BaseHTTPRequestHandler,
    status: int,
    headers: dict[str, str],
    body: bytes,
    num_bytes: int | None = None,
) -> None:
    request.send_response_only(status)
    announced = {"Content-Length": str(len(body) if num_bytes is None else num_bytes)}
    if request.command == "HEAD":
        announced = {}  # the server's own is among the headers
    elif any(name.lower() == "content-length" for name in headers):
        headers = {name: value for name, value in headers.items() if name.lower() != "content-length"}
    for name, value in (headers | announced).items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(body)
