"""Tests: systemd's protocol (sd_notify), heard by a real datagram socket."""

from __future__ import annotations

import os
import signal
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from qml_mp.storage.store import Storage
from tests.processes.harness import PATIENCE_S, Server, result_of, wait_for_a_beat, wait_until

CODE = """
import os
from qml_mp import QmlApp
app = QmlApp()
@app.job()
def inherited():
    return [name for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID") if name in os.environ]
"""


class Manager:
    """The service manager's end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + name[1:] if name.startswith("@") else name)
        self._socket.settimeout(PATIENCE_S)

    def next(self) -> str:
        return self._socket.recv(4096).decode()

    def until(self, beginning: str) -> list[str]:
        """What was told up to the first message that begins so."""
        told = [self.next()]
        while not told[-1].startswith(beginning):
            told.append(self.next())
        return told

    def all(self) -> list[str]:
        """What is there now."""
        self._socket.setblocking(False)
        told = []
        while True:
            try:
                told.append(self.next())
            except BlockingIOError:
                return told

    def close(self) -> None:
        self._socket.close()
        if not self.name.startswith("@") and os.path.exists(self.name):
            os.unlink(self.name)


@pytest.fixture
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(f"{tmp_path}/notify" if request.param == "file" else f"@qml-mp-test-{uuid.uuid4()}")
    yield manager
    manager.close()


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "manager", ["file", pytest.param("abstract", marks=pytest.mark.nightly)], indirect=True
)
def test_a_server_tells_that_it_is_ready_reloads_and_stops(
    server: Callable[..., Server], storage: Storage, manager: Manager, tmp_path: Path
) -> None:
    (tmp_path / "living_app.py").write_text(CODE)
    one = server(
        "-w", "2", app="living_app:app", PYTHONPATH=str(tmp_path), NOTIFY_SOCKET=manager.name,
        PYTHONDONTWRITEBYTECODE="1", WATCHDOG_USEC="2000000",  # its socket holds ten words that nobody reads
    ).start(ready=None)  # fmt: skip

    manager.until("READY=1")
    ready_then = one.log()
    manager.until("WATCHDOG=1")
    manager.until("WATCHDOG=1")
    asked_at = time.monotonic()
    one.signal(signal.SIGHUP)
    reloading = manager.until("RELOADING=1")[-1]
    done = manager.until("READY=1")
    left = result_of(storage, "inherited")
    (tmp_path / "living_app.py").write_text("import no_such_library\n")
    one.signal(signal.SIGHUP)
    refused = manager.until("STATUS=2 workers. The new code cannot be imported: ModuleNotFoundError")
    assert one.stop() == 0

    assert ready_then.count("is ready (pid") == 2
    begun_at = int(reloading.partition("MONOTONIC_USEC=")[2]) / 1_000_000
    assert asked_at <= begun_at <= time.monotonic()
    assert any("replaced)" in each for each in done)
    assert left == []
    assert any(each.startswith("RELOADING=1") for each in refused)
    last = manager.all()
    assert "STOPPING=1" in last
    assert "READY=1" in [*refused, *last]


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("manager", ["file"], indirect=True)
def test_a_manager_that_does_not_read_holds_nothing_up(
    server: Callable[..., Server], storage: Storage, manager: Manager
) -> None:
    often = {"WATCHDOG_USEC": "40000", "QML_MP_HEARTBEAT_INTERVAL": "0.5"}
    one = server("-w", "1", NOTIFY_SOCKET=manager.name, **often).start()

    for _ in range(3):  # in which more is due to be told than the socket holds
        wait_for_a_beat(one, storage)

    assert result_of(storage, "quick") == 1
    assert one.stop() == 0
    assert len(manager.all()) > 1


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("manager", ["file"], indirect=True)
def test_a_manager_that_is_back_is_told_all_anew_and_the_watchdog_hears_again(
    server: Callable[..., Server], manager: Manager
) -> None:
    one = server("-w", "1", NOTIFY_SOCKET=manager.name, WATCHDOG_USEC="2000000").start()
    manager.until("WATCHDOG=1")

    manager.close()
    wait_until(lambda: "NOTIFY_SOCKET" in one.log(), what=one.log)

    with closing(Manager(manager.name)) as back:
        assert back.next() == "READY=1"
        back.until("WATCHDOG=1")
        said = [line for line in one.log().splitlines() if "(NOTIFY_SOCKET)" in line]
        assert [("told again" in line) for line in said] == [False, True]  # each once
        assert one.stop() == 0
