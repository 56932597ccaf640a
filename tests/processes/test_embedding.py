"""Tests: a server inside a host program leaves the host alone, and does not outlive it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from qml_mp import host
from qml_mp.core.server_info import ProcessIdentity
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.harness import (
    PATIENCE_S,
    ROOT,
    few,
    is_gone,
    left_in_registry,
    wait_for_state,
    wait_until,
)
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
    # Some 5 s: two starts of an interpreter beside a thread that is busy.
    assert report_of("threaded") == {
        "same": True,
        "own child": 7,
        "sigterms": 2,
        "woken": True,
        "exit code": 0,
    }


@pytest.mark.nightly
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
@few("name", ["in_a_loop_with_threads"], nightly=["in_a_loop"])
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


@pytest.mark.fault(68)
def test_a_copy_that_the_host_forks_sees_the_server_and_cannot_end_it(report_of: ReportOf) -> None:
    assert report_of("copied") == {"copy": 0, "running": True, "exit code": 0}


@pytest.mark.fault(68)
@few("name", ["doomed"], nightly=["doomed_with_threads"])
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
    # Some 6 s: six starts, most of them of an interpreter.
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


@pytest.mark.parametrize(
    "url",
    ["memory", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("sqlite", "postgres"))],
    indirect=True,
)
def test_jobs_use_the_storage_that_their_program_gave_to_its_server(start_host: StartHost) -> None:
    process = start_host("forwarding")
    output, _ = process.communicate(timeout=2 * PATIENCE_S)

    assert json.loads(output.decode().splitlines()[-1]) == {"failures": 0, "crashes": 0, "jobs": 120}


@pytest.mark.nightly
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


_SCRIPT = """
from qml_mp import BackgroundJobServer, QmlApp, ServerConfig, open_storage

app = QmlApp({url!r})

@app.job()
def work() -> int:
    return 7

def main() -> None:
    server = BackgroundJobServer(ServerConfig(worker_count=1), open_storage({url!r}), "unguarded:app")
    {start}
    print(work.enqueue().wait(timeout=60))
    server.stop()

{guard}main()
"""


def run_script(url: str, folder: Path, **parts: str) -> subprocess.CompletedProcess[str]:
    script = folder / "unguarded.py"
    script.write_text(_SCRIPT.format(url=url, **{"guard": "", **parts}))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("QML_MP_")}
    return subprocess.run(
        [sys.executable, str(script)], cwd=folder, env={**kept, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
@few("start", ["server.start()"], nightly=["server.run()"])
def test_a_script_without_a_main_guard_is_told_of_it_and_runs_nothing_twice(
    storage: Storage, url: str, tmp_path: Path, start: str
) -> None:
    script = run_script(url, tmp_path, start=start)

    assert script.returncode == 1
    assert "each worker would start another one" in script.stderr
    assert 'if __name__ == "__main__":' in script.stderr
    assert sum(storage.job_counts().values()) == 0
    assert storage.list_servers() == []


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_with_the_guard_it_runs(storage: Storage, url: str, tmp_path: Path) -> None:
    guard = 'if __name__ == "__main__":\n    '

    script = run_script(url, tmp_path, start="server.start()", guard=guard)

    assert (script.returncode, script.stdout) == (0, "7\n"), script.stderr
    assert sum(storage.job_counts().values()) == 1


SERVICE = "examples.fastapi_service:service"


@pytest.fixture
def service(url: str, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The example under uvicorn, on a port that the system picks."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("QML_MP_")}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", SERVICE, "--port", "0"],
            cwd=ROOT, env={**kept, "QML_MP_URL": url},
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def client(service: subprocess.Popen[bytes], tmp_path: Path) -> Iterator[httpx.Client]:
    """An HTTP client of the service, once it takes requests."""

    def address() -> str | None:
        log = (tmp_path / "log").read_text()
        assert service.poll() is None, log
        found = re.search(r"running on (http://\S+)", log)
        return found and found[1]

    found = wait_until(address, what="the service")
    with httpx.Client(base_url=found, trust_env=False, timeout=PATIENCE_S) as client:
        yield client


@pytest.mark.fault(67)
def test_requests_enqueue_jobs_and_read_results_and_miss_unknown_ones_and_sigterm_ends_everything(
    service: subprocess.Popen[bytes], client: httpx.Client, storage: Storage, tmp_path: Path
) -> None:
    accepted = client.post("/words", json={"text": "to be or not to be"})

    def ended() -> dict[str, object] | None:
        answer: dict[str, object] = client.get(f"/jobs/{accepted.json()['id']}").json()
        return answer if answer["state"] == "succeeded" else None

    answer = wait_until(ended, what="the result")
    unknown = [client.get(f"/jobs/{job_id}") for job_id in ("01900000-0000-7000-8000-000000000000", "what")]
    refused = client.post("/words", json={"text": "\0"})
    ours = family(storage)
    service.send_signal(signal.SIGTERM)

    assert accepted.status_code == 202
    assert answer["result"] == {"to": 2, "be": 2, "or": 1, "not": 1}
    assert [each.status_code for each in unknown] == [404, 404]
    assert refused.status_code == 422
    assert client_error(service) == 0
    assert not any(host.is_alive(one) for one in ours)
    assert left_in_registry(storage, (tmp_path / "log").read_text()) == []


def client_error(service: subprocess.Popen[bytes]) -> int:
    """The service's exit code; uvicorn raises the signal again after its orderly end."""
    code = service.wait(60)
    return 0 if code == -signal.SIGTERM else code


@pytest.mark.nightly
@pytest.mark.fault(67)
def test_a_killed_service_leaves_no_process(
    service: subprocess.Popen[bytes], client: httpx.Client, storage: Storage, tmp_path: Path
) -> None:
    ours = family(storage)

    service.kill()

    wait_until(lambda: not any(host.is_alive(one) for one in ours), what="the end of the server")
    assert left_in_registry(storage, (tmp_path / "log").read_text()) == []
