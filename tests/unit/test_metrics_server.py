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


def test_the_suite_asks_no_proxy_for_what_is_on_this_machine(
    server: MetricsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(urllib.request, "_opener", None)  # which has read the environment before

    assert lives(server)


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


def test_those_for_whom_no_thread_could_be_started_take_nobodys_place(
    server: MetricsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot_start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as too_many:
        too_many.setattr(threading.Thread, "start", cannot_start)
        assert [lives(server) for _ in range(40)] == [False] * 40

    assert lives(server)


def test_a_head_that_comes_in_parts_is_answered(server: MetricsServer) -> None:
    with connected(server) as connection:
        for part in (b"GET /livez HT", b"TP/1.1\r\nhost: a\r\n", b"\r\n"):
            connection.sendall(part)

        with connection.makefile("rb") as answer:
            assert answer.read().endswith(b"\r\n\r\nok\n")
