"""Beside a server: answers GET of /metrics, /livez and /readyz, and nothing else.

A request has ten seconds for its head, however its bytes come, and 32 stand side by side; whoever comes
beyond that is sent away. None of them can change anything, and the answers name no payload, no path and no
password.
"""

from __future__ import annotations

import http.server
import io
import json
import logging
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from qml_mp.errors import ConfigurationError

logger = logging.getLogger(__name__)

HEAD_WITHIN_S = 10.0
_ANSWER_WITHIN_S = 10.0
_MOST_REQUESTS = 32
_TEXT = "text/plain; charset=utf-8"


class HttpAnswer:
    """Status, type and body."""

    __slots__ = ("body", "kind", "status")

    def __init__(self, status: int, body: bytes, kind: str = _TEXT) -> None:
        self.status = status
        self.body = body
        self.kind = kind

    @classmethod
    def of_reasons(cls, reasons: list[str]) -> HttpAnswer:
        """200 and ok without any; 503 with them, one a line."""
        text = "\n".join(reasons or ["ok"])
        return cls(503 if reasons else 200, f"{text}\n".encode())


Page = Callable[[str], HttpAnswer]
"""Gives an answer; its argument is the header Accept."""


class MetricsServer(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """Bound once it is made; `serve_forever` serves.

    Raises `ConfigurationError` when it cannot be bound.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(
        self, host: str, port: int, pages: Mapping[str, Page], *, head_within_s: float = HEAD_WITHIN_S
    ) -> None:
        self.pages = pages
        self.head_within_s = head_within_s
        self._room = threading.BoundedSemaphore(_MOST_REQUESTS)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise ConfigurationError(
                f"{host}:{port} cannot be listened on: {error.strerror or error}. Choose another port by "
                "the setting metrics (--metrics), or end what uses it."
            ) from error

    @property
    def url(self) -> str:
        """Where it is found, without a path."""
        host, port = self.server_address[:2]
        return f"http://{f'[{host!s}]' if ':' in str(host) else host!s}:{port}"

    def server_bind(self) -> None:
        # Not HTTPServer's, which asks the resolver for the name of the machine.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except Exception:  # there are too many threads; who calls this shuts the request down
            self._room.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        logger.debug("A request was broken off", exc_info=True)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: MetricsServer
    server_version, sys_version = "qml-mp", ""

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_InTime(self.connection, within_s=self.server.head_within_s))

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)

    def _answer(self, *, with_body: bool) -> None:
        self.connection.settimeout(_ANSWER_WITHIN_S)
        page = self.server.pages.get(self.path.partition("?")[0])
        try:
            answer = HttpAnswer(404, b"not found\n") if page is None else page(self.headers.get("Accept", ""))
        except Exception:
            logger.exception("%s failed", json.dumps(self.path[:100]))
            answer = HttpAnswer(500, b"failed; the log of the server says why\n")
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if with_body:
            self.wfile.write(answer.body)


class _InTime(io.RawIOBase):
    """What comes by a connection until an instant; then `TimeoutError`, which ends the request. A socket's
    timeout begins anew with each byte, so it would let one stay for ever that sends few."""

    def __init__(self, connection: socket.socket, *, within_s: float) -> None:
        super().__init__()
        self._connection = connection
        self._deadline = time.monotonic() + within_s

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the head of the request did not come in time")
        self._connection.settimeout(left_s)
        return self._connection.recv_into(buffer)
