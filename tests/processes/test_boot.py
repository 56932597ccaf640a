"""Tests: servers that start: on apps that do not import, on workers that die early, and on a storage that is
not theirs to use, not there, or being made by others."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

from qml_mp.core.state import Failed, StateName
from qml_mp.setting_kinds import Time
from qml_mp.settings import SETTINGS
from qml_mp.storage.store import Storage
from qml_mp.units import LONGEST
from tests.nightly.first_jobs import run_first_jobs
from tests.nightly.report import table
from tests.nightly.scenario import Task
from tests.processes.harness import Server, enqueue, few, left_in_registry, wait_for_state, wait_until
from tests.processes.pid_namespace import CONTAINER, first_process, need_namespaces
from tests.storage_rows import insert_raw_job

MakeServer = Callable[..., Server]


@pytest.mark.fault(60)
def test_an_app_that_breaks_in_the_workers_alone_stops_the_server_too(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    # Imports where the supervisor probes it, and fails from the second import on.
    (tmp_path / "fading_app.py").write_text(
        "import pathlib\n"
        "from qml_mp import QmlApp\n"
        f"mark = pathlib.Path({str(tmp_path / 'mark')!r})\n"
        "if mark.exists():\n"
        "    raise RuntimeError('gone stale')\n"
        "mark.touch()\n"
        "app = QmlApp()\n"
    )
    one = server("-w", "2", app="fading_app:app", PYTHONPATH=str(tmp_path))

    one.start(ready=None)

    assert one.wait() == 3
    assert one.log().count("RuntimeError: gone stale") == 1
    assert one.log().count("Stopping now (no worker can boot)") == 1
    assert left_in_registry(storage, one.log()) == []


@pytest.mark.nightly
def test_a_burst_ends_with_the_workers_that_it_has_where_no_other_can_boot(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    gate, stale = tmp_path / "gate", tmp_path / "stale"
    # Of two workers that are ready, one dies of the job, and no other boots from then on.
    (tmp_path / "stale_app.py").write_text(
        "import os, pathlib, signal, time\n"
        "from qml_mp import QmlApp\n"
        f"gate, stale = pathlib.Path({str(gate)!r}), pathlib.Path({str(stale)!r})\n"
        "if stale.exists():\n"
        "    raise RuntimeError('gone stale')\n"
        "app = QmlApp()\n"
        "@app.job()\n"
        "def work():\n"
        "    while not gate.exists():\n"
        "        time.sleep(0.01)\n"
        "    if not stale.exists():\n"
        "        stale.touch()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    job_id = enqueue(storage, "work")
    one = server("-w", "2", "--burst", app="stale_app:app", PYTHONPATH=str(tmp_path)).start(ready=2)

    gate.touch()

    assert one.wait() == 0
    assert "RuntimeError: gone stale" in one.log()
    assert "Stopping (nothing is left to do)" in one.log()
    assert wait_for_state(storage, job_id, StateName.SUCCEEDED).crashes == 1


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
@few("prefix, expected", [((), -signal.SIGTERM)], nightly=[(CONTAINER, 0)])
def test_a_stop_while_the_app_is_imported_ends_the_server(
    server: MakeServer, storage: Storage, tmp_path: Path, prefix: tuple[str, ...], expected: int
) -> None:
    if prefix:
        need_namespaces()
    mark = tmp_path / "mark"
    (tmp_path / "slow_app.py").write_text(
        f"import pathlib, time\npathlib.Path({str(mark)!r}).touch()\ntime.sleep(1000)\n"
    )
    one = server("-w", "1", app="slow_app:app", PYTHONPATH=str(tmp_path))
    one.prefix = prefix
    one.start(ready=None)
    wait_until(mark.exists, what=one.log)

    os.kill(first_process(one) if prefix else one.pid, signal.SIGTERM)

    assert one.wait() == expected, one.log()
    assert left_in_registry(storage, one.log()) == []


@pytest.mark.fault(60)
def test_after_a_bad_deploy_old_workers_go_on_and_a_mended_app_is_picked_up(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    module = tmp_path / "living_app.py"
    good = "from qml_mp import QmlApp\napp = QmlApp()\n@app.job()\ndef version():\n    return {}\n"
    module.write_text(good.format(1))
    one = server(
        "-w", "2", app="living_app:app", PYTHONPATH=str(tmp_path), PYTHONDONTWRITEBYTECODE="1"
    ).start(ready=2)
    module.write_text("raise RuntimeError('bad deploy')\n")

    one.signal(signal.SIGHUP)

    wait_until(lambda: "bad deploy" in one.log(), what=one.log)
    assert wait_for_state(storage, enqueue(storage, "version"), StateName.SUCCEEDED).result == 1
    module.write_text(good.format(2))
    wait_until(lambda: len(one.worker_pids()) == 2, what="the recovery")
    one.signal(signal.SIGHUP)
    wait_until(
        lambda: wait_for_state(storage, enqueue(storage, "version"), StateName.SUCCEEDED).result == 2,
        what="the new version",
    )
    assert one.stop() == 0


@pytest.mark.fault(27)
@pytest.mark.fault(28)
@pytest.mark.fault(29)
@pytest.mark.fault(30)
def test_raw_rows_that_cannot_run_end_failed_and_harm_no_worker(server: MakeServer, storage: Storage) -> None:
    one = server("-w", "1").start()
    workers = one.worker_pids()

    bad = {
        "corrupt": insert_raw_job(storage, "quick", "{not json"),
        "deep": insert_raw_job(storage, "quick", "[" * 100_000 + "]" * 100_000),
        "nan": insert_raw_job(storage, "quick", '{"busy_s": NaN}'),
        "mismatch": insert_raw_job(storage, "quick", '{"no_such_argument": 1}'),
    }

    for name, job_id in bad.items():
        job = wait_for_state(storage, job_id, StateName.FAILED)
        assert isinstance(job.state, Failed)
        assert job.state.exception is not None, name
    assert one.worker_pids() == workers
    assert wait_for_state(storage, enqueue(storage, "quick"), StateName.SUCCEEDED)
    assert one.stop() == 0


@pytest.mark.fault(30)
@pytest.mark.fault(90)
def test_raw_rows_with_an_unknown_method_wait_and_nothing_is_imported_for_them(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    never = tmp_path / "never"
    unknown = [
        insert_raw_job(storage, "no_such_method", "{}"),
        insert_raw_job(storage, "os.system", f'["touch {never}"]'),
        insert_raw_job(storage, "", "{}"),
    ]
    one = server("-w", "1").start()

    known_id = enqueue(storage, "quick")

    wait_for_state(storage, known_id, StateName.SUCCEEDED)
    jobs = [storage.get(job_id) for job_id in unknown]
    assert [(job.state_name, job.claim_seq) for job in jobs if job] == [(StateName.ENQUEUED, 0)] * 3
    assert one.stop() == 0
    assert not never.exists()


@pytest.mark.fault(94)
@few("backend", ["sqlite"], nightly=["postgres"])
def test_killers_at_the_head_of_the_queue_stop_no_server_and_keep_no_job_from_running(
    request: pytest.FixtureRequest, backend: str
) -> None:
    url = request.getfixturevalue("postgres_url") if backend == "postgres" else None

    row = run_first_jobs(
        Task(scenario="first-jobs", backend=backend, postgres_url=url, seed=1, count=2, unit="starts")
    )

    assert row.broken == (), table([row])
    assert row.done == 2


@pytest.mark.fault(10)
@few("exit_code", [80], nightly=[81])
def test_a_job_that_gives_an_exit_code_of_ours_is_not_told_as_an_orderly_leave(
    server: MakeServer, storage: Storage, exit_code: int
) -> None:
    one = server("-w", "1", QML_MP_MAX_CRASHES="1").start()

    job = wait_for_state(storage, enqueue(storage, "die", exit_code=exit_code), StateName.FAILED)

    assert job.last_error is not None
    assert f"exited with code {exit_code}" in job.last_error.message
    assert f"stopped (pid {job_pid(one)}): it exited with code {exit_code}" in one.log()
    assert one.stop() == 0


def job_pid(server: Server) -> int:
    """Of the worker that ran the only job."""
    (line,) = server.journal()
    return line.pid


@pytest.mark.fault(60)
@few("how, workers", [("os._exit(3)", 1)], nightly=[("os._exit(80)", 5)])
def test_an_import_that_ends_the_workers_without_a_word_stops_the_server_as_one_that_cannot_boot(
    server: MakeServer, storage: Storage, tmp_path: Path, how: str, workers: int
) -> None:
    # Imports where the supervisor probes it, and ends the process from the second import on.
    # Some 7 s: workers that die at their boot are forked ever more rarely.
    (tmp_path / "deadly_app.py").write_text(
        "import os, pathlib\n"
        "from qml_mp import QmlApp\n"
        f"mark = pathlib.Path({str(tmp_path / 'mark')!r})\n"
        "if mark.exists():\n"
        f"    {how}\n"
        "mark.touch()\n"
        "app = QmlApp()\n"
    )
    one = server("-w", str(workers), app="deadly_app:app", PYTHONPATH=str(tmp_path))

    one.start(ready=None)

    assert one.wait() == 3
    assert "workers in a row died while booting, without a reason" in one.log()
    assert left_in_registry(storage, one.log()) == []


_TABLES = ("jobs", "attempts", "recurring_jobs", "servers", "workers", "locks", "schema_version")


@contextmanager
def driver(url: str) -> Iterator[tuple[Any, str]]:
    """A plain connection to the database, and what its tables' names begin with."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as connection:
            yield connection, "qml_"
    else:
        schema = parse_qs(urlsplit(url).query)["schema"][0]
        with psycopg.connect(url.partition("?")[0], autocommit=True) as postgres:
            yield postgres, f'"{schema}".'


def dump(url: str) -> dict[str, list[Any]]:
    """Every row of every table."""
    with driver(url) as (connection, prefix):
        return {
            name: sorted(connection.execute(f"SELECT * FROM {prefix}{name}"), key=str) for name in _TABLES
        }


@pytest.mark.fault(47)
@pytest.mark.parametrize(("version", "said"), [(999, "newer"), (0, "older")])
def test_a_server_refuses_a_schema_of_another_version_and_writes_nothing(
    server: MakeServer, storage: Storage, version: int, said: str
) -> None:
    enqueue(storage, "quick")
    storage.close()
    with driver(storage.url) as (connection, prefix):
        versions = f"{prefix}schema_version"
        connection.execute(f"DELETE FROM {versions} WHERE version < (SELECT max(version) FROM {versions})")
        connection.execute(f"UPDATE {versions} SET version = {version}")
    before = dump(storage.url)
    one = server("-w", "1").start(ready=None)

    code = one.wait()

    assert code == 5, one.log()
    assert f"{said} than this code" in one.log()
    assert "Traceback" not in one.log()
    assert dump(storage.url) == before


@pytest.mark.fault(48)
@pytest.mark.unmigrated
def test_five_servers_that_start_at_once_on_an_empty_storage_make_one_schema_and_all_work(
    server: MakeServer, storage: Storage
) -> None:
    five = [server("-w", "1") for _ in range(5)]
    for one in five:
        one.start(ready=None)
    wait_until(lambda: sum(bool(one.worker_pids()) for one in five) == 5, what=five[0].log())

    ids = [enqueue(storage, "quick") for _ in range(20)]

    for job_id in ids:
        wait_for_state(storage, job_id, StateName.SUCCEEDED)
    # A worker that has to wait for a processor gives back what it holds: runs are counted, and not claims.
    assert sorted(five[0].starts()) == sorted(ids)
    assert len(storage.list_servers()) == 5
    with driver(storage.url) as (connection, prefix):
        versions = connection.execute(f"SELECT version FROM {prefix}schema_version").fetchall()
    assert versions == [(number,) for number in range(1, storage.schema_version() + 1)]
    assert [one.stop() for one in five] == [0] * 5


@pytest.mark.fault(38)
def test_a_server_whose_postgres_is_down_says_so_and_exits_4(server: MakeServer) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and never listens, so that nobody else can
        one = server("-w", "1")
        one.url = f"postgresql://someone:secret@127.0.0.1:{bound.getsockname()[1]}/db"
        one.start(ready=None)

        code = one.wait()

    assert code == 4, one.log()
    assert "is not available for connecting" in one.log()
    assert "secret" not in one.log()
    assert "Traceback" not in one.log()


def test_a_server_with_the_longest_durations_runs_jobs_waits_and_stops(
    server: MakeServer, storage: Storage
) -> None:
    longest = {name: LONGEST for name, kind in SETTINGS.items() if isinstance(kind, Time)}
    longest["heartbeat_interval"] /= 2
    one = server(
        **{f"QML_MP_{name.upper()}": f"{value.total_seconds():.0f}" for name, value in longest.items()}
    )
    one.start()

    first = wait_for_state(storage, enqueue(storage, "quick"), StateName.SUCCEEDED)
    wait_for_state(storage, enqueue(storage, "quick"), StateName.SUCCEEDED)

    assert first.expires_at is not None
    assert first.expires_at - first.created_at >= LONGEST - timedelta(seconds=1)
    assert one.stop() == 0
    assert "Traceback" not in one.log()
