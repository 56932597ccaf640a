"""Tests of the storage: many jobs changed while workers end and begin some of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from qml_mp import QmlApp
from qml_mp.cli import bulk
from qml_mp.core.job import Claim, Job
from qml_mp.core.outcome import Failure, Outcome
from qml_mp.core.state import StateName
from qml_mp.errors import ConfigurationError, QmlError
from qml_mp.job_selection import BulkChange
from qml_mp.storage.store import Storage
from qml_mp.storage.values import JobFilter
from tests.storage.helpers import DONE, KEEP, NO, claim_new, fetch, present

RUNNING = JobFilter(states=[StateName.PROCESSING])
ENDS: list[tuple[Outcome, StateName]] = [
    (DONE, StateName.SUCCEEDED), (Failure(error=NO), StateName.FAILED),
]  # fmt: skip


@pytest.fixture
def app(storage: Storage) -> Iterator[QmlApp]:
    """A program beside the workers, whose storage is `storage`."""
    with closing(QmlApp(storage.url)) as app:
        yield app


def change(storage: Storage, change: BulkChange, where: JobFilter) -> None:
    """What the command does."""
    asked = bulk.Asked(change=change, reason="r", force=False, yes=True, dry_run=False, as_json=False)
    bulk.change_many(storage, where, asked, retention=KEEP)


def after(
    monkeypatch: pytest.MonkeyPatch, storage: Storage, operation: str, then: Callable[[], object]
) -> None:
    """Something that others do right after the storage has done this for the first time."""
    really, seen = getattr(storage, operation), list[object]()

    def done(*arguments: Any, **options: Any) -> Any:
        found = really(*arguments, **options)
        seen.append(found)
        if len(seen) == 1:
            then()
        return found

    monkeypatch.setattr(storage, operation, done)


def end_all(storage: Storage, claims: list[Claim], outcome: Outcome) -> None:
    for claim in claims:
        assert storage.finish(claim, outcome, retention=KEEP).accepted


def begin(storage: Storage, *job_ids: str) -> list[Claim]:
    claims = [storage.fetch_and_lock_job(fetch(present(storage, job_id).queue)) for job_id in job_ids]
    assert [claim and claim.job.id for claim in claims] == list(job_ids)
    return [claim for claim in claims if claim is not None]


def asked_to_end(storage: Storage) -> set[str]:
    return {request.key.job_id for request in storage.cancel_requests("server#1")}


@pytest.mark.parametrize(("outcome", "state"), ENDS)
@pytest.mark.parametrize("look", ["job_ids", "claims"])
@pytest.mark.parametrize("what", BulkChange)
def test_a_running_job_that_ends_before_its_turn_stays_as_it_ended(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, what: BulkChange, look: str, outcome: Outcome,
    state: StateName,
) -> None:  # fmt: skip
    claims = [claim_new(storage) for _ in range(3)]
    after(monkeypatch, storage, look, lambda: end_all(storage, claims, outcome))

    with pytest.raises(QmlError, match="Of the running jobs 3 are as before: they have ended meanwhile"):
        change(storage, what, RUNNING)

    jobs = [present(storage, claim) for claim in claims]
    assert [(job.state_name, job.claim_seq) for job in jobs] == [(state, 1)] * 3


@pytest.mark.parametrize(
    ("what", "state"),
    [
        (BulkChange.RETRY, StateName.ENQUEUED),
        (BulkChange.DELETE, StateName.DELETED),
        (BulkChange.CANCEL, StateName.DELETED),
    ],
)
def test_running_jobs_of_a_server_that_is_gone_are_changed(
    storage: Storage, what: BulkChange, state: StateName
) -> None:
    claims = [claim_new(storage) for _ in range(2)]

    change(storage, what, RUNNING)

    assert [present(storage, claim).state_name for claim in claims] == [state] * 2


@pytest.mark.parametrize(("outcome", "state"), ENDS)
def test_a_program_cancels_no_job_that_ends_before_its_turn(
    app: QmlApp, monkeypatch: pytest.MonkeyPatch, outcome: Outcome, state: StateName
) -> None:
    storage = app.storage
    ended, running = [claim_new(storage) for _ in range(2)], claim_new(storage)
    after(monkeypatch, storage, "job_ids", lambda: end_all(storage, ended, outcome))

    assert app.jobs(state="processing").cancel() == 1

    assert [present(storage, claim).state_name for claim in ended] == [state] * 2
    assert asked_to_end(storage) == {running.job.id}
    for refused in (app.jobs(state="processing").delete, app.jobs(state="processing").retry):
        with pytest.raises(ConfigurationError, match="no processing jobs"):
            refused()


def test_a_job_that_is_retried_and_fails_again_is_not_retried_twice_though_it_runs_at_the_look(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = [claim_new(storage) for _ in range(2)]
    end_all(storage, claims, Failure(error=NO))
    again: list[Claim] = []

    def run_again() -> None:
        again.extend(begin(storage, *(claim.job.id for claim in claims)))
        after(monkeypatch, storage, "job_ids", lambda: end_all(storage, again, Failure(error=NO)))

    after(monkeypatch, storage, "retry_many", run_again)

    change(storage, BulkChange.RETRY, JobFilter(states=[StateName.FAILED, StateName.PROCESSING]))

    jobs = [present(storage, claim) for claim in claims]
    assert [(job.state_name, job.claim_seq) for job in jobs] == [(StateName.FAILED, 2)] * 2


@pytest.mark.parametrize("way", ["in a program", "by command"])
def test_jobs_that_waited_and_begin_meanwhile_are_not_taken_for_running_ones(
    app: QmlApp, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    storage = app.storage
    running = claim_new(storage)
    waiting = [storage.enqueue(Job.new("work", queue=f"q{number}")) for number in range(3)]
    chosen = app.jobs(state="processing")
    after(monkeypatch, storage, "request_cancel", lambda: begin(storage, *waiting[1:]))

    if way == "in a program":
        begin(storage, waiting[0])
        assert chosen.count() == 1
        assert chosen.cancel() == 1
    else:
        after(monkeypatch, storage, "count_jobs", lambda: begin(storage, waiting[0]))
        change(storage, BulkChange.CANCEL, RUNNING)

    states = [present(storage, job_id).state_name for job_id in waiting]
    assert states == [StateName.PROCESSING] * 3
    assert asked_to_end(storage).isdisjoint(waiting)
    if way == "in a program":
        assert asked_to_end(storage) == {running.job.id}
    else:  # its server is gone
        assert present(storage, running).state_name is StateName.DELETED


def test_of_jobs_that_begin_meanwhile_those_are_meant_that_were_seen_in_a_state_that_is_asked_for(
    app: QmlApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = app.storage
    meant, failed = storage.enqueue(Job.new("work", queue="q")), claim_new(storage)
    end_all(storage, [failed], Failure(error=NO))

    def begin_both() -> None:
        storage.retry(failed.job.id)
        begin(storage, meant, failed.job.id)

    after(monkeypatch, storage, "job_ids", begin_both)

    assert app.jobs(state=["enqueued", "processing"]).cancel() == 1

    assert asked_to_end(storage) == {meant}


def test_where_all_that_have_not_ended_are_meant_it_does_not_matter_when_they_begin(app: QmlApp) -> None:
    storage = app.storage
    waiting = storage.enqueue(Job.new("work", queue="q"))
    chosen = app.jobs()

    begin(storage, waiting)

    assert chosen.cancel() == 1
    assert asked_to_end(storage) == {waiting}
