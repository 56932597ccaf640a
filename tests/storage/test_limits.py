"""Tests of the storage: queues that are paused, limits on what runs, and rates."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from itertools import count
from pathlib import Path

import pytest

from qml_mp import QmlApp
from qml_mp.core.job import Claim, Job
from qml_mp.core.limits import Limit, LimitKind, Rate
from qml_mp.core.outcome import Crash, Outcome, Release
from qml_mp.core.state import StateName
from qml_mp.errors import ConfigurationError, StorageUnavailable
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Fetch
from qml_mp.storage.waiting import MANY_JOBS
from tests.storage.claimer import FETCH, register
from tests.storage.conftest import Raw
from tests.storage.helpers import (
    DONE,
    HOUR,
    KEEP,
    NO,
    before_query,
    fetch,
    in_children,
    interrupt,
    open_patiently,
    present,
    set_limit,
)

QUEUE, METHOD = LimitKind.QUEUE, LimitKind.METHOD
SERVED = [fetch(), fetch("other", "default")]
NAMES = ["all queues", "several queues"]
MANY = 60  # jobs, which take half a second at the rate of a hundred a second, and less without one


def claim(storage: Storage, *queues: str, limit: int = 10) -> tuple[Claim, ...]:
    return storage.exchange((), fetch=fetch(*queues), limit=limit, retention=KEEP).claims


def finish(storage: Storage, claims: tuple[Claim, ...], *, limit: int = 10) -> tuple[Claim, ...]:
    """End the claims and claim others in the same exchange."""
    done = storage.exchange([(each, DONE) for each in claims], fetch=fetch(), limit=limit, retention=KEEP)
    assert all(each.accepted for each in done.finished)
    return done.claims


def enqueue(storage: Storage, number: int, *, queue: str = "default", method: str = "work") -> list[str]:
    return storage.enqueue_many(Job.new(method, queue=queue) for _ in range(number))


@pytest.mark.parametrize("served", SERVED, ids=NAMES)
def test_a_paused_queue_gives_nothing_until_it_is_resumed(storage: Storage, served: Fetch) -> None:
    held = 2
    enqueue(storage, held)
    claims = claim(storage, limit=held)
    storage.set_paused("default", True)
    ids = enqueue(storage, 3)
    outcomes = [(each, DONE) for each in claims]

    paused = storage.exchange(outcomes, fetch=served, limit=10, retention=KEEP)
    again = storage.exchange((), fetch=served, limit=10, retention=KEEP)
    storage.set_paused("default", False)
    resumed = storage.exchange((), fetch=served, limit=10, retention=KEEP)

    assert [done.accepted for done in paused.finished] == [True] * held
    assert paused.claims == again.claims == ()
    assert sorted(each.job.id for each in resumed.claims) == sorted(ids)
    assert storage.standings() == []


def test_a_program_pauses_and_limits_a_queue_and_each_says_what_holds_of_it(storage: Storage) -> None:
    def said() -> list[Limit]:
        return [standing.limit for standing in storage.standings()]

    with closing(QmlApp(storage.url)) as app:
        ids = [app.enqueue("work").id for _ in range(3)]
        app.limit_queue("default", max_running=1, rate="50/s")
        limited = said()
        app.limit_queue("default", max_running=2)
        app.pause_queue("default")
        app.pause_queue("default")
        paused = said(), claim(storage)
        app.resume_queue("default")
        app.resume_queue("default")
        app.resume_queue("no_such_queue")
        resumed = said(), claim(storage)
        app.limit_queue("default")

        assert limited == [Limit(kind=QUEUE, name="default", max_running=1, rate=Rate.parse("50/s"))]
        assert paused == ([Limit(kind=QUEUE, name="default", paused=True, max_running=2)], ())
        assert resumed[0] == [Limit(kind=QUEUE, name="default", max_running=2)]
        assert [each.job.id for each in resumed[1]] == ids[:1]  # one at a time, while there is a limit
        assert said() == []
        with pytest.raises(ConfigurationError, match="queue name"):
            app.pause_queue("no such queue")


def test_a_paused_queue_holds_back_no_other(storage: Storage) -> None:
    enqueue(storage, 3)
    others = enqueue(storage, 3, queue="other")
    storage.set_paused("default", True)

    assert sorted(each.job.id for each in claim(storage)) == sorted(others)
    assert claim(storage, "default") == ()


@pytest.mark.parametrize(("kind", "name"), [(QUEUE, "default"), (METHOD, "work")])
def test_no_more_run_than_the_limit_says_and_each_end_makes_place(
    storage: Storage, kind: LimitKind, name: str
) -> None:
    enqueue(storage, 6)
    enqueue(storage, 2, queue="free", method="free")
    set_limit(storage, kind, name, max_running=3)

    first = [claim(storage) for _ in range(4)]

    assert [len(claims) for claims in first] == [1, 1, 1, 2]  # what is limited one at a time
    assert {each.job.method for each in first[3]} == {"free"}
    assert claim(storage) == ()
    assert len(finish(storage, first[0])) == 1
    assert claim(storage) == ()
    outcomes: list[Outcome] = [Release(reason="r"), Crash(error=NO, rerun_after=None)]
    for number, outcome in enumerate(outcomes, start=1):
        storage.finish(first[number][0], outcome, retention=KEEP)
        assert len(claim(storage)) == 1
        assert claim(storage) == ()


def test_a_limit_counts_what_runs_on_all_servers(storage: Storage) -> None:
    enqueue(storage, 3)
    set_limit(storage, METHOD, "work", max_running=1)
    here, there = (fetch(worker=f"w-{name}", server=f"{name}#1") for name in "ab")

    first = storage.exchange((), fetch=here, limit=5, retention=KEEP).claims
    second = storage.exchange((), fetch=there, limit=5, retention=KEEP).claims

    assert (len(first), second) == (1, ())


def test_a_job_counts_under_its_queue_and_its_method(storage: Storage) -> None:
    for queue in ("a", "b"):
        enqueue(storage, 5, queue=queue)
    set_limit(storage, QUEUE, "a", max_running=2)
    set_limit(storage, METHOD, "work", max_running=3)

    claimed = [each.job.queue for _ in range(6) for each in claim(storage)]

    assert sorted(claimed) == ["a", "a", "b"]


def test_what_runs_when_a_limit_is_set_is_counted(storage: Storage) -> None:
    enqueue(storage, 8)
    running = claim(storage, limit=5)
    set_limit(storage, QUEUE, "default", max_running=3)

    assert claim(storage) == ()
    assert finish(storage, running[:2]) == ()
    assert len(finish(storage, running[2:3])) == 1
    assert [standing.running for standing in storage.standings()] == [3]


def test_a_limit_is_seen_by_a_worker_that_goes_on_behind_its_last_claims(storage: Storage) -> None:
    enqueue(storage, 60)
    held = finish(storage, claim(storage))
    assert len(held) == 10
    storage.set_paused("default", True)

    assert finish(storage, held) == ()


def test_the_best_open_jobs_come_first_and_what_is_closed_keeps_nobody(storage: Storage) -> None:
    low = storage.enqueue(Job.new("slow", priority=1))
    set_limit(storage, METHOD, "slow", max_running=1)
    storage.set_paused("closed", True)
    storage.enqueue(Job.new("work", queue="closed", priority=9))
    top, second = (storage.enqueue(Job.new("slow", priority=priority)) for priority in (8, 7))
    free = [storage.enqueue(Job.new(method, priority=2)) for method in ("a", "b", "a")]

    claims = [claim(storage) for _ in range(2)]
    last = [finish(storage, claims[0]), claim(storage)]

    assert [[each.job.id for each in some] for some in claims] == [[top], free]
    assert [[each.job.id for each in some] for some in last] == [[second], []]
    assert present(storage, low).state_name is StateName.ENQUEUED


@pytest.mark.parametrize(
    ("waiting", "claims"),
    [
        ("a10 slow5 c1 c1", ["a10", "slow5", "c1 c1"]),
        ("a5 a5 slow5 a5 a3 slow9", ["slow9", "a5 a5 a5 a3"]),
        ("a9 b7 a7 slow5 a1 b1", ["a9", "b7 a7", "slow5", "a1 b1"]),
    ],
)
def test_no_job_is_claimed_before_a_limited_one_that_is_better_and_may_begin(
    storage: Storage, waiting: str, claims: list[str]
) -> None:
    set_limit(storage, METHOD, "slow", max_running=1)
    for name in waiting.split():
        method = name.rstrip("0123456789")
        storage.enqueue(Job.new(method, priority=int(name.removeprefix(method))))

    claimed = [claim(storage) for _ in claims]

    said = [" ".join(f"{each.job.method}{each.job.priority}" for each in some) for some in claimed]
    assert said == claims


def test_a_rate_gives_a_seventh_more_at_once_and_then_one_at_a_time(storage: Storage, raw: Raw) -> None:
    enqueue(storage, 30)
    set_limit(storage, QUEUE, "default", rate=Rate(20, HOUR))

    at_once = [len(claim(storage)) for _ in range(5)]
    raw.age("limits", "next_at", timedelta(minutes=6))

    assert at_once == [1, 1, 1, 0, 0]
    assert [len(claim(storage)) for _ in range(3)] == [1, 1, 0]


@pytest.mark.fault(49)
def test_a_clock_that_was_set_back_does_not_hold_a_rate_for_long(storage: Storage, raw: Raw) -> None:
    enqueue(storage, 5)
    set_limit(storage, METHOD, "work", rate=Rate(1, timedelta(minutes=1)))
    assert len(claim(storage)) == 1
    raw.age("limits", "next_at", -24 * HOUR)

    assert [len(claim(storage)) for _ in range(2)] == [1, 0]


def test_a_turn_is_used_up_whatever_becomes_of_the_job(storage: Storage) -> None:
    enqueue(storage, 2)
    set_limit(storage, QUEUE, "default", rate=Rate(1, HOUR))
    [claimed] = claim(storage)

    storage.finish(claimed, Release(reason="shutdown"), retention=KEEP)

    assert claim(storage) == ()


def test_a_rate_that_is_ended_and_set_again_goes_on_with_its_turn(storage: Storage, raw: Raw) -> None:
    hourly = {"work": Limit(kind=METHOD, name="work", rate=Rate(1, HOUR))}
    enqueue(storage, 9)
    storage.declare_limits(["work"], hourly)
    at_first = claim(storage)

    storage.declare_limits(["work"], {})
    shown, openings = storage.standings(), storage.openings([])
    without = claim(storage, limit=4)
    storage.declare_limits(["work"], hourly)
    again = claim(storage)
    raw.age("limits", "next_at", HOUR)
    in_an_hour = claim(storage)

    assert (len(at_first), len(without), len(again), len(in_an_hour)) == (1, 4, 0, 1)
    assert [each.limit.name for each in shown] == []
    assert (openings.jobs, openings.limited) == (MANY_JOBS, False)


def test_openings_tell_what_may_begin_and_when(storage: Storage) -> None:
    def opening(*queues: str) -> tuple[int, bool, bool]:
        openings = storage.openings(queues, methods=["work"])
        return openings.jobs, openings.next_in is not None, openings.limited

    assert opening() == (0, False, False)
    enqueue(storage, 3)
    assert opening() == (MANY_JOBS, False, False)
    set_limit(storage, QUEUE, "default", rate=Rate(1, HOUR))
    assert opening() == (1, True, True)
    claim(storage)
    assert opening() == (0, True, True)
    assert opening("other") == (0, False, True)
    set_limit(storage, QUEUE, "default", rate=None)
    set_limit(storage, METHOD, "work", max_running=3)
    assert opening() == (2, False, True)
    storage.set_paused("default", True)
    assert opening("default") == (0, False, True)


def test_openings_tell_when_the_limits_that_are_closed_have_opened(storage: Storage, raw: Raw) -> None:
    def next_in() -> timedelta | None:
        return storage.openings([]).next_in

    enqueue(storage, 3)
    set_limit(storage, METHOD, "work", rate=Rate(1, HOUR))
    set_limit(storage, QUEUE, "default", rate=Rate(10, 240 * HOUR))  # two at once, then one a day

    before_any = next_in()
    claim(storage)
    by_the_method = next_in()
    raw.age("limits", "next_at", HOUR)
    claim(storage)
    by_both = next_in()

    assert by_the_method is not None
    assert by_the_method <= HOUR
    assert before_any == HOUR
    assert by_both is not None
    assert by_both > HOUR


@pytest.mark.fault(77)
def test_an_epoch_that_is_over_claims_nothing_under_a_limit(storage: Storage) -> None:
    register(storage)
    set_limit(storage, QUEUE, "default", rate=Rate(1, HOUR))
    enqueue(storage, 1)
    storage.renew_epoch("w-1")

    assert storage.exchange((), fetch=FETCH, limit=1, retention=KEEP).claims == ()
    assert len(claim(storage)) == 1  # and it has used up no turn


def test_limits_follow_the_declarations_of_the_code(storage: Storage) -> None:
    slow = Limit(kind=METHOD, name="slow", max_running=3, rate=Rate(1, HOUR))

    assert storage.declare_limits(["slow", "work"], {"slow": slow})
    assert not storage.declare_limits(["slow", "work"], {"slow": slow})
    assert not storage.declare_limits(["another app's"], {})
    storage.set_paused("default", True)
    assert storage.standings()[0].limit == slow

    assert storage.declare_limits(["slow"], {})
    assert [standing.limit.name for standing in storage.standings()] == ["default"]


def test_stopped_before_any_of_its_queries_a_limited_exchange_takes_no_place_and_no_turn(
    url: str, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_limit(storage, METHOD, "work", max_running=2)
    set_limit(storage, QUEUE, "default", rate=Rate(20, HOUR))
    enqueue(storage, 3)
    [held] = claim(storage)
    turns = storage.standings()[1].next_at
    storage.close()

    def exchange(mine: Storage) -> None:
        mine.exchange([(held, DONE)], fetch=fetch(), limit=3, retention=KEEP)

    def fail_before(number: int) -> bool:
        with closing(open_patiently(url)) as mine, monkeypatch.context() as patched:
            claim(mine, "none")
            before_query(mine, number, interrupt, patched)
            try:
                exchange(mine)
            except StorageUnavailable:
                return False
            return True

    for number in count(1):
        if fail_before(number):
            break
        _, queue = storage.standings()
        assert queue.next_at == turns
        assert len(storage.claims()) <= 1
        storage.close()

    assert number > 4
    [now_held] = storage.claims()
    assert now_held.key != held.key
    assert storage.standings()[1].next_at != turns


def test_a_limit_holds_among_processes_that_are_killed(url: str, storage: Storage, tmp_path: Path) -> None:
    set_limit(storage, METHOD, "work", max_running=3)
    ids = enqueue(storage, 60)
    storage.close()

    def work(worker: str, dies_after: int) -> Callable[[], None]:
        def until_there_is_nothing() -> None:
            with closing(open_patiently(url)) as mine:
                which, ended = fetch(worker=worker), 0
                while True:
                    found = mine.exchange((), fetch=which, limit=5, retention=KEEP).claims
                    running = len(mine.claims())
                    assert running <= 3
                    (tmp_path / f"seen-{running}").touch()
                    if ended >= dies_after and found:
                        os.kill(os.getpid(), signal.SIGKILL)
                    for each in found:
                        assert mine.finish(each, DONE, retention=KEEP).accepted
                        ended += 1
                    if not found and not any(mine.queue_stats()):
                        return
                    for dead in tmp_path.glob("dead-*"):  # as a supervisor settles what its workers held
                        for left in mine.claims_of_worker(dead.name.removeprefix("dead-")):
                            mine.finish(left, Crash(error=NO, rerun_after=timedelta()), retention=KEEP)

        return until_there_is_nothing

    statuses = in_children([work(f"w-{number}", 3) for number in range(3)])
    for number in range(3):
        (tmp_path / f"dead-w-{number}").touch()
    statuses += in_children([work(f"v-{number}", 1000) for number in range(4)])

    assert [os.WTERMSIG(status) for status in statuses[:3]] == [signal.SIGKILL] * 3  # with all the places
    assert statuses[3:] == [0] * 4
    assert {present(storage, job_id).state_name for job_id in ids} == {StateName.SUCCEEDED}
    assert (tmp_path / "seen-3").exists()


def test_a_rate_holds_among_processes(url: str, storage: Storage) -> None:
    set_limit(storage, METHOD, "work", rate=Rate(100, timedelta(seconds=1)))
    enqueue(storage, 300)
    storage.close()
    start = time.monotonic()

    def work(worker: str) -> Callable[[], None]:
        def until_many_have_ended() -> None:
            with closing(open_patiently(url)) as mine:
                while mine.job_counts()[StateName.SUCCEEDED] < MANY:
                    for each in mine.exchange((), fetch=fetch(worker=worker), limit=5, retention=KEEP).claims:
                        mine.finish(each, DONE, retention=KEEP)

        return until_many_have_ended

    statuses = in_children([work(f"w-{number}") for number in range(4)])
    took_s = time.monotonic() - start

    assert statuses == [0] * 4
    ended = storage.job_counts()[StateName.SUCCEEDED]
    assert MANY <= ended <= 100 * took_s + 15
