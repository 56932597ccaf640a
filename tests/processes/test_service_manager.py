"""Tests: systemd's protocol (sd_notify), heard by a real datagram socket."""

from __future__ import annotations

import os
import signal
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from qml_mp.child.source import AppFacts, NamedProgram
from qml_mp.clock import SystemClock
from qml_mp.settings import ServerConfig
from qml_mp.sources import NotifySocket, take_notify_socket
from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.declarations import DeclarationsLoop
from qml_mp.supervisor.parts.reload import NewCode, Reload
from qml_mp.supervisor.parts.service_manager import ServiceManager
from qml_mp.supervisor.run import Run
from tests.processes.harness import PATIENCE_S, Server, result_of, wait_until

CODE = """
import os
from qml_mp import QmlApp
app = QmlApp()
@app.job()
def inherited():
    return [name for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID") if name in os.environ]
"""
SOURCE = NamedProgram(spec="an:app")


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


@pytest.fixture(params=["file", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(f"{tmp_path}/notify" if request.param == "file" else f"@qml-mp-test-{uuid.uuid4()}")
    yield manager
    manager.close()


class HandClock(SystemClock):
    at = 100.0

    def monotonic(self) -> float:
        return self.at


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def run(clock: HandClock) -> Iterator[Run]:
    """Of a server without workers."""
    run = Run(ServerConfig(worker_count=0), SOURCE, url="memory://", facts=AppFacts(), clock=clock)
    yield run
    run.pool.close()


@pytest.fixture
def reload(run: Run) -> Iterator[Reload]:
    reload = Reload(run, SOURCE, new_code=NewCode(), declarations=DeclarationsLoop(run))
    yield reload
    reload.close()


@pytest.fixture
def one(run: Run, address: NotifySocket, reload: Reload) -> ServiceManager:
    return ServiceManager(run, address, reload=reload)


@pytest.fixture
def address(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> NotifySocket:
    """As the environment names it, with a watchdog of ten seconds."""
    monkeypatch.setenv("NOTIFY_SOCKET", manager.name)
    monkeypatch.setenv("WATCHDOG_USEC", "10000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    address = take_notify_socket()
    assert address is not None
    return address


def test_the_watchdog_hears_from_the_loop_at_half_of_its_time(
    one: ServiceManager, clock: HandClock, manager: Manager
) -> None:
    one.turn()
    at_first = manager.all()
    next_at = one.next_at()
    clock.at = 104.9
    one.turn()
    too_soon = manager.all()
    clock.at = 105.0
    one.turn()

    assert at_first == ["READY=1", "STATUS=0 workers"]
    assert next_at == 105.0
    assert too_soon == []
    assert manager.all() == ["WATCHDOG=1"]
    assert one.next_at() == 110.0


def test_a_stop_and_a_trouble_are_told_once(run: Run, one: ServiceManager, manager: Manager) -> None:
    one.turn()
    run.registration.report("it is\nbroken")
    one.turn()
    run.stop.begin(now=False, why="test")
    one.turn()
    one.turn()

    assert manager.all() == [
        "READY=1", "STATUS=0 workers", "STATUS=0 workers. it is broken", "STOPPING=1",
        "STATUS=stopping. it is broken",
    ]  # fmt: skip


def test_a_trouble_of_any_length_and_of_any_characters_is_told_and_the_watchdog_too(
    run: Run, one: ServiceManager, clock: HandClock, manager: Manager
) -> None:
    run.registration.report("caf\udce9 " + "\udce9" * 300_000)
    clock.at = 105.0

    one.turn()

    ready, status, watchdog = manager.all()
    assert (ready, watchdog) == ("READY=1", "WATCHDOG=1")
    assert status.startswith("STATUS=0 workers. caf\\udce9 ")


def test_a_manager_that_does_not_read_holds_nothing_up(
    run: Run, one: ServiceManager, clock: HandClock, manager: Manager
) -> None:
    one.turn()
    for number in range(10_000):  # more than fit
        run.registration.report(f"trouble {number}")
        one.turn()
    manager.all()

    assert one.next_at() == pytest.approx(100.1)
    clock.at = 100.2
    one.turn()
    assert manager.all() == ["STATUS=0 workers. trouble 9999"]


def test_a_manager_that_does_not_read_is_not_tried_again_at_once_when_the_watchdog_is_due(
    run: Run, one: ServiceManager, clock: HandClock, manager: Manager
) -> None:
    for number in range(10_000):  # more than fit
        run.registration.report(f"trouble {number}")
        one.turn()

    clock.at = 110.0
    one.turn()

    assert one.next_at() == pytest.approx(110.1)
    manager.all()
    clock.at = 110.2
    one.turn()
    assert manager.all()[-1] == "WATCHDOG=1"
    assert one.next_at() == pytest.approx(115.2)


@pytest.fixture
def come_back(one: ServiceManager, clock: HandClock, manager: Manager) -> Iterator[Callable[[], Manager]]:
    """The manager is gone at 105.0, which the server finds, and another one has its name."""
    managers: list[Manager] = []

    def come_back() -> Manager:
        manager.close()
        clock.at = 105.0
        one.turn()
        managers.append(Manager(manager.name))
        return managers[-1]

    yield come_back
    for back in managers:
        back.close()


def test_a_manager_that_is_gone_is_looked_for_each_second_and_that_is_said_once(
    one: ServiceManager, clock: HandClock, manager: Manager, caplog: pytest.LogCaptureFixture
) -> None:
    manager.close()

    one.turn()
    one.turn()
    at_first = one.next_at()
    clock.at = 101.0
    one.turn()

    assert [record.message for record in caplog.records if "NOTIFY_SOCKET" in record.message] != []
    assert len(caplog.records) == 1
    assert at_first == 101.0
    assert one.next_at() == 102.0


def test_a_manager_that_is_back_is_told_all_anew_and_the_watchdog_hears_again(
    one: ServiceManager, clock: HandClock, come_back: Callable[[], Manager]
) -> None:
    one.turn()
    back = come_back()
    clock.at = 105.9
    one.turn()
    too_soon = back.all()

    clock.at = 106.0
    one.turn()

    assert too_soon == []
    assert back.all() == ["READY=1", "STATUS=0 workers", "WATCHDOG=1"]
    assert one.next_at() == 111.0
    clock.at = 111.0
    one.turn()
    assert back.all() == ["WATCHDOG=1"]


def test_a_manager_that_is_back_is_told_of_a_stop_it_has_missed(
    run: Run, one: ServiceManager, clock: HandClock, come_back: Callable[[], Manager]
) -> None:
    one.turn()
    run.stop.begin(now=False, why="test")
    one.turn()
    back = come_back()

    clock.at = 106.0
    one.turn()

    assert back.all() == ["STOPPING=1", "STATUS=stopping", "WATCHDOG=1"]


@pytest.mark.parametrize("manager", ["file"], indirect=True)  # the other lives on in the child just forked
def test_a_manager_that_is_back_while_a_reload_goes_on_hears_of_the_reload_before_it_hears_ready(
    one: ServiceManager, clock: HandClock, come_back: Callable[[], Manager], reload: Reload
) -> None:
    one.turn()
    reload.begin()
    reload.start_if_asked()
    one.turn()
    back = come_back()

    clock.at = 106.0
    one.turn()
    meanwhile = back.all()

    def has_ended() -> bool:
        reload.turn()
        return not reload.is_under_way

    wait_until(has_ended, what="the end of the reload")
    one.turn()

    assert meanwhile[0] == "RELOADING=1\nMONOTONIC_USEC=106000000"
    assert "READY=1" not in meanwhile
    assert back.all()[0] == "READY=1"


@pytest.mark.parametrize(
    ("socket_name", "watchdog", "expected"),
    [
        ("", "", None),
        ("vsock:1:2", "", None),
        ("/x", "", NotifySocket(path="/x", watchdog=None)),
        ("@x", "", NotifySocket(path="\0x", watchdog=None)),
        ("/x", "500", NotifySocket(path="/x", watchdog=timedelta(microseconds=500))),
        ("/x", "500 of 1", NotifySocket(path="/x", watchdog=None)),
        ("/x", "soon", NotifySocket(path="/x", watchdog=None)),
    ],
)
def test_what_the_environment_says_is_taken_out_of_it(
    socket_name: str, watchdog: str, expected: NotifySocket | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    usec, _, pid = watchdog.partition(" of ")
    variables = {"NOTIFY_SOCKET": socket_name, "WATCHDOG_USEC": usec, "WATCHDOG_PID": pid}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert take_notify_socket() == expected
    assert take_notify_socket() is None
    assert not [name for name in variables if name in os.environ]


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("manager", ["file"], indirect=True)
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
