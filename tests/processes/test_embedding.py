"""Tests: a server inside a host program leaves the host alone, and does not outlive it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from qml_mp import host
from qml_mp.core.outcome import ProcessFacts
from qml_mp.core.server_info import ProcessIdentity
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from qml_mp.supervisor.workers.fork import fork_child, reap
from tests.postgres_cluster import free_port
from tests.processes.harness import PATIENCE_S, ROOT, is_gone, left_in_registry, wait_for_state, wait_until
from tests.processes.journal import JOURNAL

StartHost = Callable[[str], "subprocess.Popen[bytes]"]


@pytest.fixture
def start_host(url: str, tmp_path: Path) -> Iterator[StartHost]:
    """Starts a program of `embedding_hosts`; what is left of it is killed."""
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str) -> subprocess.Popen[bytes]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("QML_MP_")}
        with (tmp_path / "errors").open("ab") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.processes.embedding_hosts", name, url, str(tmp_path)],
                cwd=ROOT, env={**kept, JOURNAL: str(tmp_path / "journal")},
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
            )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture
def report_of(start_host: StartHost, storage: Storage, tmp_path: Path) -> Callable[[str], dict[str, object]]:
    """Runs a host to its end: what it tells. Nothing of the server may be left then."""

    def run(name: str) -> dict[str, object]:
        process = start_host(name)
        output, _ = process.communicate(timeout=2 * PATIENCE_S)
        said = "".join(
            path.read_text() for path in (tmp_path / "errors", tmp_path / "host.log") if path.exists()
        )
        assert process.returncode == 0, said
        assert left_in_registry(storage, said) == []
        report: dict[str, object] = json.loads(output.decode().splitlines()[-1])
        return report

    return run


ReportOf = Callable[[str], dict[str, object]]


def test_a_script_starts_and_stops_a_server_twice_and_finds_everything_as_it_was(report_of: ReportOf) -> None:
    assert report_of("single") == {
        "jobs ran elsewhere": True,
        "ran": True,
        "refused": True,
        "same": True,
        "stopped": True,
        "own child": 7,
        "exit code": 0,
    }


@pytest.mark.fault(66)
@pytest.mark.fault(67)
def test_a_service_with_threads_handlers_and_children_keeps_them(report_of: ReportOf) -> None:
    assert report_of("threaded") == {
        "same": True,
        "own child": 7,
        "sigterms": 2,
        "woken": True,
        "exit code": 0,
    }


def test_of_the_threads_that_start_a_server_at_a_time_one_does_and_all_may_stop_it(
    report_of: ReportOf,
) -> None:
    assert report_of("crowded") == {
        "starts": [["done", "refused", "refused", "refused"]] * 2,
        "stops": [["done"] * 4] * 2,
        "running": False,
    }


@pytest.mark.fault(67)
def test_a_host_that_collects_any_child_does_not_confuse_the_server(report_of: ReportOf) -> None:
    assert report_of("greedy") == {"stopped": True, "collected": True}


@pytest.mark.fault(67)
def test_a_child_that_its_host_collects_while_it_is_being_reaped_is_dead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    child = fork_child(lambda: 0, ours=(), theirs=())
    ask = os.waitid

    def answer_and_collect(kind: int, pid: int, options: int) -> object:
        answer = ask(kind, pid, options)
        os.waitpid(pid, 0)
        return answer or child

    monkeypatch.setattr(os, "waitid", answer_and_collect)

    assert reap(child) == ProcessFacts(pid=child.pid)


def test_a_child_is_reaped_with_its_group_where_the_system_cannot_look_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As macOS before Python 3.13."""
    monkeypatch.delattr(os, "waitid")
    hearing, telling = os.pipe()
    reading, writing = os.pipe()

    def leave_one_behind() -> int:
        program = subprocess.Popen(["sleep", "600"])
        os.write(writing, str(program.pid).encode())
        os.read(hearing, 1)
        return 7

    child = fork_child(leave_one_behind, ours={reading, telling}, theirs={hearing, writing})
    left = int(os.read(reading, 100))
    assert reap(child) is None
    os.close(telling)

    facts = wait_until(lambda: reap(child), what="the child's end")

    assert (facts.pid, facts.exit_code, facts.signal) == (child.pid, 7, None)
    wait_until(lambda: is_gone(left), what="the end of its group")
    os.close(reading)


@pytest.mark.fault(67)
@pytest.mark.parametrize("name", ["in_a_loop", "in_a_loop_with_threads"])
def test_a_running_event_loop_keeps_its_signal_handlers_and_subprocesses(
    report_of: ReportOf, name: str
) -> None:
    assert report_of(name) == {
        "state": "succeeded",
        "result": "thought",
        "own child": 7,
        "calls": sorted([signal.SIGTERM, signal.SIGUSR1]),
        "same": True,
        "exit code": 0,
    }


def test_an_app_that_its_host_has_imported_is_in_memory_though_it_is_given_by_name(
    report_of: ReportOf, tmp_path: Path
) -> None:
    assert report_of("deployed") == {"workers": 2}

    log = (tmp_path / "errors").read_text()
    assert "they run the code that was loaded at the start; restart the server to change it" in log
    assert "new code" not in log


@pytest.mark.fault(68)
def test_a_copy_that_the_host_forks_sees_the_server_and_cannot_end_it(report_of: ReportOf) -> None:
    assert report_of("copied") == {"copy": 0, "running": True, "exit code": 0}


@pytest.mark.fault(68)
@pytest.mark.parametrize("name", ["doomed", "doomed_with_threads"])
def test_a_killed_hosts_server_finishes_its_job_and_leaves_whatever_the_hosts_children_do(
    start_host: StartHost, storage: Storage, tmp_path: Path, name: str
) -> None:
    process = start_host(name)
    wait_until((tmp_path / "doomed").exists, what="the job")
    told = json.loads((tmp_path / "doomed").read_text())
    ours = family(storage)
    assert len(ours) == 4  # the supervisor, its guardian, two workers

    process.kill()
    process.wait()

    try:
        wait_until(lambda: not any(host.is_alive(one) for one in ours), what="the end of the server")
        assert not is_gone(told["own child"])
    finally:
        with suppress(ProcessLookupError):
            os.kill(told["own child"], signal.SIGKILL)
    job = wait_for_state(storage, told["job"], StateName.SUCCEEDED)
    assert (job.claim_seq, job.crashes) == (1, 0)
    assert left_in_registry(storage, (tmp_path / "errors").read_text()) == []


def family(storage: Storage) -> list[ProcessIdentity]:
    """The processes of the only server."""
    (server,) = storage.list_servers()
    pid = server.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [server.process, *(host.identity(int(child)) for child in children)]


def test_what_keeps_a_server_from_starting_reaches_its_host_as_an_exception(report_of: ReportOf) -> None:
    told = report_of("unlucky")

    errors = {name: value[:2] for name, value in told.items() if isinstance(value, list)}
    expected = {
        "frozen": ("ConfigurationError", "no interpreter"),
        "no module": ("AppImportError", "No module named 'no_such_module'"),
        "in memory": ("ConfigurationError", "2 threads"),
        "only in workers": ("WorkerBootError", "gone stale"),
        "no storage": ("StorageUnreachable", "no/such/folder"),
        "memory": ("ConfigurationError", "memory limit"),
    }
    for name, (kind, text) in expected.items():
        assert errors[name][0] == kind, errors[name]
        assert text in errors[name][1]
    assert [value[2] for value in told.values() if isinstance(value, list)] == [False] * 6


def test_a_thread_that_has_been_joined_and_is_still_listed_is_none_that_the_host_has(
    report_of: ReportOf,
) -> None:
    assert report_of("just_joined") == {"exit code": 0}


_HOST_WITH_ITS_OWN_QML_MP = """
import json, sys, threading, time, urllib.request
from qml_mp import BackgroundJobServer, ServerConfig
from vendored_tasks import app, look

address, how, within_s = sys.argv[1:]
if how == "spawned":
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
with BackgroundJobServer(ServerConfig(worker_count=1, metrics=address), app.storage, "vendored_tasks:app"):
    seen = look.enqueue().wait(timeout=float(within_s))
    deadline = time.monotonic() + float(within_s)
    while True:
        try:
            seen.append(urllib.request.urlopen(f"http://{address}/livez", timeout=5).status)
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.1)  # between two looks
print(json.dumps(seen))
"""
_ITS_TASKS = """
import sys
import qml_mp
from qml_mp import QmlApp
app = QmlApp({url!r})

@app.job()
def look() -> list:
    return [qml_mp.__file__, sys.flags.optimize, sys.flags.utf8_mode]
"""


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("how", ["forked", "spawned"])
def test_all_processes_of_a_server_have_the_hosts_own_qml_mp_and_its_options(
    url: str, tmp_path: Path, how: str
) -> None:
    ours, others = tmp_path / "program", tmp_path / "installed" / "qml_mp"
    ours.mkdir()
    (ours / "qml_mp").symlink_to(ROOT / "qml_mp")
    (ours / "main.py").write_text(_HOST_WITH_ITS_OWN_QML_MP)
    (ours / "vendored_tasks.py").write_text(_ITS_TASKS.format(url=url))
    others.mkdir(parents=True)
    (others / "__init__.py").write_text("raise ImportError('another qml-mp')\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("QML_MP_")}

    ended = subprocess.run(
        [
            sys.executable, "-O", "-X", "utf8", str(ours / "main.py"),
            f"127.0.0.1:{free_port()}", how, str(PATIENCE_S),
        ],
        cwd=tmp_path, env={**kept, "PYTHONPATH": str(others.parent), "PYTHONUTF8": "0"},
        capture_output=True, text=True, timeout=3 * PATIENCE_S, check=False,
    )  # fmt: skip

    assert ended.stdout, ended.stderr
    assert json.loads(ended.stdout) == [str(ours / "qml_mp" / "__init__.py"), 1, 1, 200]


@pytest.mark.fault(65)
@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_beside_a_connection_of_the_hosts_own_a_server_is_spawned_or_refused(report_of: ReportOf) -> None:
    told = report_of("beside_a_handle")

    start, run = told["start"], told["run"]
    assert told["of main"] == start
    assert isinstance(start, list)
    assert isinstance(run, list)
    assert start[0] == run[0] == "ConfigurationError"
    assert "connections of its own" in start[1]
    assert "connections of its own" in run[1]
    assert told["exit codes"] == [0, 0]


def test_a_handler_may_stop_the_server_that_is_being_started(report_of: ReportOf) -> None:
    assert report_of("stopped_early") == {"running": [False, False], "handled": ["SIGUSR1", "SIGUSR2"]}


def test_a_server_runs_what_its_app_declares_when_it_starts_and_not_when_it_was_made(
    report_of: ReportOf,
) -> None:
    """Of a program that somebody has changed, nothing is taken anew."""
    assert report_of("declaring") == {
        "first": ["declared first"],
        "second": ["declared first", "declared since"],
        "of what was changed": [],
    }


def test_a_server_that_cannot_start_leaves_no_descriptor_in_its_host(report_of: ReportOf) -> None:
    assert report_of("never_started") == {"tries": 3, "leaves none open": True}
