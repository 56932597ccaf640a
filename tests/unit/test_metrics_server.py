"""Tests: the server of the metrics, asked by sockets."""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from qml_mp.metrics.server import HttpAnswer, MetricsServer
from tests.until import PATIENCE_S, wait_until


@pytest.fixture
def head_within_s() -> float:
    """Long: this process, client and server in one, may stand still within a head."""
    return 60.0


@pytest.fixture
def server(head_within_s: float) -> Iterator[MetricsServer]:
    pages = {"/livez": lambda _: HttpAnswer.of_reasons([])}
    with MetricsServer("127.0.0.1", 0, pages, head_within_s=head_within_s) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def lives(server: MetricsServer) -> bool:
    try:
        with urllib.request.urlopen(f"{server.url}/livez", timeout=PATIENCE_S) as answer:
            return bool(answer.read() == b"ok\n")
    except OSError:
        return False  # sent away


def connected(server: MetricsServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.server_port), timeout=60)


def is_closed(connection: socket.socket) -> bool:
    """Whether the server has closed it; a byte more of a head is sent, if not."""
    try:
        connection.send(b"x")
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


@pytest.mark.parametrize("head_within_s", [0.5])
def test_connections_whose_heads_drip_for_ever_are_ended_and_others_are_answered(
    server: MetricsServer,
) -> None:
    with ExitStack() as stack:
        drips = [stack.enter_context(connected(server)) for _ in range(32)]
        for each in drips:
            each.setblocking(False)
            each.send(b"GET /livez HTTP/1.1\r\nx: ")

        wait_until(lambda: not [each for each in drips if not is_closed(each)])

        assert wait_until(lambda: lives(server))
