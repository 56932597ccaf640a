"""`reload`, `stop` and `stacks`: they find the servers of this machine, and signal nobody else."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import click
import pytest
from click.testing import CliRunner

from qml_mp import host
from qml_mp.cli.commands import signals
from qml_mp.cli.local_servers import LocalServer
from qml_mp.cli.main import cli
from qml_mp.core.server_info import ProcessIdentity, ServerInfo
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from tests.cli.command import TASKS, Qml, is_one_error
from tests.cli.test_streams import unread
from tests.fresh_storage import fresh_url_with_password
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
def server_that_ends_by_a_signal(at_a_signal: str = "os._exit(1)") -> Iterator[subprocess.Popen[bytes]]:
    """What handles the signals of the commands as a server does, by this."""
    program = (
        f"import glob, os, select, signal; [signal.signal(each, lambda *_: {at_a_signal}) for each in "
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


def is_importing(status: Any) -> bool:
    return any(str(server["trouble"]).startswith("New code is") for server in status["servers"])


def has_one_worker(status: Any) -> bool:
    return any(len(server["workers"]) == 1 for server in status["servers"])


def says_its_app(storage: Storage) -> bool:
    return any(told.app for told in storage.server_descriptions().values())


def has_workers(status: Any) -> bool:
    return any(len(server["workers"]) == 2 for server in status["servers"])


def test_nothing_is_cut_off_behind_the_url_of_the_storage(qml: Qml, postgres_url: str) -> None:
    """A server's name may have an @ that could be the end of a password."""
    with fresh_url_with_password(postgres_url) as url:
        with closing(open_storage(url)) as storage:
            storage.migrate()
            register(storage, "jobs@blue", _ELSEWHERE)
            shown = storage.display_url

        ended = qml("--url", url, "stacks")

    assert ended.code == 1
    assert f"No server of {shown!r} runs on this machine. jobs@blue (pid 1) runs on box" in ended.err


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


def test_a_reload_that_still_imports_when_its_time_is_over_says_so(qml: Qml) -> None:
    tasks = qml.folder / "tasks.py"
    slow = "import os, time\nwhile not os.path.exists('go'):\n    time.sleep(0.05)\n" + TASKS
    with qml.started("-w", "2") as process:
        qml.until("status", shows=has_workers, server=process)
        tasks.write_text("import no_such_library\n" + TASKS)
        qml("reload")
        tasks.write_text(slow)

        late = qml("reload", "--timeout", "0.1")
        [meanwhile] = qml.until("status", shows=is_importing, server=process)["servers"]
        (qml.folder / "go").touch()
        done = qml("reload")
        [after] = qml("status", "--json").value["servers"]
        qml("stop")
        log = process.stderr.read().decode() if process.stderr is not None else ""

    assert late.code == 1
    assert f"qml-server (pid {process.pid}): the new code is still being imported after 100ms; no" in late.err
    assert meanwhile["trouble"].startswith(
        "New code is being imported. Before that: The new code cannot be imported: ModuleNotFoundError"
    )
    assert (done.code, after["trouble"]) == (0, None)
    assert "Importing the new code, for which it has 1m (boot_timeout)" in log


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


def test_a_stop_waits_for_the_process_where_the_storage_goes_away_with_the_server(
    qml: Qml, storage: Storage
) -> None:
    """As `memory://` does, whose server removes the file before it ends."""
    removes = f"[os.unlink(file) for file in glob.glob({str(qml.database)!r} + '*')]"
    with server_that_ends_by_a_signal(f"({removes}, os.write(1, b'2\\n'))") as process:
        register(storage, "blue", host.identity(process.pid))
        [info] = storage.list_servers()
        with LocalServer(info) as server:
            server.send(signal.SIGTERM)
            assert process.stdout is not None
            process.stdout.readline()

            meanwhile = signals._await_end(server, storage, until=0.0)
            process.kill()
            ended = signals._await_end(server, storage, until=time.monotonic() + PATIENCE_S)

    assert (meanwhile, ended) == (False, True)


def test_of_several_servers_one_has_to_be_named(
    qml: Qml, storage: Storage, bystander: subprocess.Popen[bytes]
) -> None:
    register(storage, "blue", host.identity(bystander.pid))
    register(storage, "green", host.identity(bystander.pid))

    ended = qml("stop")

    assert ended.code == 2
    assert f"2 servers run here: blue (pid {bystander.pid}), green (pid {bystander.pid})" in ended.err
    assert is_one_error(ended.err)


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


@pytest.mark.parametrize("command", ["reload", "stop", "stacks"])
def test_a_program_that_would_die_of_the_signal_is_spared(
    qml: Qml, storage: Storage, bystander: subprocess.Popen[bytes], command: str
) -> None:
    """As one that has `BackgroundJobServer.run` in a thread."""
    register(storage, "inside", host.identity(bystander.pid))

    ended = qml(command)

    assert ended.code == 1
    assert "does not handle SIG" in ended.err
    assert bystander.poll() is None


@pytest.mark.parametrize(
    ("at_a_signal", "told"),
    [
        pytest.param("os._exit(1)", "ended before it was done; see its log", id="ends"),
        pytest.param("None", "no answer yet; see its log", id="hangs"),
    ],
)
def test_a_server_that_says_nothing_of_its_reload_is_told_from_one_that_has_ended(
    qml: Qml, storage: Storage, at_a_signal: str, told: str
) -> None:
    with server_that_ends_by_a_signal(at_a_signal) as process:
        register(storage, "blue", host.identity(process.pid))

        ended = qml("reload", "--timeout", "0.1")

    assert (ended.code, ended.out) == (1, "")
    assert ended.err == f"blue (pid {process.pid}): {told}\n"


@pytest.mark.parametrize(
    ("command", "code", "told"),
    [
        ("stop", 0, "gone (pid {gone}): has ended already\nlast (pid {last}): stopped\n"),
        ("reload", 1, "qml-mp: The server gone (pid {gone}) has just ended.\nlast (pid {last}): ended before "
         "it was done; see its log\n"),
        ("stacks", 1, "qml-mp: The server gone (pid {gone}) has just ended.\nlast (pid {last}): no answer "
         "within 10s; what there is stands in its log\n"),
    ],
)  # fmt: skip
def test_of_all_servers_one_that_has_ended_meanwhile_is_told_and_keeps_nothing_from_the_others(
    qml: Qml, storage: Storage, command: str, code: int, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was there when they were listed."""
    with subprocess.Popen([sys.executable, "-S", "-c", "print()"]) as gone:
        register(storage, "gone", host.identity(gone.pid))
    with server_that_ends_by_a_signal() as last:
        register(storage, "last", host.identity(last.pid))
        [*servers] = sorted(storage.list_servers(), key=lambda each: each.name)
        monkeypatch.setattr(signals, "chosen_servers", lambda *_, **__: servers)

        arguments = ["--url", f"sqlite:///{qml.database}", command, "--all"]
        ended = CliRunner().invoke(cli, arguments, standalone_mode=False)

        assert ended.output == told.format(gone=gone.pid, last=last.pid)
        assert (ended.return_value, last.wait(PATIENCE_S)) == (code, 1)


def test_all_servers_are_told_to_stop_before_one_is_waited_for(qml: Qml, storage: Storage) -> None:
    with server_that_ends_by_a_signal("None") as slow, server_that_ends_by_a_signal() as quick:
        register(storage, "a-slow", host.identity(slow.pid))
        register(storage, "b-quick", host.identity(quick.pid))

        ended = qml("stop", "--all", "--timeout", "5")
        slow.kill()

    assert quick.returncode == 1
    assert ended.code == 1
    assert sorted(ended.out.splitlines()) == [
        f"a-slow (pid {slow.pid}): still runs after 5s; --now ends it at once",
        f"b-quick (pid {quick.pid}): stopped",
    ]


def test_all_servers_are_told_to_reload_though_nobody_reads_of_the_first(qml: Qml, storage: Storage) -> None:
    with server_that_ends_by_a_signal() as first, server_that_ends_by_a_signal() as second:
        register(storage, "blue", host.identity(first.pid))
        register(storage, "green", host.identity(second.pid))

        code = unread(qml, "reload", "--all", "--no-wait")

        assert (code, first.wait(PATIENCE_S), second.wait(PATIENCE_S)) == (0, 1, 1)


def test_whether_a_process_handles_a_signal_is_told(bystander: subprocess.Popen[bytes]) -> None:
    assert host.handles_signal(bystander.pid, signal.SIGHUP) is False
    assert host.handles_signal(bystander.pid, signal.SIGINT) is True
    assert host.handles_signal(2**22 + 1, signal.SIGINT) is None


@pytest.mark.fault(54)
def test_a_server_that_ended_since_it_was_found_is_not_signalled(
    storage: Storage, bystander: subprocess.Popen[bytes]
) -> None:
    """Its pid is another process's by now."""
    own = host.identity(bystander.pid)
    register(storage, "gone", replace(own, started_ticks=own.started_ticks - 1))
    [info] = storage.list_servers()

    with pytest.raises(click.ClickException, match="has just ended"), LocalServer(info) as server:
        server.send(signal.SIGKILL)

    assert bystander.poll() is None


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


def test_a_reload_says_nothing_of_a_folder_whose_module_the_server_does_not_run(
    qml: Qml, storage: Storage
) -> None:
    there, here = qml.folder / "there", qml.folder / "here"
    for folder in (there, here):
        folder.mkdir()
        (folder / "tasks.py").write_text(TASKS)
    (there / "mail.py").write_text(TASKS)
    url = f"sqlite:///{qml.database}"
    with replace(qml, folder=there).started("-A", "mail:app", "--url", url, "-w", "1") as process:
        qml.until("status", "--url", url, shows=has_one_worker, server=process)
        wait_until(lambda: says_its_app(storage))

        reloaded = replace(qml, folder=here)("-A", "tasks:app", "reload", "--all", "--url", url)

    assert (reloaded.code, reloaded.err) == (0, "")
