"""Web process: the page served by itself, until a signal ends it."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

import uvicorn

from qml_mp.errors import ConfigurationError
from qml_mp.web.assembly import Assembled
from qml_mp.web.slow_heads import BoundedProtocol

_DRAIN_S = 2
"""What requests that run are allowed when the process is told to stop."""
_MOST_CONNECTIONS = 1000
_KEEP_ALIVE_S = 15
_BACKLOG = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where it listens."""

    host: str
    port: int

    def bind(self, *, option: str) -> socket.socket:
        """A listening socket. Raises `ConfigurationError` that says why there is none, and by what `option`
        another is chosen."""
        try:
            family, kind, protocol, _, where = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM
            )[0]
            listening = socket.socket(family, kind, protocol)
            try:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listening.bind(where)
                listening.listen(_BACKLOG)
            except BaseException:
                listening.close()
                raise
        except (OSError, UnicodeError) as error:
            raise ConfigurationError(f"The page cannot listen on {self}: {_why(error, option)}.") from error
        listening.setblocking(False)
        return listening

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def url_of(listening: socket.socket) -> str:
    """Where a browser finds it."""
    host, port = listening.getsockname()[:2]
    return f"http://{Address(host=host, port=port)}/"


def serve(
    page: Assembled,
    listening: socket.socket,
    *,
    when_ready: Callable[[], None] = lambda: None,
    log_level: str = "warning",
) -> None:
    """Until SIGTERM or SIGINT; streams that are open end at once."""
    config = uvicorn.Config(
        page.application, log_level=log_level, log_config=None, access_log=False, lifespan="off", ws="none",
        server_header=False, limit_concurrency=_MOST_CONNECTIONS, timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_DRAIN_S, http=BoundedProtocol,
    )  # fmt: skip
    server = _Server(config, page)
    when_ready()
    server.run(sockets=[listening])


class _Server(uvicorn.Server):
    """Ends its streams when it is told to stop: uvicorn would wait for them."""

    def __init__(self, config: uvicorn.Config, page: Assembled) -> None:
        super().__init__(config)
        self._page = page

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._page.site.changes.close()
        await super().shutdown(sockets)


def _why(error: OSError | UnicodeError, option: str) -> str:
    if isinstance(error, OSError):
        if error.errno == errno.EADDRINUSE:
            return f"the port is in use, maybe by another page; choose one by {option}"
        if error.errno == errno.EACCES:
            return "ports below 1024 need root"
        if error.errno and error.errno > 0:
            return os.strerror(error.errno)
    return str(error)
