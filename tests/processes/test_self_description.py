"""Tests: what a running server says of itself in the registry and in its log."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from qml_mp.core.recurring import RecurringJob
from qml_mp.core.server_info import ServerInfo
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from qml_mp.storage.values import JobFilter
from tests.processes.harness import Server, enqueue, wait_until
from tests.processes.jobs_app import app

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
