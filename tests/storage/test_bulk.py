"""Tests of the storage: many jobs counted, retried and deleted at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest

from qml_mp import QmlApp
from qml_mp.core.job import Claim, Job
from qml_mp.core.outcome import ErrorInfo, Failure, Outcome
from qml_mp.core.state import StateName
from qml_mp.errors import ConfigurationError, InvalidTransition
from qml_mp.storage.store import Storage
from qml_mp.storage.values import JobFilter
from tests.storage.conftest import Raw
from tests.storage.helpers import DONE, HOUR, KEEP, NO, claim_new, fetch, in_an_hour, job_in, present

FAILED = JobFilter(states=[StateName.FAILED])
CAN_BE_DELETED = set(StateName) - {StateName.PROCESSING, StateName.DELETED}


def failed(storage: Storage, error: ErrorInfo = NO, **options: Any) -> str:
    claim = claim_new(storage, **options)
    storage.finish(claim, Failure(error=error), retention=KEEP)
    return claim.job.id


def fail_again(storage: Storage, job_id: str) -> None:
    claim = storage.fetch_and_lock_job(fetch(present(storage, job_id).queue))
    assert claim is not None
    assert claim.job.id == job_id
    storage.finish(claim, Failure(error=NO), retention=KEEP)


def test_retrying_many_is_as_retrying_each(storage: Storage) -> None:
    one, *others = [failed(storage) for _ in range(4)]
    storage.retry(one)

    retried = storage.retry_many(others, until=storage.now())

    assert sorted(retried) == sorted(others)
    alone, *together = [present(storage, job_id) for job_id in (one, *others)]
    for job in together:
        assert (job.state_name, job.failures, job.crashes, job.finished_at, job.expires_at) == (
            alone.state_name, alone.failures, alone.crashes, alone.finished_at, alone.expires_at,
        )  # fmt: skip
        assert job.last_error == NO
        assert storage.fetch_and_lock_job(fetch(job.queue)) is not None


@pytest.mark.parametrize("state", StateName)
def test_many_are_changed_only_out_of_states_that_may_change_so(storage: Storage, state: StateName) -> None:
    claim = job_in(storage, state)

    retried = storage.retry_many([claim.job.id], until=storage.now())
    assert retried == ([claim.job.id] if state is StateName.FAILED else [])

    claim = job_in(storage, state)
    deleted = storage.delete_many(
        [claim.job.id], states=set(StateName), until=storage.now(), reason="no", retention=KEEP
    )
    assert deleted == ([claim.job.id] if state in CAN_BE_DELETED else [])
    job = present(storage, claim)
    assert job.state_name is (StateName.DELETED if deleted else state)
    if deleted:
        assert job.expires_at is not None
        assert job.finished_at is not None
        assert job.expires_at - job.finished_at == KEEP.succeeded_ttl


def test_a_job_that_has_failed_again_is_not_retried_twice(storage: Storage) -> None:
    job_id = failed(storage)
    until = storage.now()

    first = storage.retry_many([job_id], until=until)
    fail_again(storage, job_id)
    second = storage.retry_many([job_id], until=until)

    assert (first, second) == ([job_id], [])
    assert storage.job_ids(FAILED, until=until).ids == ()
    assert storage.retry_many([job_id], until=storage.now()) == [job_id]


def test_a_job_that_has_left_the_states_that_were_asked_for_is_left_alone(storage: Storage) -> None:
    job_id, until = failed(storage), storage.now()
    storage.retry(job_id)

    deleted = storage.delete_many(
        [job_id], states=[StateName.FAILED], until=until, reason="no", retention=KEEP
    )

    assert deleted == []
    assert present(storage, job_id).state_name is StateName.ENQUEUED


def test_of_jobs_with_one_unique_key_one_is_retried_and_none_when_another_has_it(storage: Storage) -> None:
    first, second = failed(storage, unique_key="a"), failed(storage, unique_key="a")
    taken, free = failed(storage, unique_key="b"), failed(storage)
    storage.enqueue(Job.new("work", unique_key="b"))

    retried = storage.retry_many([first, second, taken, free], until=storage.now())

    assert sorted(retried) == sorted([first, free])
    with pytest.raises(InvalidTransition):
        storage.retry(second)
    assert present(storage, taken).state_name is StateName.FAILED


def test_a_filter_says_which_jobs_are_meant(storage: Storage) -> None:
    old = failed(storage)
    ids = {
        "error": failed(storage, ErrorInfo(type="KeyError", message="no such Picture")),
        "other": failed(storage),
    }
    since = present(storage, ids["error"]).finished_at
    queue = present(storage, ids["other"]).queue
    until = storage.now()

    def found(where: JobFilter) -> set[str]:
        meant = set(storage.job_ids(where, until=until).ids)
        assert sum(storage.count_jobs(where, until=until).values()) == len(meant)
        assert {job.id for job in storage.list_jobs(where).jobs} == meant
        return meant

    assert found(FAILED) == {old, *ids.values()}
    assert found(JobFilter(error="keyerror: NO such")) == {ids["error"]}
    assert found(JobFilter(error="100%")) == set()
    assert found(JobFilter(queue=queue)) == {ids["other"]}
    assert found(JobFilter(method="none")) == set()
    assert found(JobFilter(since=since)) == set(ids.values())


def test_what_comes_later_is_not_meant(storage: Storage, raw: Raw) -> None:
    earlier = storage.now()
    claims = [job_in(storage, state) for state in StateName]

    now, before = storage.now(), earlier - timedelta(seconds=1)

    assert sum(storage.count_jobs(JobFilter(), until=now).values()) == len(StateName)
    assert storage.count_jobs(JobFilter(), until=before) == {}
    assert storage.job_ids(JobFilter(), until=before).ids == ()
    raw.age("jobs", "created_at", HOUR)
    still = storage.job_ids(JobFilter(), until=before).ids
    # Three have ended since, and two have come since: those that nothing has happened to.
    assert len(still) == len(claims) - 5


def test_a_job_that_was_made_before_and_comes_later_is_not_meant(storage: Storage) -> None:
    made = [Job.new("work", now=storage.now() - HOUR, at=at) for at in (None, in_an_hour())]
    until = storage.now()
    storage.enqueue_many(made)

    assert storage.count_jobs(JobFilter(), until=until) == {}
    assert storage.job_ids(JobFilter(), until=until).ids == ()
    found = storage.job_ids(JobFilter(), until=storage.now()).ids
    assert found == tuple(sorted(job.id for job in made))


@pytest.mark.parametrize(
    "where",
    [JobFilter(), JobFilter(queue="a", method="m1"), JobFilter(error="value")],
    ids=["all", "queue and method", "error"],
)  # fmt: skip
def test_all_that_are_meant_are_found_once(storage: Storage, where: JobFilter) -> None:
    for state in StateName:
        for _ in range(2):
            job_in(storage, state)
    for number in range(3):
        storage.enqueue_many(
            Job.new(f"m{number % 2}", queue=queue, priority=number) for queue in ("a", "b", "a")
        )
    for _ in range(3):
        failed(storage, ErrorInfo(type="ValueError", message="no"))
    until = storage.now()
    storage.enqueue(Job.new("m1", queue="a"))
    meant = [job for job in storage.list_jobs(where, limit=100).jobs if job.created_at <= until]

    counts = storage.count_jobs(where, until=until)
    found = [storage.job_ids(where, until=until)]
    while found[-1].rest:
        found.append(storage.job_ids(where, until=until, rest=found[-1].rest))

    assert sorted(job_id for each in found for job_id in each.ids) == sorted(job.id for job in meant)
    assert counts == Counter(job.state_name for job in meant)


def test_jobs_of_a_method_that_nobody_knows_are_failed_after_a_time(storage: Storage, raw: Raw) -> None:
    ids = {
        (queue, method): storage.enqueue(Job.new(method, queue=queue))
        for queue in ("a", "b")
        for method in ("unknown", "known")
    }
    later = storage.enqueue(Job.new("unknown", queue="a", at=in_an_hour()))
    before, now = storage.now() - HOUR, storage.now()

    young = storage.fail_unknown("unknown", queues=["a"], waiting_since=before, retention=KEEP)
    hit = storage.fail_unknown("unknown", queues=["a"], waiting_since=now, retention=KEEP)
    rest = storage.fail_unknown("unknown", queues=[], waiting_since=now, retention=KEEP)

    assert (young, hit, rest) == ([], [ids["a", "unknown"]], [ids["b", "unknown"]])
    job = present(storage, hit[0])
    assert job.state_name is StateName.FAILED
    assert job.error is not None
    assert job.error.type == "UnknownMethod"
    assert job.expires_at is not None
    assert present(storage, later).state_name is StateName.SCHEDULED
    assert storage.job_counts()[StateName.ENQUEUED] == 2


def test_what_nobody_knows_is_counted_and_chosen_by_its_method_as_any_failure(storage: Storage) -> None:
    ids = [storage.enqueue(Job.new(method)) for method in ("gone", "misspelt")]
    for method in ("gone", "misspelt"):
        storage.fail_unknown(method, queues=[], waiting_since=storage.now(), retention=KEEP)

    kinds = storage.failure_kinds()

    assert sorted((kind.count, kind.newest.id) for kind in kinds) == sorted((1, job_id) for job_id in ids)
    for kind in kinds:
        assert kind.key is not None
        assert [job.id for job in storage.list_jobs(JobFilter(kind=kind.key)).jobs] == [kind.newest.id]


# Many jobs changed while workers end and begin some of them.

ENDS: list[tuple[Outcome, StateName]] = [
    (DONE, StateName.SUCCEEDED), (Failure(error=NO), StateName.FAILED),
]  # fmt: skip


@pytest.fixture
def app(storage: Storage) -> Iterator[QmlApp]:
    """A program beside the workers, whose storage is `storage`."""
    with closing(QmlApp(storage.url)) as app:
        yield app


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
