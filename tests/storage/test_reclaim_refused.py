"""Tests of the storage: a dead server's job that cannot be given back keeps none of its others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import count

import pytest

from qml_mp.core.acts import ActKind, ActRequest, ActState, Asker
from qml_mp.core.job import Claim, Job
from qml_mp.core.state import StateName
from qml_mp.errors import StorageError, StorageUnavailable
from qml_mp.storage.database import RowsRefused
from qml_mp.storage.left_out import LeftOut
from qml_mp.storage.store import Storage
from tests import failpoints
from tests.storage.conftest import Raw
from tests.storage.helpers import DONE, HOUR, KEEP, fetch, present, register
from tests.storage.test_exchange import before_query, interrupt
from tests.storage.test_interrupted import assert_nothing_is_locked
from tests.unit.hand_clock import HandClock

REFUSAL = "the user refuses this"
MINUTE = timedelta(minutes=1)
GiveBack = Callable[[Storage, LeftOut], int]


def of_the_dead(storage: Storage, left_out: LeftOut) -> int:
    return storage.reclaim_server("server#1", silent_for=None, left_out=left_out, retention=KEEP)


def of_the_silent(storage: Storage, left_out: LeftOut) -> int:
    silent_for = MINUTE if storage.list_servers() else None
    return storage.reclaim_server("server#1", silent_for=silent_for, left_out=left_out, retention=KEEP)


def of_the_stranded(storage: Storage, left_out: LeftOut) -> int:
    return storage.requeue_stranded_jobs(storage.now() + HOUR, left_out=left_out, retention=KEEP)


WAYS = pytest.mark.parametrize("give_back", [of_the_dead, of_the_silent, of_the_stranded])


def hold(storage: Storage, raw: Raw, number: int) -> list[Claim]:
    """So many claims of one worker of a server that has been silent since."""
    register(storage, "server#1", "worker-1")
    storage.enqueue_many(Job.new("work", queue="default") for _ in range(number))
    claims = storage.exchange((), fetch=fetch(), limit=number, retention=KEEP).claims
    raw.age("servers", "last_heartbeat", HOUR)
    return list(claims)


def refuse(raw: Raw, claims: Sequence[Claim]) -> None:
    listed = ", ".join(f"'{claim.job.id}'" for claim in claims)
    raw.refuse("UPDATE", "jobs", saying=REFUSAL, when=f"NEW.state = 'enqueued' AND OLD.id IN ({listed})")


def assert_all_are_given_back_uncharged(storage: Storage, raw: Raw, claims: Sequence[Claim]) -> None:
    jobs = [present(storage, claim) for claim in claims]
    assert {job.state_name for job in jobs} == {StateName.ENQUEUED}
    assert {(job.failures, job.crashes, job.claim_seq) for job in jobs} == {(0, 0, 1)}
    assert all(not storage.attempts(job.id) for job in jobs)
    assert storage.claims() == []


@pytest.mark.fault(75)
@WAYS
def test_all_but_the_refused_job_are_given_back_and_that_one_once_it_can_be(
    storage: Storage, raw: Raw, clock: HandClock, left_out: LeftOut, give_back: GiveBack
) -> None:
    claims = hold(storage, raw, 7)
    bad = claims[2]
    refuse(raw, [bad])

    assert give_back(storage, left_out) == 6

    assert [claim.key for claim in storage.claims()] == [bad.key]
    assert left_out.ids == [bad.job.id]
    [refusal] = left_out.take_refusals()
    assert (refusal.job_id, str(refusal.error)) == (bad.job.id, f"{REFUSAL}.")
    raw.allow("jobs")
    assert give_back(storage, left_out) == 0  # in its pause
    clock.seconds += 1
    assert give_back(storage, left_out) == 1
    assert left_out.ids == []
    assert_all_are_given_back_uncharged(storage, raw, claims)


@pytest.mark.fault(75)
def test_a_dead_server_stays_registered_without_workers_until_all_is_given_back(
    storage: Storage, raw: Raw, clock: HandClock, left_out: LeftOut
) -> None:
    refuse(raw, hold(storage, raw, 2)[:1])

    of_the_dead(storage, left_out)

    assert [server.id for server in storage.list_servers()] == ["server#1"]
    assert storage.list_workers() == []
    assert storage.fetch_and_lock_job(fetch(worker="worker-2", server="server#2")) is not None
    raw.allow("jobs")
    clock.seconds += 1
    of_the_dead(storage, left_out)
    assert storage.list_servers() == []


def given_back(storage: Storage, raw: Raw, left_out: LeftOut) -> None:
    raw.allow("jobs")
    of_the_dead(storage, left_out)


def given_back_by_its_age(storage: Storage, raw: Raw, left_out: LeftOut) -> None:
    raw.allow("jobs")
    storage.requeue_stranded_jobs(storage.now() + HOUR, retention=KEEP)
    of_the_dead(storage, left_out)


def declared_dead_by_its_silence(storage: Storage, _: Raw, left_out: LeftOut) -> None:
    of_the_silent(storage, left_out)


def ask_and_have_a_job_refused(storage: Storage, raw: Raw, left_out: LeftOut) -> list[ActRequest]:
    """Of a server that dies then, and stays registered for the job; it has taken what is asked first."""
    refuse(raw, hold(storage, raw, 2)[:1])
    by = Asker(who="anna", where="cli")
    requests = [ActRequest(kind=kind, server_id="server#1", by=by) for kind in (ActKind.RELOAD, ActKind.STOP)]
    storage.ask(requests[0])
    storage.take_acts("server#1")
    storage.ask(requests[1])
    of_the_dead(storage, left_out)
    return requests


def states_of(storage: Storage, requests: Sequence[ActRequest]) -> list[ActState]:
    acts = [storage.get_act(request.id) for request in requests]
    return [act.state for act in acts if act is not None]


OPEN = [ActState.TAKEN, ActState.ASKED]
ENDED = [ActState.UNFINISHED, ActState.GONE]


@pytest.mark.fault(75)
@pytest.mark.parametrize("goes", [given_back, given_back_by_its_age, declared_dead_by_its_silence])
def test_what_was_asked_of_a_dead_server_that_stays_registered_ends_with_its_row(
    storage: Storage,
    raw: Raw,
    clock: HandClock,
    left_out: LeftOut,
    goes: Callable[[Storage, Raw, LeftOut], None],
) -> None:
    requests = ask_and_have_a_job_refused(storage, raw, left_out)
    assert (len(storage.list_servers()), states_of(storage, requests)) == (1, OPEN)

    clock.seconds += 1
    goes(storage, raw, left_out)

    assert (storage.list_servers(), states_of(storage, requests)) == ([], ENDED)
    raw.age("acts", "asked_at", timedelta(days=400))
    assert storage.delete_old_acts(kept_for=timedelta(days=90), limit=9) == 2


@pytest.mark.fault(75)
def test_interrupted_before_any_query_a_dead_server_has_its_row_and_what_was_asked_of_it_or_neither(
    storage: Storage, raw: Raw, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in count(1):
        raw.run("DELETE FROM {jobs}")
        mine, is_through = LeftOut(clock), False
        requests = ask_and_have_a_job_refused(storage, raw, mine)
        raw.allow("jobs")
        clock.seconds += 1
        with monkeypatch.context() as patched:
            before_query(storage, number, interrupt, patched)
            try:
                of_the_dead(storage, mine)
                is_through = True
            except StorageUnavailable:
                assert (len(storage.list_servers()), states_of(storage, requests)) == (1, OPEN)
        of_the_dead(storage, mine)
        assert (storage.list_servers(), states_of(storage, requests)) == ([], ENDED)
        if is_through:
            break

    assert number > 5


@pytest.mark.fault(75)
def test_a_silent_server_of_which_a_job_is_refused_learns_that_it_counts_as_dead(
    storage: Storage, raw: Raw, left_out: LeftOut
) -> None:
    bad, good = hold(storage, raw, 2)
    refuse(raw, [bad])

    of_the_silent(storage, left_out)

    assert storage.heartbeat_server("server#1", worker_rss={}) is None
    late = [storage.finish(claim, DONE, retention=KEEP).accepted for claim in (bad, good)]
    assert late == [True, False]  # what nobody else may have is its own still
    assert of_the_silent(storage, left_out) == 0
    assert left_out.ids == []
    assert present(storage, good).state_name is StateName.ENQUEUED


@pytest.mark.fault(75)
@WAYS
def test_interrupted_before_any_query_it_gives_back_each_job_once_and_charges_none(
    storage: Storage,
    raw: Raw,
    clock: HandClock,
    give_back: GiveBack,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number in count(1):
        raw.run("DELETE FROM {jobs}")
        claims = hold(storage, raw, 4)
        refuse(raw, claims[:1])
        mine, is_through = LeftOut(clock), False
        with monkeypatch.context() as patched:
            before_query(storage, number, interrupt, patched)
            try:
                give_back(storage, mine)
                is_through = True
            except StorageUnavailable:
                assert len(storage.claims()) == 4  # nothing of it was committed
        # The server may notice only now that the connection has ended, and what is locked is passed over.
        assert_nothing_is_locked(raw)
        clock.seconds += 60
        give_back(storage, mine)
        assert [claim.key for claim in storage.claims()] == [claims[0].key]
        raw.allow("jobs")
        clock.seconds += 60
        give_back(storage, mine)
        assert_all_are_given_back_uncharged(storage, raw, claims)
        if is_through:
            break

    assert number > 5


@pytest.mark.fault(36)
@WAYS
def test_a_lost_reply_to_the_commit_gives_nothing_back_twice(
    storage: Storage, raw: Raw, clock: HandClock, left_out: LeftOut, give_back: GiveBack
) -> None:
    claims = hold(storage, raw, 4)
    refuse(raw, claims[:1])
    failpoints.arm(f"storage.committed=raise:{1 if give_back is of_the_dead else 2}")  # the others look first
    try:
        with pytest.raises(StorageUnavailable):
            give_back(storage, left_out)
    finally:
        failpoints.arm("")
    assert len(storage.claims()) == 1
    again = storage.exchange((), fetch=fetch(server="server#2", worker="w"), limit=9, retention=KEEP).claims

    clock.seconds += 1
    others = give_back(storage, left_out) if give_back is not of_the_stranded else 0

    assert others == 0
    assert {claim.job.claim_seq for claim in again} == {2}
    assert {present(storage, claim).state_name for claim in again} == {StateName.PROCESSING}
    assert not any(storage.finish(claim, DONE, retention=KEEP).accepted for claim in claims[1:])
    assert all(storage.finish(claim, DONE, retention=KEEP).accepted for claim in again)


@pytest.mark.fault(75)
def test_where_many_are_refused_the_tries_are_bounded_and_the_next_turns_find_the_others(
    storage: Storage, raw: Raw, left_out: LeftOut
) -> None:
    claims = hold(storage, raw, 60)
    refuse(raw, claims[::2])

    of_the_dead(storage, left_out)
    assert 0 < len(left_out.ids) <= 20
    for _ in range(5):
        of_the_dead(storage, left_out)

    assert {claim.key for claim in storage.claims()} == {claim.key for claim in claims[::2]}
    assert len(storage.list_servers()) == 1


@pytest.mark.fault(75)
@WAYS
def test_on_postgresql_a_job_that_would_be_refused_at_the_commit_keeps_no_others_either(
    storage: Storage, raw: Raw, left_out: LeftOut, give_back: GiveBack
) -> None:
    if raw.is_sqlite:
        pytest.skip("its deferred foreign keys are checked at the commit alone")
    bad, good = hold(storage, raw, 2)
    refuse(raw, [bad])
    raw.allow("jobs")  # what it has called is there still
    function = f"{raw.name('jobs').partition('.')[0]}.no()"
    raw.run(
        "CREATE CONSTRAINT TRIGGER no AFTER UPDATE ON {jobs} DEFERRABLE INITIALLY DEFERRED FOR EACH ROW"
        f" WHEN (OLD.id = '{bad.job.id}') EXECUTE FUNCTION {function}"
    )

    assert give_back(storage, left_out) == 1

    assert left_out.ids == [bad.job.id]
    assert [claim.key for claim in storage.claims()] == [bad.key]
    assert present(storage, good).state_name is StateName.ENQUEUED


def test_on_postgresql_what_is_written_apart_is_checked_and_what_comes_after_it_may_still_defer(
    storage: Storage, raw: Raw
) -> None:
    if raw.is_sqlite:
        pytest.skip("its deferred foreign keys are checked at the commit alone")
    theirs = f"{raw.name('jobs').partition('.')[0]}.theirs"
    raw.run(f"CREATE TABLE {theirs} (id int PRIMARY KEY, of int REFERENCES {theirs} INITIALLY DEFERRED)")

    with storage._db.transaction("writing", pipelined=False) as transaction:
        for first in (1, 3):

            def write(first: int = first) -> None:
                transaction.run(f"INSERT INTO {theirs} VALUES ({first}, {first + 1})", {})
                transaction.run(f"INSERT INTO {theirs} VALUES ({first + 1}, NULL)", {})

            transaction.apart(write)
        with pytest.raises(RowsRefused):
            transaction.apart(lambda: transaction.run(f"INSERT INTO {theirs} VALUES (5, 6)", {}))

    assert raw.run(f"SELECT count(*) FROM {theirs}") == [(4,)]


@pytest.mark.fault(75)
@WAYS
def test_however_rarely_they_are_tried_many_refused_jobs_do_not_keep_those_behind_them(
    storage: Storage, raw: Raw, clock: HandClock, left_out: LeftOut, give_back: GiveBack
) -> None:
    claims = hold(storage, raw, 70)
    refuse(raw, claims[:60])

    for _ in range(9):
        with suppress(StorageUnavailable):  # a silent server's, as long as some were not tried
            give_back(storage, left_out)
        clock.seconds += 360  # longer than any pause
    assert {claim.key for claim in storage.claims()} == {claim.key for claim in claims[:60]}

    raw.allow("jobs")
    refuse(raw, claims[:30])
    for _ in range(9):
        give_back(storage, left_out)
        clock.seconds += 360
    assert {claim.key for claim in storage.claims()} == {claim.key for claim in claims[:30]}


@pytest.mark.fault(75)
def test_a_silent_server_keeps_its_row_until_each_of_its_jobs_was_tried(
    storage: Storage, raw: Raw, left_out: LeftOut
) -> None:
    claims = hold(storage, raw, 60)
    refuse(raw, claims[::2])
    for _ in range(9):
        try:
            of_the_silent(storage, left_out)
        except StorageUnavailable:
            assert (len(storage.claims()), len(storage.list_servers())) == (60, 1)
        else:
            break

    assert storage.list_servers() == []
    assert {claim.key for claim in storage.claims()} == {claim.key for claim in claims[::2]}


@pytest.mark.fault(75)
def test_without_a_place_for_what_is_refused_nothing_is_given_back(storage: Storage, raw: Raw) -> None:
    refuse(raw, hold(storage, raw, 3)[:1])

    with pytest.raises(StorageError, match=REFUSAL):
        storage.reclaim_server("server#1", silent_for=None, retention=KEEP)

    assert (len(storage.claims()), len(storage.list_servers()), len(storage.list_workers())) == (3, 1, 1)
