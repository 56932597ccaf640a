"""`reload`, `stop` and `stacks`: they find the servers of this machine, and signal nobody else."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from qml_mp import host
from qml_mp.core.server_info import ProcessIdentity, ServerInfo
from qml_mp.storage.store import Storage
from tests.cli.command import TASKS, Qml, is_one_error
from tests.processes.harness import PATIENCE_S, wait_until

_NAP = """
import time

@app.job()
def nap() -> None:
    open("begun", "w").close()
    time.sleep(600)  # until it is told to stop
"""
_ELSEWHERE = ProcessIdentity(host="another machine", pid=1, started_ticks=1)


def register(storage: Storage, name: str, process: ProcessIdentity, number: int = 1) -> None:
    now = datetime.now(UTC)
    storage.register_server(
        ServerInfo(
            id=f"{name}#{number}", name=name, hostname="box", process=process, worker_count=1, queues=(),
            started_at=now, last_heartbeat=now, heartbeat_enabled=True,
        )
    )  # fmt: skip


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A program that handles no signal, and would end by any of them."""
    with subprocess.Popen([sys.executable, "-S", "-c", "print(1, flush=True); input()"],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


@contextmanager
def server_that_ends_by_a_signal() -> Iterator[subprocess.Popen[bytes]]:
    """A program that handles the signals of the commands, as a server does, and ends by each."""
    program = (
        "import os, select, signal; [signal.signal(each, lambda *_: os._exit(1)) for each in "
        "(signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1)]; print(1, flush=True)\n"
        # A signal that comes right before a call that waits is heeded after it.
        "while not select.select([0], [], [], 0.01)[0]: pass"
    )
    with subprocess.Popen([sys.executable, "-S", "-c", program],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def has_one_worker(status: Any) -> bool:
    return any(len(server["workers"]) == 1 for server in status["servers"])


def says_its_app(storage: Storage) -> bool:
    return any(told.app for told in storage.server_descriptions().values())


def has_workers(status: Any) -> bool:
    return any(len(server["workers"]) == 2 for server in status["servers"])


def test_a_server_tells_its_stacks_is_reloaded_and_stopped(qml: Qml) -> None:
    tasks = qml.folder / "tasks.py"
    tasks.write_text(TASKS + _NAP)
    with qml.started("-w", "2", "--server-name", "blue", "--shutdown-timeout", "1") as process:
        before = qml.until("status", shows=has_workers, server=process)["servers"][0]["workers"]
        qml("enqueue", "nap")
        wait_until((qml.folder / "begun").exists)

        shown = qml("stacks", "--json")
        in_words = qml("stacks", "--server", "blue")
        tasks.write_text("import no_such_library\n" + TASKS)
        refused = qml("reload")
        tasks.write_text(TASKS + _NAP)
        late = qml("reload", "--server", str(process.pid), "--timeout", "0.1")
        stopped = qml("stop", "--now")
        code = process.wait(PATIENCE_S)

    napping = next(line for line in shown.lines if line["method"] == "nap")
    assert napping["pid"] in [worker["pid"] for worker in before]
    assert " in nap" in napping["stack"]
    assert f"blue, worker {napping['number']} (pid {napping['pid']}, nap):\n" in in_words.out
    assert refused.code == 3
    assert f"blue (pid {process.pid}): the workers stay as they are.\n" in refused.err
    assert "  ModuleNotFoundError: No module named 'no_such_library'\n" in refused.err
    assert (late.code, late.out) == (1, "")
    assert re.search(r"still being imported after 100ms|replaced after 100ms", late.err), late
    assert (stopped.code, stopped.out) == (0, f"blue (pid {process.pid}): stopped\n")
    assert code == 6  # the nap was killed


def test_a_reload_tells_how_many_workers_are_replaced(qml: Qml) -> None:
    with qml.started("-w", "2") as process:
        qml.until("status", shows=has_workers, server=process)

        reloaded = qml("reload")
        stopped = qml("stop")

    assert (reloaded.code, reloaded.out) == (0, f"qml-server (pid {process.pid}): 2 workers replaced\n")
    assert (stopped.code, process.returncode) == (0, 0)


def test_a_reload_with_preload_says_that_the_code_is_that_of_the_start(qml: Qml) -> None:
    with qml.started("-w", "2", "--preload") as process:
        qml.until("status", shows=has_workers, server=process)
        (qml.folder / "tasks.py").write_text(TASKS + _NAP)

        reloaded = qml("reload")
        qml("stop")
        log = process.stderr.read().decode() if process.stderr is not None else ""

    code = "they run the code that was loaded at the start; restart the server to change it\n"
    assert (reloaded.code, reloaded.out) == (0, f"qml-server (pid {process.pid}): 2 workers replaced; {code}")
    assert f"Replacing the workers one by one; {code}" in log


def test_a_server_that_stops_is_not_hastened_by_another_stop(qml: Qml, storage: Storage) -> None:
    (qml.folder / "tasks.py").write_text(TASKS + _NAP)
    with qml.started("-w", "1", "--shutdown-timeout", "10m") as process:
        qml("enqueue", "nap")
        wait_until((qml.folder / "begun").exists)

        first = qml("stop", "--timeout", "0.1")
        wait_until(lambda: all(server.answers.stops for server in storage.list_servers()))
        second = qml("stop", "--timeout", "0.1")
        now = qml("stop", "--now")
        log = process.stderr.read().decode() if process.stderr is not None else ""

    assert (first.code, second.code) == (1, 1)
    assert "still runs after 100ms; --now ends it at once" in second.out
    assert (now.code, now.out) == (0, f"qml-server (pid {process.pid}): stopped\n")
    assert log.count("SIGTERM") == 1, log


def test_of_several_servers_of_one_name_one_is_named_by_its_id_or_pid(qml: Qml, storage: Storage) -> None:
    """All are called so that were given no name."""
    with server_that_ends_by_a_signal() as first, server_that_ends_by_a_signal() as second:
        register(storage, "web", host.identity(first.pid))
        register(storage, "web", host.identity(second.pid), number=2)

        by_name = {command: qml(command, "--server", "web") for command in ("stop", "reload", "stacks")}
        both_run = first.poll() is None and second.poll() is None
        by_pid = qml("stop", "--server", str(first.pid))
        by_id = qml("stop", "--server", "web#2")

    assert {ended.code for ended in by_name.values()} == {2}, by_name
    assert "2 servers here are called 'web': web (pid " in by_name["stop"].err
    assert is_one_error(by_name["stop"].err)
    assert both_run
    assert (by_pid.code, by_pid.out) == (0, f"web (pid {first.pid}): stopped\n")
    assert (by_id.code, by_id.out) == (0, f"web (pid {second.pid}): stopped\n")


def test_all_servers_of_one_name_are_stopped_when_that_is_said(qml: Qml, storage: Storage) -> None:
    with server_that_ends_by_a_signal() as first, server_that_ends_by_a_signal() as second:
        register(storage, "web", host.identity(first.pid))
        register(storage, "web", host.identity(second.pid), number=2)

        ended = qml("stop", "--server", "web", "--all")

    assert ended.code == 0
    assert set(ended.out.splitlines()) == {f"web (pid {each.pid}): stopped" for each in (first, second)}


def test_a_server_elsewhere_is_left_to_who_is_there(qml: Qml, storage: Storage) -> None:
    register(storage, "far", _ELSEWHERE)

    alone, named, unknown = qml("stop"), qml("reload", "--server", "far"), qml("stacks", "--server", "nobody")

    assert (alone.code, named.code, unknown.code) == (1, 1, 1)
    assert "far (pid 1) runs on box" in alone.err
    assert "run `qml-mp reload` there" in named.err
    assert "No server is called 'nobody'" in unknown.err


@pytest.mark.fault(54)
def test_a_pid_that_was_given_to_another_process_is_not_signalled(
    qml: Qml, storage: Storage, bystander: subprocess.Popen[bytes]
) -> None:
    own = host.identity(bystander.pid)
    register(storage, "gone", replace(own, started_ticks=own.started_ticks - 1))

    ended = qml("stop", "--now", "--server", "gone")

    assert ended.code == 1
    assert "is dead" in ended.err
    assert bystander.poll() is None


def test_a_program_that_would_die_of_the_signal_is_spared(
    qml: Qml, storage: Storage, bystander: subprocess.Popen[bytes]
) -> None:
    """As one that has `BackgroundJobServer.run` in a thread."""
    register(storage, "inside", host.identity(bystander.pid))

    ended = [qml(command) for command in ("reload", "stop", "stacks")]

    assert [each.code for each in ended] == [1, 1, 1]
    assert all("does not handle SIG" in each.err for each in ended)
    assert bystander.poll() is None


def test_a_server_that_ends_of_its_reload_is_told(qml: Qml, storage: Storage) -> None:
    with server_that_ends_by_a_signal() as process:
        register(storage, "blue", host.identity(process.pid))

        ended = qml("reload", "--timeout", "0.1")

    assert (ended.code, ended.out) == (1, "")
    assert ended.err == f"blue (pid {process.pid}): ended before it was done; see its log\n"


def test_a_reload_in_another_folder_than_the_servers_says_what_code_that_takes(
    qml: Qml, storage: Storage
) -> None:
    old, new, link = qml.folder / "r1", qml.folder / "r2", qml.folder / "current"
    for folder in (old, new):
        folder.mkdir()
        (folder / "tasks.py").write_text(TASKS)
    link.symlink_to(old)
    url = f"sqlite:///{qml.database}"
    with replace(qml, folder=link).started("--url", url, "-w", "1") as process:
        qml.until("status", "--url", url, shows=has_one_worker, server=process)
        wait_until(lambda: says_its_app(storage))
        reload = ("-A", "tasks:app", "reload", "--url", url)
        silent = replace(qml, folder=link)(*reload)
        link.unlink()
        link.symlink_to(new)

        told = replace(qml, folder=link)(*reload)

    assert (silent.code, told.code) == (0, 0), (silent.err, told.err)
    assert "imports tasks from" not in silent.err
    assert f"imports tasks from {old}, in which it was started, and not from here ({new})" in told.err
