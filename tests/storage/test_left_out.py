"""Tests of the storage and the loops on it: a job whose change the database refuses keeps no others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import Any

import pytest

from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.errors import StorageError, StorageUnavailable
from qml_mp.storage.left_out import LeftOut
from qml_mp.storage.postgres import connection
from qml_mp.storage.postgres.link import Link, open_link
from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.cleanup import CleanupLoop
from qml_mp.supervisor.loops.loop import Loop
from qml_mp.supervisor.loops.scheduler import SchedulerLoop
from qml_mp.supervisor.run import Run
from tests import failpoints
from tests.storage.conftest import Raw
from tests.storage.helpers import HOUR, in_an_hour, job_in, server_run
from tests.storage.test_exchange import before_query, interrupt
from tests.storage.test_interrupted import assert_nothing_is_locked
from tests.unit.hand_clock import HandClock

REFUSAL = "the user refuses this"
ALL = 9
MakeLoop = Callable[[Run], Loop]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One that a loop makes, and what it is told to people as."""

    query: str
    loop: str
    make: Callable[[Storage, Raw, int], list[str]]
    """So many jobs to change; their ids."""
    run: Callable[[Storage, LeftOut | None], int]
    make_loop: MakeLoop


def make_due(storage: Storage, raw: Raw, number: int) -> list[str]:
    job_ids = storage.enqueue_many([Job.new("work", at=in_an_hour()) for _ in range(number)])
    raw.age("jobs", "run_at", 2 * HOUR)
    return job_ids


def make_expired(storage: Storage, raw: Raw, number: int) -> list[str]:
    job_ids = [job_in(storage, StateName.FAILED).job.id for _ in range(number)]
    raw.age("jobs", "expires_at", timedelta(days=1))
    return job_ids


PROMOTION = Change(
    query="UPDATE",
    loop="scheduler",
    make=make_due,
    run=lambda storage, left_out: storage.promote_due(limit=200, left_out=left_out).count,
    make_loop=lambda run: SchedulerLoop(run, interval=HOUR, is_listening=lambda: True),
)
CLEANUP = Change(
    query="DELETE",
    loop="cleanup",
    make=make_expired,
    run=lambda storage, left_out: storage.delete_expired_jobs(limit=200, left_out=left_out),
    make_loop=lambda run: CleanupLoop(run, interval=HOUR),
)
CHANGES = pytest.mark.parametrize("change", [PROMOTION, CLEANUP], ids=lambda each: each.loop)


@pytest.fixture
def run(storage: Storage, clock: HandClock) -> Iterator[Run]:
    with server_run(storage, clock=clock) as run:
        yield run


def refuse(raw: Raw, change: Change, job_ids: Sequence[str]) -> None:
    listed = ", ".join(f"'{job_id}'" for job_id in job_ids)
    raw.refuse(change.query, "jobs", saying=REFUSAL, when=f"OLD.id IN ({listed})")


def refer_to(raw: Raw, job_ids: Sequence[str], *, checked: str = "") -> None:
    """By a foreign key of the user's."""
    theirs = f"{raw.name('jobs').rpartition('.')[0]}.theirs".lstrip(".")
    key = "REFERENCES {jobs} (id)"
    raw.run(f"CREATE TABLE {theirs} (job {'text' if raw.is_sqlite else 'varchar'} {key} {checked})")
    for job_id in job_ids:
        raw.run(f"INSERT INTO {theirs} VALUES (?)", job_id)


def one_of_four_refused(storage: Storage, raw: Raw, change: Change, clock: HandClock) -> tuple[str, LeftOut]:
    """The only jobs that there are; the id of the one, and what is left out so far."""
    raw.run("DELETE FROM {jobs}")
    bad_id, *_ = change.make(storage, raw, 4)
    refuse(raw, change, [bad_id])
    return bad_id, LeftOut(clock)


def unchanged(raw: Raw) -> set[str]:
    """The ids of the jobs that wait for their time, or are there although theirs is over."""
    rows = raw.run("SELECT id FROM {jobs} WHERE state IN ('scheduled', 'failed')")
    return {str(job_id) for (job_id,) in rows}


@pytest.mark.fault(75)
@CHANGES
def test_all_but_the_jobs_that_are_refused_are_changed_at_once(
    storage: Storage, raw: Raw, left_out: LeftOut, change: Change
) -> None:
    job_ids = change.make(storage, raw, ALL)
    bad_ids = {job_ids[0], job_ids[5]}
    refuse(raw, change, sorted(bad_ids))

    assert change.run(storage, left_out) == ALL - len(bad_ids)

    assert unchanged(raw) == set(left_out.ids) == bad_ids
    refusals = left_out.take_refusals()
    assert {each.job_id for each in refusals} == bad_ids
    assert all(REFUSAL in str(each.error) and each.is_first for each in refusals)


@pytest.mark.fault(75)
@CHANGES
def test_a_job_that_is_refused_is_tried_again_after_pauses_that_double(
    storage: Storage, raw: Raw, clock: HandClock, left_out: LeftOut, change: Change
) -> None:
    [bad_id] = change.make(storage, raw, 1)
    refuse(raw, change, [bad_id])
    pauses_s = []
    for _ in range(9):
        assert change.run(storage, left_out) == 0
        pauses_s += [each.retry_in.total_seconds() for each in left_out.take_refusals()]
        assert change.run(storage, left_out) == 0  # in its pause nothing is asked
        assert not left_out.take_refusals()
        assert left_out.next_in == timedelta(seconds=pauses_s[-1])
        clock.seconds += pauses_s[-1]

    assert pauses_s == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    raw.allow("jobs")
    assert change.run(storage, left_out) == 1
    assert (left_out.ids, left_out.next_in, unchanged(raw)) == ([], None, set())


@pytest.mark.fault(75)
@CHANGES
def test_a_job_that_somebody_else_has_changed_is_left_out_no_longer(
    storage: Storage, raw: Raw, clock: HandClock, left_out: LeftOut, change: Change
) -> None:
    [bad_id] = change.make(storage, raw, 1)
    refuse(raw, change, [bad_id])
    change.run(storage, left_out)
    raw.allow("jobs")
    raw.run("DELETE FROM {jobs}")

    clock.seconds += 1
    assert change.run(storage, left_out) == 0

    assert left_out.ids == []


@pytest.mark.fault(75)
@pytest.mark.parametrize("checked", ["", "DEFERRABLE INITIALLY DEFERRED"])
def test_expired_jobs_to_which_a_row_of_the_users_refers_keep_no_others(
    storage: Storage, raw: Raw, left_out: LeftOut, checked: str
) -> None:
    job_ids = make_expired(storage, raw, ALL)
    refer_to(raw, job_ids[3:4], checked=checked)

    assert storage.delete_expired_jobs(limit=200, left_out=left_out) == ALL - 1

    assert unchanged(raw) == {job_ids[3]}


@pytest.mark.fault(75)
@CHANGES
def test_where_many_are_refused_a_look_makes_a_bounded_number_of_tries_and_the_next_goes_on(
    storage: Storage, raw: Raw, left_out: LeftOut, change: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_ids = change.make(storage, raw, 60)
    bad_ids = set(job_ids[::2])
    refuse(raw, change, sorted(bad_ids))
    tries = []
    original = LeftOut._refused

    def noted(self: LeftOut, job_id: str, error: StorageError) -> None:
        tries.append(job_id)
        original(self, job_id, error)

    monkeypatch.setattr(LeftOut, "_refused", noted)
    change.run(storage, left_out)
    assert 0 < len(tries) <= 20

    for _ in range(5):
        change.run(storage, left_out)

    assert unchanged(raw) == bad_ids
    assert sorted(tries) == sorted(bad_ids)


@pytest.mark.fault(75)
@pytest.mark.parametrize("url", ["postgres"], indirect=True)
@CHANGES
def test_however_many_are_refused_postgresql_has_one_connection_made_anew_and_none_when_they_are_tried_again(
    storage: Storage,
    raw: Raw,
    clock: HandClock,
    left_out: LeftOut,
    change: Change,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refuse(raw, change, change.make(storage, raw, ALL))
    made = []

    def noted(*given: Any) -> Link:
        made.append(given)
        return open_link(*given)

    monkeypatch.setattr(connection, "open_link", noted)
    change.run(storage, left_out)
    assert (len(left_out.take_refusals()), len(made)) == (ALL, 1)  # for that of all of them together

    clock.seconds += 1
    change.run(storage, left_out)

    assert (len(left_out.take_refusals()), len(made)) == (ALL, 1)


@pytest.mark.fault(75)
@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_in_sqlite_what_is_refused_commits_nothing_which_would_wake_everybody(
    storage: Storage, raw: Raw, clock: HandClock, left_out: LeftOut
) -> None:
    refer_to(raw, make_expired(storage, raw, ALL))
    [before] = raw.run("PRAGMA data_version")

    for _ in range(2):
        assert storage.delete_expired_jobs(limit=200, left_out=left_out) == 0
        clock.seconds += 1

    assert len(left_out.take_refusals()) == 2 * ALL
    assert raw.run("PRAGMA data_version") == [before]


@pytest.mark.fault(75)
@CHANGES
def test_where_no_more_can_be_left_out_the_refusal_is_raised(
    storage: Storage, raw: Raw, clock: HandClock, change: Change
) -> None:
    job_ids = change.make(storage, raw, 6)
    refuse(raw, change, job_ids)
    few = LeftOut(clock, most=2)

    with pytest.raises(StorageError, match=REFUSAL):
        change.run(storage, few)

    assert len(few.ids) == 2
    with pytest.raises(StorageError, match=REFUSAL):
        change.run(storage, few)
    raw.allow("jobs")
    clock.seconds += 1
    assert change.run(storage, few) == 6


@pytest.mark.fault(75)
@CHANGES
def test_interrupted_before_any_query_nothing_is_lost_and_the_next_look_changes_the_rest(
    storage: Storage, raw: Raw, clock: HandClock, change: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in count(1):
        (bad_id, mine), is_through = one_of_four_refused(storage, raw, change, clock), False
        with monkeypatch.context() as patched:
            before_query(storage, number, interrupt, patched)
            try:
                change.run(storage, mine)
                is_through = True
            except StorageUnavailable:
                pass
        # The server may notice only now that the connection has ended, and what is locked is passed over.
        assert_nothing_is_locked(raw)
        change.run(storage, mine)
        assert unchanged(raw) == set(mine.ids) == {bad_id}
        raw.allow("jobs")
        clock.seconds += 60
        change.run(storage, mine)
        assert unchanged(raw) == set()
        if is_through:
            break

    assert number > 3


@pytest.mark.fault(36)
@CHANGES
def test_after_any_lost_reply_to_a_commit_the_next_look_changes_the_rest_and_leaves_the_refused_job_out(
    storage: Storage, raw: Raw, clock: HandClock, change: Change
) -> None:
    for number in count(1):
        (bad_id, mine), is_through = one_of_four_refused(storage, raw, change, clock), False
        failpoints.arm(f"storage.committed=raise:{number}")
        try:
            change.run(storage, mine)
            is_through = True
        except StorageUnavailable:
            assert set(mine.ids) <= {bad_id}
        finally:
            failpoints.arm("")
        change.run(storage, mine)
        assert unchanged(raw) == set(mine.ids) == {bad_id}
        raw.allow("jobs")
        if is_through:
            break

    assert number > 3


@pytest.mark.fault(75)
@CHANGES
def test_a_refused_job_is_told_once_with_the_words_of_the_database_until_none_is_left(
    storage: Storage, raw: Raw, run: Run, clock: HandClock, change: Change, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    bad_id, *_ = change.make(storage, raw, 3)
    refuse(raw, change, [bad_id])
    loop = change.make_loop(run)
    for _ in range(3):
        loop.run(storage)
        clock.seconds += 60
    [told] = [line.getMessage() for line in caplog.records if line.levelname == "WARNING"]
    raw.allow("jobs")
    loop.run(storage)

    assert told.startswith(f"The {change.loop} loop failed at job {bad_id} and is tried again in 1.0 s")
    assert REFUSAL in told
    assert f"The {change.loop} loop works again" in caplog.text
    assert loop.failing_since is None
    assert unchanged(raw) == set()


@pytest.mark.fault(75)
def test_a_refused_promotion_is_looked_at_when_its_pause_is_over(
    storage: Storage, raw: Raw, run: Run, clock: HandClock
) -> None:
    refuse(raw, PROMOTION, make_due(storage, raw, 1))
    loop = PROMOTION.make_loop(run)

    loop.run(storage)

    assert loop.due_at() == clock.seconds + 1
