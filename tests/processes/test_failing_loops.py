"""Tests: a loop of the supervisor that storage refuses, beside others that it does not."""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

from qml_mp.core.job import Job
from qml_mp.core.recurring import RecurringJob
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from qml_mp.storage.values import JobFilter
from tests.processes.harness import Server, enqueue, wait_for_state, wait_until

LIKELIER = "postgres"
APP = "tests.processes.apps_storage_faults:app"
REFUSAL = "the user refuses this"
MakeServer = Callable[..., Server]


@contextmanager
def refusing(url: str, event: str, when: str) -> Iterator[None]:
    """A trigger of the user's that refuses a change of jobs: `event` is INSERT, UPDATE or DELETE."""
    if url.startswith("sqlite"):
        path = url.removeprefix("sqlite:///")
        with closing(sqlite3.connect(path, timeout=20, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = OFF")  # the file is locked during its sync
            connection.execute(
                f"CREATE TRIGGER refuse BEFORE {event} ON qml_jobs WHEN {when} "
                f"BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END"
            )
            yield
            connection.execute("DROP TRIGGER refuse")
        return
    (schema,) = parse_qs(urlsplit(url).query)["schema"]
    with psycopg.connect(url.partition("?")[0], autocommit=True) as connection:
        connection.execute(f"""
            CREATE FUNCTION {schema}.refuse() RETURNS trigger LANGUAGE plpgsql
            AS $$ BEGIN RAISE EXCEPTION '{REFUSAL}'; END $$
        """)
        connection.execute(f"""
            CREATE TRIGGER refuse BEFORE {event} ON {schema}.jobs FOR EACH ROW WHEN ({when})
            EXECUTE FUNCTION {schema}.refuse()
        """)
        yield
        connection.execute(f"DROP FUNCTION {schema}.refuse CASCADE")


def count_of(storage: Storage, method: str) -> int:
    return len(storage.list_jobs(JobFilter(method=method), limit=100).jobs)


def refusals(one: Server, loop: str) -> int:
    """How often it was told that the loop failed for the refusal. Under load it may also fail for a lock."""
    return sum(f"The {loop} loop failed" in line and REFUSAL in line for line in one.log().splitlines())


def in_a_job(server: MakeServer, storage: Storage, folder: Path) -> tuple[Server, str]:
    """A server with a folder of its own, and the job that it is in until there is a `gate` in the folder."""
    folder.mkdir()
    one = server("-w", "1", app=APP)
    one.folder = folder
    one.start()
    job_id = enqueue(storage, "gated", gate=str(folder / "gate"))
    wait_until(one.journal, what=one.log)
    return one, job_id


@pytest.mark.fault(75)
def test_a_cleanup_that_is_refused_keeps_no_dead_servers_job_from_running_again(
    server: MakeServer, storage: Storage, url: str, tmp_path: Path
) -> None:
    # Some 7 s: a cleanup is tried again ever more rarely.
    one, job_id = in_a_job(server, storage, tmp_path / "one")

    with refusing(url, "DELETE", "OLD.method = 'plain'"):
        two = server("-w", "1", app=APP, QML_MP_CLEANUP_INTERVAL="100ms", QML_MP_SUCCEEDED_TTL="0").start()
        wait_for_state(storage, enqueue(storage, "plain"), StateName.SUCCEEDED)
        wait_until(lambda: REFUSAL in two.log(), what=two.log)
        one.signal(signal.SIGKILL)
        wait_until(lambda: job_id in [line.job_id for line in two.journal()], what=two.log)

    (tmp_path / "one" / "gate").touch()
    wait_until(lambda: storage.get(job_id) is None, what="the job's success, and its deletion at once")

    wait_until(lambda: "The cleanup loop works again" in two.log(), what=two.log)
    assert refusals(two, "cleanup") == 1, two.log()
    assert two.stop() == 0


@pytest.mark.nightly
@pytest.mark.fault(75)
def test_a_promotion_that_is_refused_keeps_no_recurring_job_from_its_time(
    server: MakeServer, storage: Storage, url: str
) -> None:
    one = server("-w", "1", app=APP).start()
    with refusing(url, "UPDATE", "OLD.state = 'scheduled' AND NEW.state = 'enqueued'"):
        waiting_id = storage.enqueue(Job.new("plain", at=datetime.now(UTC) + timedelta(seconds=3)))
        wait_until(lambda: REFUSAL in one.log(), what=one.log)
        storage.upsert_recurring_job(RecurringJob.new("often", "* * * * * *", "flaky"))
        wait_until(lambda: count_of(storage, "flaky") >= 3, what=one.log)
        assert storage.remove_recurring_job("often")

    wait_for_state(storage, waiting_id, StateName.SUCCEEDED)
    wait_until(lambda: "The scheduler loop works again" in one.log(), what=one.log)
    assert refusals(one, "scheduler") == 1, one.log()
    assert one.stop() == 0


@pytest.mark.nightly
@pytest.mark.fault(75)
def test_a_template_whose_job_is_refused_keeps_no_other_from_its_time_and_is_told_once(
    server: MakeServer, storage: Storage, url: str
) -> None:
    one = server("-w", "1", app=APP).start()
    with refusing(url, "INSERT", "NEW.method = 'plain'"):
        storage.upsert_recurring_job(RecurringJob.new("a-refused-one", "* * * * * *", "plain"))
        wait_until(lambda: REFUSAL in one.log(), what=one.log)
        storage.upsert_recurring_job(RecurringJob.new("often", "* * * * * *", "flaky"))
        wait_until(lambda: count_of(storage, "flaky") >= 3, what=one.log)
        assert storage.remove_recurring_job("often")

    wait_until(lambda: count_of(storage, "plain") >= 1, what=one.log)
    told = "Recurring template a-refused-one is due and not fired, because storage refuses its job"
    assert one.log().count(told) == 1, one.log()
    assert refusals(one, "recurring") == 0, one.log()
    assert one.stop() == 0
