"""Tests of the storage: firings that were missed, that come during a run, and that are spread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from qml_mp.core.job import Claim
from qml_mp.core.recurring import RecurringJob
from qml_mp.core.state import Scheduled, StateName
from qml_mp.errors import ConfigurationError
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Fired, JobFilter
from tests.storage.conftest import Raw
from tests.storage.helpers import DONE, KEEP, fetch, in_children, open_patiently, present

DAY = timedelta(days=1)
LATE = timedelta(seconds=2)


def daily(storage: Storage, *, missed: int, late: timedelta = LATE, **options: str) -> datetime:
    """Store a template of once a day whose newest firing was so long ago, and that has not fired for so many;
    that newest firing."""
    newest = storage.now().replace(microsecond=0) - late
    cron = f"{newest.second} {newest.minute} {newest.hour} * * *"
    template = RecurringJob.new("digest", cron, "send", queue="mail", **options)  # type: ignore[arg-type]
    storage.upsert_recurring_job(replace(template, next_run_at=newest - (missed - 1) * DAY))
    return newest


def due_again(storage: Storage, newest: datetime, *, days: int) -> None:
    """As if so many days had passed since, for a template that does not look at what it was fired for."""
    storage.set_recurring_enabled("digest", True, next_run_at=newest - days * DAY)


def fired_for(storage: Storage) -> list[str]:
    """The firing times of all jobs, each as the job is told of it."""
    return sorted(str(job.metadata["fire_at"]) for job in storage.list_jobs(JobFilter()).jobs)


def iso(newest: datetime, *days_ago: int) -> list[str]:
    return [(newest - days * DAY).isoformat() for days in days_ago]


def claim(storage: Storage) -> Claim:
    claimed = storage.fetch_and_lock_job(fetch("mail"))
    assert claimed is not None
    return claimed


@pytest.mark.fault(51)
@pytest.mark.parametrize(
    ("misfire", "missed", "late", "days_ago"),
    [
        ("fire_once", 4, LATE, [3]),
        ("fire_once", 1, LATE, [0]),
        ("skip", 4, LATE, [0]),
        ("skip", 4, timedelta(seconds=61), []),
        ("skip", 1, timedelta(hours=2), []),
        ("catch_up(2)", 4, LATE, [1, 0]),
        ("catch_up(9)", 4, timedelta(hours=2), [3, 2, 1, 0]),
        ("catch_up(1)", 1, LATE, [0]),
    ],
)
def test_what_becomes_of_missed_firings(
    storage: Storage, misfire: str, missed: int, late: timedelta, days_ago: list[int]
) -> None:
    newest = daily(storage, missed=missed, late=late, misfire=misfire)

    fired = [storage.fire_due_recurring(), storage.fire_due_recurring()]

    (template,) = storage.list_recurring_jobs()
    assert [len(each.jobs) for each in fired] == [len(days_ago), 0]
    assert fired_for(storage) == iso(newest, *days_ago)
    assert template.next_run_at == newest + DAY


def test_jobs_that_are_caught_up_begin_with_the_oldest(storage: Storage) -> None:
    newest = daily(storage, missed=3, misfire="catch_up(3)")
    storage.fire_due_recurring()

    times = [claim(storage).job.metadata["fire_at"] for _ in range(3)]

    assert times == iso(newest, 2, 1, 0)


def test_firings_are_caught_up_in_parts_each_once_and_the_oldest_first(storage: Storage) -> None:
    newest = daily(storage, missed=1200, misfire="catch_up(600)")

    fired = [storage.fire_due_recurring() for _ in range(4)]

    jobs = [job for each in fired for job in each.jobs]
    (template,) = storage.list_recurring_jobs()
    assert [len(each.jobs) for each in fired] == [250, 250, 100, 0]
    assert [each.next_due_in == timedelta() for each in fired] == [True, True, False, False]
    assert [job.metadata["fire_at"] for job in jobs] == iso(newest, *range(599, -1, -1))
    assert jobs == sorted(jobs, key=lambda job: job.created_at)
    assert (template.next_run_at, template.last_job_id) == (newest + DAY, jobs[-1].id)


def test_of_firings_that_are_due_again_only_those_that_had_no_job_get_one(storage: Storage) -> None:
    newest = daily(storage, missed=5, misfire="catch_up(2)")
    storage.fire_due_recurring()
    (template,) = storage.list_recurring_jobs()
    storage.upsert_recurring_job(replace(template, misfire="catch_up(9)"))
    due_again(storage, newest, days=4)

    again = storage.fire_due_recurring()

    (template,) = storage.list_recurring_jobs()
    assert [job.metadata["fire_at"] for job in again.jobs] == iso(newest, 4, 3, 2)
    assert fired_for(storage) == iso(newest, 4, 3, 2, 1, 0)
    assert template.last_job_id == again.jobs[-1].id


@pytest.mark.parametrize("state", ["enqueued", "processing"])
@pytest.mark.parametrize("overlap", ["skip", "queue"])
def test_a_job_that_has_not_ended_keeps_a_firing_from_making_another(
    storage: Storage, raw: Raw, overlap: str, state: str
) -> None:
    newest = daily(storage, missed=1, overlap=overlap)
    storage.fire_due_recurring()
    raw.run("UPDATE {jobs} SET state = ?, run_at = created_at", state)
    due_again(storage, newest, days=2)

    fired = storage.fire_due_recurring()

    (template,) = storage.list_recurring_jobs()
    assert fired.jobs == ()
    assert template.next_run_at == newest + DAY
    assert template.waiting_for == (newest - 2 * DAY if overlap == "queue" else None)


@pytest.mark.parametrize("overlap", ["skip", "queue"])
def test_a_job_that_was_run_by_hand_counts_and_is_made_whatever_runs(storage: Storage, overlap: str) -> None:
    daily(storage, missed=1, overlap=overlap)

    assert storage.run_recurring_now("digest")
    assert storage.run_recurring_now("digest")
    assert storage.fire_due_recurring().jobs == ()


def test_a_skipped_firing_is_over_and_the_next_one_fires(storage: Storage) -> None:
    newest = daily(storage, missed=1, overlap="skip")
    storage.fire_due_recurring()
    running = claim(storage)
    due_again(storage, newest, days=1)
    storage.fire_due_recurring()
    storage.finish(running, DONE, retention=KEEP)

    after_the_end = storage.fire_due_recurring()
    due_again(storage, newest, days=2)
    storage.fire_due_recurring()

    assert after_the_end.jobs == ()
    assert fired_for(storage) == iso(newest, 2, 0)


def test_a_queued_firing_gets_its_job_when_the_running_one_has_ended_and_further_ones_none(
    storage: Storage,
) -> None:
    newest = daily(storage, missed=1, overlap="queue")
    storage.fire_due_recurring()
    running = claim(storage)
    for days in (3, 2, 1):
        raw_due(storage, newest - days * DAY)
        waiting = storage.fire_due_recurring()
    storage.finish(running, DONE, retention=KEEP)

    after = [storage.fire_due_recurring() for _ in range(2)]

    assert waiting.next_due_in == timedelta(seconds=1)  # the end is announced by nobody
    assert [len(each.jobs) for each in after] == [1, 0]
    assert fired_for(storage) == iso(newest, 3, 0)
    assert after[1].next_due_in is not None
    assert after[1].next_due_in > timedelta(seconds=1)


def raw_due(storage: Storage, next_run_at: datetime) -> None:
    """Due again, with what waits left as it is."""
    (template,) = storage.list_recurring_jobs()
    storage.upsert_recurring_job(replace(template, cron="0 0 1 1 *"))
    storage.upsert_recurring_job(replace(template, next_run_at=next_run_at))


@pytest.mark.parametrize(("overlap", "made"), [("skip", 1), ("queue", 2)])
def test_of_missed_firings_that_are_caught_up_one_waits_at_most(
    storage: Storage, overlap: str, made: int
) -> None:
    daily(storage, missed=4, misfire="catch_up(9)", overlap=overlap)

    for _ in range(6):
        storage.fire_due_recurring()
        running = storage.fetch_and_lock_job(fetch("mail"))
        if running is not None:
            assert storage.fetch_and_lock_job(fetch("mail")) is None
            storage.finish(running, DONE, retention=KEEP)

    assert len(storage.list_jobs(JobFilter()).jobs) == made


def test_a_firing_that_waits_is_dropped_when_a_person_switches_the_template_off(storage: Storage) -> None:
    daily(storage, missed=4, misfire="catch_up(9)", overlap="queue")
    storage.fire_due_recurring()
    running = claim(storage)

    storage.set_recurring_enabled("digest", False, next_run_at=None)
    storage.finish(running, DONE, retention=KEEP)

    assert storage.fire_due_recurring().jobs == ()
    assert storage.list_recurring_jobs()[0].waiting_for is None


def test_a_firing_that_waits_fires_when_overlaps_are_allowed_again(storage: Storage) -> None:
    newest = daily(storage, missed=2, misfire="catch_up(2)", overlap="queue")
    storage.fire_due_recurring()
    (template,) = storage.list_recurring_jobs()

    storage.upsert_recurring_job(replace(template, overlap="allow"))

    assert len(storage.fire_due_recurring().jobs) == 1
    assert fired_for(storage) == iso(newest, 1, 0)


@pytest.mark.fault(52)
@pytest.mark.parametrize("overlap", ["skip", "queue"])
def test_of_several_servers_one_makes_the_job_of_a_template_that_must_not_overlap(
    storage: Storage, url: str, overlap: str
) -> None:
    daily(storage, missed=4, misfire="catch_up(9)", overlap=overlap)
    storage.close()

    def fire() -> None:
        with closing(open_patiently(url)) as mine:
            for _ in range(5):
                mine.fire_due_recurring()

    assert in_children([fire] * 4) == [0] * 4
    assert storage.job_counts()[StateName.ENQUEUED] == 1


def test_jobs_are_spread_within_the_jitter_each_by_its_own_part(storage: Storage) -> None:
    now = storage.now()
    for number in range(20):
        template = RecurringJob.new(f"digest-{number}", "@yearly", "send", jitter="10m")
        storage.upsert_recurring_job(replace(template, next_run_at=now.replace(microsecond=0)))

    jobs = storage.fire_due_recurring().jobs

    delays = [job.state.enqueue_at - job.created_at for job in jobs if isinstance(job.state, Scheduled)]
    assert len(set(delays)) == 20
    assert timedelta() < min(delays) < timedelta(minutes=3)
    assert timedelta(minutes=7) < max(delays) <= timedelta(minutes=10)
    assert present(storage, jobs[0].id).state_name is StateName.SCHEDULED


def test_the_jitter_of_a_firing_is_the_same_on_every_server() -> None:
    template = RecurringJob.new("digest", "@daily", "send", jitter=60)
    firing = template.created_at

    assert template.delay_of(firing) == template.delay_of(firing) != template.delay_of(firing + DAY)
    assert replace(template, jitter=timedelta()).delay_of(firing) == timedelta()


@pytest.mark.parametrize(("column", "value"), [("misfire", "never"), ("overlap", "forbid")])
def test_a_template_with_a_policy_that_cannot_be_is_disabled(
    storage: Storage, raw: Raw, column: str, value: object
) -> None:
    daily(storage, missed=2)
    raw.run(f"UPDATE {{recurring_jobs}} SET {column} = ?", value)

    fired = storage.fire_due_recurring()

    (template,) = storage.list_recurring_jobs()
    assert (fired.jobs, fired.disabled) == ((), {"digest": template.disabled_reason})
    assert template.disabled_reason
    assert storage.list_jobs(JobFilter()).jobs == ()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"misfire": "catch_up(1001)"}, "from 1 to 1000"),
        ({"overlap": "forbid"}, "overlap"),
        ({"jitter": "2d"}, "at most a day"),
        ({"jitter": -1}, "jitter"),
    ],
)
def test_a_policy_that_cannot_be_is_refused_by_name(options: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        RecurringJob.new("digest", "@daily", "send", **options)  # type: ignore[arg-type]


# Templates with many firings to catch up, each of which costs looks at its schedule: a
HOUR = (datetime.now(UTC) + DAY / 2).hour
"""In which all templates fire, far from now: no firing falls into a test, and the last one is not on time."""
DAILY = f"0 {HOUR} * * *"


def behind(storage: Storage, template_id: str, *, days: int, most: int, **options: str) -> None:
    """Store a template of each day that has not fired for so many days."""
    template = RecurringJob.new(template_id, DAILY, "send", misfire=f"catch_up({most})", **options)  # type: ignore[arg-type]
    assert template.next_run_at is not None
    storage.upsert_recurring_job(replace(template, next_run_at=template.next_run_at - days * DAY))


def due(storage: Storage, template_id: str, *, misfire: str = "fire_once", overlap: str = "allow") -> None:
    """Store a template of which one firing is due."""
    template = RecurringJob.new(template_id, DAILY, "send", misfire=misfire, overlap=overlap)
    assert template.next_run_at is not None
    storage.upsert_recurring_job(replace(template, next_run_at=template.next_run_at - DAY))


def ticks(storage: Storage) -> Iterator[Fired]:
    """Until nothing is due."""
    fired = storage.fire_due_recurring()
    yield fired
    while fired.next_due_in == timedelta():
        fired = storage.fire_due_recurring()
        yield fired


def made_by(fired: Fired) -> Counter[str]:
    return Counter(str(job.metadata["recurring_id"]) for job in fired.jobs)


@pytest.mark.parametrize(("limit", "first"), [(256, 1), (3, 2)])
def test_what_has_one_firing_due_fires_first_whatever_is_behind(
    storage: Storage, limit: int, first: int
) -> None:
    for number in range(4):
        behind(storage, f"behind-{number}", days=300, most=300)
    policies = [("fire_once", "allow"), ("fire_once", "skip"), ("skip", "queue"), ("fire_once", "queue")]
    for number, (misfire, overlap) in enumerate(policies):
        due(storage, f"plain-{number}", misfire=misfire, overlap=overlap)

    fired = [storage.fire_due_recurring(limit=limit) for _ in range(first)]

    moved = [each.next_run_at for each in storage.list_recurring_jobs() if each.id.startswith("plain")]
    assert [each is not None and each > storage.now() for each in moved] == [True] * 4
    made = sum((made_by(each) for each in fired), Counter[str]())
    assert {each for each in made if each.startswith("plain")} == {"plain-0", "plain-1", "plain-3"}


@pytest.mark.fault(51)
def test_every_firing_that_is_caught_up_gets_one_job_however_many_ticks_it_takes(storage: Storage) -> None:
    last = storage.now().replace(hour=HOUR, minute=0, second=0, microsecond=0)
    last -= DAY if last > storage.now() else timedelta()
    for number in range(3):
        behind(storage, f"all-{number}", days=400, most=200)
        behind(storage, f"skip-{number}", days=400, most=200, overlap="skip")
        behind(storage, f"queue-{number}", days=400, most=200, overlap="queue")
    due(storage, "plain", misfire="catch_up(9)")
    due(storage, "in line", misfire="catch_up(9)", overlap="queue")

    fired = list(ticks(storage))
    while (claim := storage.fetch_and_lock_job(fetch("default"))) is not None:
        storage.finish(claim, DONE, retention=KEEP)
    fired += ticks(storage)

    newest = [(last - days * DAY).isoformat() for days in range(199, -1, -1)]
    expected = {f"all-{number}": newest for number in range(3)}
    expected |= {f"skip-{number}": newest[:1] for number in range(3)}
    expected |= {f"queue-{number}": newest[:2] for number in range(3)}
    expected |= {"plain": newest[-1:], "in line": newest[-1:]}
    jobs = sorted(storage.list_jobs(JobFilter(), limit=1000).jobs, key=lambda job: job.created_at)
    made = {
        each: [job.metadata["fire_at"] for job in jobs if job.metadata["recurring_id"] == each]
        for each in expected
    }
    assert made == expected
    assert len(jobs) == sum(map(len, expected.values())) == sum(len(each.jobs) for each in fired)
    assert all(each.next_run_at == last + DAY for each in storage.list_recurring_jobs())
