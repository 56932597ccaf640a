"""Tests: what a running server says of itself, of progress and of history, and of jobs whose method it does
not know."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from qml_mp.cli.main import cli
from qml_mp.core.history import Ending
from qml_mp.core.job import Job
from qml_mp.core.progress import Progress
from qml_mp.core.recurring import RecurringJob
from qml_mp.core.server_info import ServerInfo
from qml_mp.core.state import StateName
from qml_mp.storage.history import MINUTE, HistoryPoint
from qml_mp.storage.store import Storage
from qml_mp.storage.values import JobFilter
from tests.processes.harness import ROOT, Server, enqueue, result_of, state_of, wait_for_state, wait_until
from tests.processes.jobs_app import app
from tests.storage.helpers import patient_url

LEAVES_PATIENTLY = True
MakeServer = Callable[..., Server]
EVERYTHING = JobFilter()


def only_server(storage: Storage) -> ServerInfo:
    (info,) = storage.list_servers()
    return info


def test_a_server_registers_the_methods_of_its_app(server: MakeServer, storage: Storage) -> None:
    server("-w", "1").start()

    assert only_server(storage).methods == app.registry.methods()


def test_a_paused_server_says_so_until_it_goes_on(server: MakeServer, storage: Storage) -> None:
    one = server("-w", "1").start()
    at_start = only_server(storage).paused

    one.signal(signal.SIGUSR2)

    wait_until(lambda: only_server(storage).paused, what=one.log)
    one.signal(signal.SIGUSR2)
    wait_until(lambda: not only_server(storage).paused, what=one.log)
    assert not at_start
    assert one.stop() == 0


@pytest.mark.nightly
def test_a_paused_server_that_was_declared_dead_is_paused_under_its_new_id(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "1").start()
    one.signal(signal.SIGUSR2)
    first = wait_until(lambda: info if (info := only_server(storage)).paused else None)

    storage.reclaim_server(first.id, silent_for=None)

    second = wait_until(lambda: next(iter(storage.list_servers()), None), what=one.log)
    assert second.id != first.id
    assert (second.paused, second.methods) == (True, first.methods)
    assert one.stop() == 0


@pytest.mark.fault(90)
def test_the_log_tells_once_of_jobs_whose_method_no_server_knows(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "1").start()
    one.signal(signal.SIGUSR2)  # nobody takes them meanwhile
    wait_until(lambda: only_server(storage).paused)

    for method in ("newone", "newone", "quick"):
        enqueue(storage, method)

    wait_until(lambda: "Jobs wait for method newone" in one.log(), what=one.log)
    other = enqueue(storage, "newer")
    wait_until(lambda: "Jobs wait for method newer" in one.log(), what=one.log)
    assert one.log().count("Jobs wait for method newone") == 1
    assert "Jobs wait for method quick" not in one.log()
    assert storage.get(other) is not None
    assert one.stop() == 0


def test_a_template_whose_function_is_gone_does_not_fire_and_the_log_says_what_to_do(
    server: MakeServer, storage: Storage
) -> None:
    storage.upsert_recurring_job(RecurringJob.new("gone", "* * * * * *", "deleted_function"))
    storage.upsert_recurring_job(RecurringJob.new("there", "* * * * * *", "quick"))

    one = server("-w", "1").start()

    wait_until(lambda: storage.job_counts()[StateName.SUCCEEDED] >= 3, what=one.log)
    wait_until(lambda: "qml-mp recurring remove gone" in one.log(), what=one.log)
    assert one.log().count("Recurring template gone is due and not fired") == 1
    assert {job.method for job in storage.list_jobs(EVERYTHING).jobs} == {"quick"}
    template = storage.get_recurring_job("gone")
    assert template is not None
    assert template.enabled
    assert one.stop() == 0


@pytest.mark.nightly
def test_a_template_of_another_app_is_fired_by_the_server_that_knows_it_and_told_by_nobody(
    server: MakeServer, storage: Storage
) -> None:
    mine = server("-w", "1", "-q", "mine").start()
    stranger = server("-w", "1", app="tests.processes.apps_storage_faults:app").start(ready=None)
    wait_until(lambda: len(storage.list_servers()) == 2, what=mine.log)
    storage.upsert_recurring_job(RecurringJob.new("mine", "* * * * * *", "quick", queue="mine"))

    wait_until(lambda: storage.job_counts()[StateName.SUCCEEDED] >= 3, what=mine.log)

    assert "is due and not fired" not in mine.log()
    assert {job.method for job in storage.list_jobs(EVERYTHING).jobs} == {"quick"}
    assert [one.stop() for one in (stranger, mine)] == [0, 0]


def test_a_server_that_is_there_for_its_loops_alone_fires_for_the_others(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    (tmp_path / "no_jobs.py").write_text("from qml_mp import QmlApp\napp = QmlApp()\n")
    storage.upsert_recurring_job(RecurringJob.new("theirs", "* * * * * *", "quick"))

    one = server("-w", "0", app="no_jobs:app", PYTHONPATH=str(tmp_path)).start(ready=None)

    wait_until(lambda: storage.job_counts()[StateName.ENQUEUED] >= 2, what="firings")
    assert "is due and not fired" not in one.log()
    assert one.stop() == 0


HEAD = "from qml_mp import QmlApp\napp = QmlApp()\n"
OLD = "@app.job()\ndef old():\n    return 'old'\n"
NEW = "@app.job()\ndef newone():\n    return 'new'\n"


def status_of(url: str) -> str:
    """What `qml-mp status` prints."""
    command = [sys.executable, "-m", "qml_mp", "--url", patient_url(url), "status"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.mark.fault(90)
def test_a_job_of_newer_code_waits_during_a_deploy_and_runs_once_the_server_knows_it(
    server: MakeServer, storage: Storage, url: str, tmp_path: Path
) -> None:
    module = tmp_path / "growing_app.py"
    module.write_text(HEAD + OLD)
    one = server("-w", "2", app="growing_app:app", PYTHONPATH=str(tmp_path), PYTHONDONTWRITEBYTECODE="1")
    one.start(ready=2)
    waiting = enqueue(storage, "newone")

    wait_until(lambda: "Jobs wait for method newone" in one.log(), what=one.log)
    assert [result_of(storage, "old") for _ in range(5)] == ["old"] * 5
    assert state_of(storage, waiting) is StateName.ENQUEUED
    assert "1 job waits for methods that no live server has: newone" in status_of(url)
    module.write_text(HEAD + OLD + NEW)
    one.signal(signal.SIGHUP)
    job = wait_for_state(storage, waiting, StateName.SUCCEEDED)
    assert (job.result, job.claim_seq, job.failures) == ("new", 1, 0)
    assert "waits for method" not in status_of(url)
    assert one.stop() == 0


@pytest.mark.fault(90)
def test_two_apps_on_one_database_each_run_their_own_jobs(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    (tmp_path / "first_app.py").write_text(HEAD + OLD)
    (tmp_path / "second_app.py").write_text(HEAD + NEW)
    servers = [
        server("-w", "1", app=f"{name}_app:app", PYTHONPATH=str(tmp_path)).start()
        for name in ("first", "second")
    ]

    ids = [enqueue(storage, method) for _ in range(20) for method in ("old", "newone")]

    for job_id in ids:
        job = wait_for_state(storage, job_id, StateName.SUCCEEDED)
        assert (job.crashes, job.failures) == (0, 0)
    assert "Jobs wait for method" not in servers[0].log()
    assert [one.stop() for one in servers] == [0, 0]


@pytest.mark.fault(90)
def test_a_burst_leaves_jobs_that_it_does_not_know_and_says_so(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    (tmp_path / "first_app.py").write_text(HEAD + OLD)
    unknown = [enqueue(storage, "newone") for _ in range(2)]
    known = enqueue(storage, "old")

    one = server("-w", "1", "--burst", app="first_app:app", PYTHONPATH=str(tmp_path)).start(ready=None)

    assert one.wait() == 0
    assert state_of(storage, known) is StateName.SUCCEEDED
    assert {state_of(storage, job_id) for job_id in unknown} == {StateName.ENQUEUED}
    assert "Left: 2 jobs of method newone, which this server does not know" in one.log()


def printed(url: str, *arguments: str) -> str:
    """What the command prints about the storage."""
    ended = CliRunner().invoke(cli, ["--url", patient_url(url), *arguments])
    assert ended.exit_code == 0, ended.output
    return ended.stdout


def test_what_a_job_says_is_seen_while_it_runs_and_kept_at_its_end(
    server: Callable[..., Server], storage: Storage, url: str, tmp_path: Path
) -> None:
    one = server("-w", "2").start(ready=2)
    gate = tmp_path / "gate"
    job_id = enqueue(storage, "tell", gate=str(gate))
    quiet_id = enqueue(storage, "heed")
    wait_until(one.journal, what=one.log)  # which that one alone writes

    found = wait_until(lambda: storage.progress_of([job_id, quiet_id]), what=one.log)
    workers = [json.loads(line) for line in printed(url, "workers", "list", "--json").splitlines()]
    table = printed(url, "workers", "list")
    gate.touch()

    assert found == {job_id: Progress(done=1, total=3, note="waits")}
    told = {worker["job_id"]: worker["progress"] for worker in workers}
    assert told == {job_id: {"done": 1, "total": 3, "note": "waits"}, quiet_id: None}
    assert "1 of 3 (33 %), waits" in table
    wait_for_state(storage, job_id, StateName.SUCCEEDED)
    assert storage.progress_of([job_id]) == {job_id: Progress(done=3, total=3)}
    shown = json.loads(printed(url, "jobs", "show", job_id, "--json"))
    assert shown["progress"] == {"done": 3, "total": 3, "note": ""}
    assert "3 of 3 (100 %)" in printed(url, "jobs", "show", job_id)
    assert one.stop() == 0


APP = "tests.processes.apps_history:app"


def points(storage: Storage) -> list[HistoryPoint]:
    now = datetime.now(UTC)
    return storage.history(MINUTE, since=now - timedelta(hours=1), until=now + timedelta(hours=1))


def wait_for_end(storage: Storage, count: int) -> None:
    final = (StateName.SUCCEEDED, StateName.FAILED, StateName.DELETED)

    def all_ended() -> bool:
        counts = storage.job_counts()
        return sum(counts[state] for state in final) == count

    wait_until(all_ended, what=f"the end of {count} jobs")


def test_each_end_is_counted_with_how_long_it_took(server: MakeServer, storage: Storage) -> None:
    one = server("-w", "2", app=APP).start(ready=2)
    storage.enqueue_many(Job.new(method) for method in ("brief", "brief", "fail", "again") * 10)
    wait_for_end(storage, 40)

    assert one.stop() == 0

    by_method = storage.history_by_method(since=datetime.now(UTC) - timedelta(hours=1), until=storage.now())
    assert by_method["brief"].count(Ending.SUCCEEDED) == by_method["brief"].total.count == 20
    assert by_method["fail"].count(Ending.FAILED) == by_method["again"].count(Ending.SUCCEEDED) == 10
    assert by_method["again"].count(Ending.RETRIED) == 10
    assert sum(point.total.waited.count for point in points(storage)) == 50


def test_without_a_time_to_live_no_history_is_written(server: MakeServer, storage: Storage) -> None:
    one = server("-w", "1", app=APP, QML_MP_HISTORY_TTL="0").start()
    storage.enqueue_many([Job.new("brief") for _ in range(5)])
    wait_for_end(storage, 5)

    assert one.stop() == 0

    assert points(storage) == []
