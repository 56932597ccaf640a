"""Tests of the storage: templates with many firings to catch up, each of which costs looks at its schedule: a
transaction takes few of them, and keeps nobody else waiting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from qml_mp.core.cron import CronSchedule
from qml_mp.core.recurring import RecurringJob
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Fired, JobFilter
from tests.storage.conftest import Raw
from tests.storage.helpers import DONE, KEEP, fetch

DAY = timedelta(days=1)
HOUR = (datetime.now(UTC) + DAY / 2).hour
"""In which all templates fire, far from now: no firing falls into a test, and the last one is not on time."""
DAILY = f"0 {HOUR} * * *"


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many firings schedules have looked for, each time that they were asked for the newest."""
    seen: list[int] = []
    newest = CronSchedule.newest

    def counting(schedule: CronSchedule, count: int, *, first: datetime, until: datetime) -> list[datetime]:
        found = newest(schedule, count, first=first, until=until)
        seen.append(len(found))
        return found

    monkeypatch.setattr(CronSchedule, "newest", counting)
    return seen


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


@pytest.mark.fault(51)
@pytest.mark.parametrize("overlap", ["allow", "skip", "queue"])
def test_a_tick_looks_at_the_firings_of_few_templates_however_many_are_behind(
    storage: Storage, computed: list[int], overlap: str
) -> None:
    for number in range(8):
        behind(storage, f"t{number}", days=1100, most=1000, overlap=overlap)

    fired = storage.fire_due_recurring()

    assert sum(computed) <= 1000
    assert made_by(fired) == {"t0": 250 if overlap == "allow" else 1}
    assert fired.next_due_in == timedelta()


def test_templates_with_few_firings_to_catch_up_are_taken_together(storage: Storage) -> None:
    for number in range(40):
        behind(storage, f"t{number}", days=5, most=5, overlap="skip")

    fired = storage.fire_due_recurring()

    assert len(fired.jobs) == 40


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


def test_those_that_are_behind_and_refused_keep_no_others_and_are_each_tried_in_turn(
    storage: Storage, raw: Raw, computed: list[int]
) -> None:
    for number in range(4):
        behind(storage, f"bad-{number}", days=1100, most=1000)
    behind(storage, "good", days=300, most=300)
    raw.refuse("INSERT", "jobs", saying="not bad", when="NEW.recurring_id <> 'good'")
    costs: list[int] = []

    def fire() -> Fired:
        computed.clear()
        fired = storage.fire_due_recurring()
        costs.append(sum(computed))
        return fired

    first = [fire() for _ in range(7)]
    raw.allow("jobs")
    raw.refuse("INSERT", "jobs", saying="not this one", when="NEW.recurring_id = 'bad-0'")
    then = [fire() for _ in range(14)]

    assert sum((made_by(each) for each in first), Counter[str]()) == {"good": 300}
    assert sorted(first[-1].refused) == [f"bad-{number}" for number in range(4)]
    assert sum((made_by(each) for each in then), Counter[str]()) == {
        f"bad-{number}": 1000 for number in (1, 2, 3)
    }
    assert sorted(then[-1].refused) == ["bad-0"]
    assert max(costs) <= 2 * 1000  # the first looks at one, and once more to find out that it is the one
