"""Tests: a server whose database has a name, which no name server tells any more."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.processes.harness import ROOT, Server, wait_until
from tests.storage.flaky_proxy import FlakyProxy

NAME = "db.test"
QUICK = {"QML_MP_CANCEL_GRACE": "0.3", "QML_MP_TERM_GRACE": "0.5", "QML_MP_HEARTBEAT_INTERVAL": "1s"}
RESOLVER = f"""
import os, socket, time
look_up = socket.getaddrinfo
def with_our_name(host, *more, **others):
    while host == {NAME!r} and os.path.exists({{silence!r}}):
        open({{silence!r}} + f" {{{{os.getpid()}}}}", "a").close()
        time.sleep(0.05)
    return look_up("127.0.0.1" if host == {NAME!r} else host, *more, **others)
socket.getaddrinfo = with_our_name
"""

pytestmark = [pytest.mark.fault(82), pytest.mark.parametrize("url", ["postgres"], indirect=True)]


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[FlakyProxy]:
    with FlakyProxy.before(postgres_url) as running:
        yield running


class NameServer:
    """Of servers that are started with its `folder` before all others of Python's path."""

    def __init__(self, folder: Path, proxy: FlakyProxy) -> None:
        self.folder = folder
        self._silence = folder / "silence"
        self._proxy = proxy
        (folder / "sitecustomize.py").write_text(RESOLVER.format(silence=str(self._silence)))

    def go_silent(self) -> None:
        """And no connection is left that was made with its help."""
        self._silence.touch()
        self._proxy.cut()

    def asked_by(self) -> set[int]:
        """The processes that it has left without an answer."""
        return {int(said.name.split()[1]) for said in self.folder.glob("silence *")}


@pytest.fixture
def names(tmp_path: Path, proxy: FlakyProxy) -> NameServer:
    return NameServer(tmp_path, proxy)


@pytest.fixture
def one(server: Callable[..., Server], url: str, proxy: FlakyProxy, names: NameServer) -> Server:
    """A server that looks the storage's name up, and then reaches it through the proxy; not the test."""
    one = server("-w", "1", "--shutdown-timeout", "2", PYTHONPATH=f"{names.folder}:{ROOT}", **QUICK)
    one.url = proxy.through(url).replace("127.0.0.1", NAME)
    one.fresh = True
    return one.start()


def test_an_idle_server_stops(one: Server, names: NameServer) -> None:
    workers = set(one.worker_pids().values())
    names.go_silent()
    wait_until(lambda: names.asked_by() - workers, what="a look-up for the supervisor")

    one.signal(signal.SIGTERM)

    assert one.wait(within_s=8.0) == 0, one.log()
