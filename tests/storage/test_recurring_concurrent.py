"""Tests of the storage: a template that several servers declare, fire and switch at the same moment."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest

from qml_mp.child.source import AppFacts, NamedProgram
from qml_mp.core.recurring import RecurringJob
from qml_mp.core.server_info import SelfDescription
from qml_mp.settings import ServerConfig
from qml_mp.storage.store import Storage
from qml_mp.storage.values import JobFilter
from qml_mp.supervisor.loops.recurring import RecurringLoop
from qml_mp.supervisor.run import Run
from qml_mp.views.templates import enable_template
from tests.storage.conftest import Raw
from tests.storage.helpers import in_children, open_patiently, register
from tests.until import PATIENCE_S, wait_until

DAILY = RecurringJob.new("digest", "0 0 9 * * *", "send_digest", payload={"to": "all"}, queue="mail")
DAY = timedelta(days=1)


@pytest.fixture
def loop(storage: Storage) -> Iterator[RecurringLoop]:
    """That of a server that has this storage, and whose code has one method."""
    source, facts = NamedProgram(spec="an:app"), AppFacts(methods=("send_digest",))
    run = Run(ServerConfig(), source, url=storage.url, facts=facts, rng=random.Random(1))
    with closing(run.pool):
        yield RecurringLoop(run, interval=DAY)


def declare(url: str, template: RecurringJob) -> None:
    with closing(open_patiently(url)) as storage:
        storage.upsert_recurring_job(template)


def fire(url: str) -> None:
    """As a server does, which looks again at what is due and in other hands: who declares it locks it too."""

    def nothing_is_due() -> bool:
        return storage.fire_due_recurring().next_due_in != timedelta()

    with closing(open_patiently(url)) as storage:
        wait_until(nothing_is_due, what="the end of what is due")


def test_servers_that_declare_a_new_template_at_once_store_it_as_each_of_them_has_it(
    storage: Storage, url: str
) -> None:
    storage.migrate()

    statuses = in_children([partial(declare, url, DAILY)] * 5)

    assert statuses == [0] * 5
    assert storage.list_recurring_jobs() == [DAILY]


def test_of_servers_that_declare_different_ones_at_once_one_has_it_its_way(
    storage: Storage, url: str
) -> None:
    storage.migrate()
    ways = [
        replace(
            DAILY, cron=f"0 0 {hour} * * *", queue=f"at-{hour}", payload=hour, next_run_at=DAILY.created_at
        )
        for hour in range(5)
    ]

    statuses = in_children([partial(declare, url, way) for way in ways])

    assert statuses == [0] * 5
    assert storage.list_recurring_jobs()[0] in ways


@pytest.mark.parametrize("late", [timedelta(), 3 * DAY], ids=["due", "missed for days"])
def test_a_due_template_that_is_declared_and_fired_at_once_fires_once(
    storage: Storage, url: str, late: timedelta
) -> None:
    due = replace(DAILY, next_run_at=storage.now() - late)
    storage.upsert_recurring_job(due)

    statuses = in_children([partial(declare, url, due), partial(fire, url)] * 3)

    (stored,) = storage.list_recurring_jobs()
    assert statuses == [0] * 6
    assert len(storage.list_jobs(JobFilter()).jobs) == 1
    assert stored.next_run_at is not None
    assert stored.next_run_at > storage.now()


def test_the_code_that_changes_a_schedule_just_as_it_fires_makes_no_second_job_for_that_firing(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.follow_code("shop", [minutely("* * * * *")])
    minute = storage.now().replace(second=0, microsecond=0)
    storage.set_recurring_enabled("tick", True, next_run_at=minute)

    def just_before_another_server_fires() -> datetime:
        monkeypatch.undo()
        storage.fire_due_recurring()
        return minute - timedelta(milliseconds=10)

    monkeypatch.setattr(storage._db, "now", just_before_another_server_fires)
    followed = storage.follow_code("shop", [minutely("*/1 * * * *")])
    storage.fire_due_recurring()

    assert followed.changed == ("tick",)
    assert fired_for(storage).count(minute.isoformat()) == 1


def test_whoever_changes_a_schedule_just_as_it_fires_makes_no_second_job_for_that_firing(
    storage: Storage,
) -> None:
    minute = storage.now().replace(second=0, microsecond=0)
    storage.upsert_recurring_job(replace(minutely("* * * * *"), next_run_at=minute))
    storage.fire_due_recurring()

    storage.upsert_recurring_job(minutely("*/1 * * * *").from_now_on(minute - timedelta(milliseconds=10)))
    storage.fire_due_recurring()

    assert storage.list_recurring_jobs()[0].cron == "*/1 * * * *"
    assert fired_for(storage).count(minute.isoformat()) == 1


def test_a_template_whose_schedule_is_replaced_just_as_it_is_enabled_fires_by_the_new_one(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.upsert_recurring_job(DAILY)
    storage.set_recurring_enabled("digest", False, next_run_at=None)

    def replaced_since_it_was_read() -> datetime:
        monkeypatch.undo()
        storage.upsert_recurring_job(replace(DAILY, cron="0 0 3 * * *"))
        return storage.now()

    monkeypatch.setattr(storage, "now", replaced_since_it_was_read)
    told = enable_template(storage, "digest")

    (stored,) = storage.list_recurring_jobs()
    assert stored.enabled
    assert stored.next_run_at == told.at
    assert told.at.hour == 3


def test_a_template_that_another_enables_and_that_fires_since_it_was_read_makes_one_job_for_that_firing(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    minute = storage.now().replace(second=0, microsecond=0)
    storage.upsert_recurring_job(minutely("* * * * *"))
    storage.set_recurring_enabled("tick", False, next_run_at=None)

    def enabled_and_fired_since_it_was_read() -> datetime:
        monkeypatch.undo()
        storage.set_recurring_enabled("tick", True, next_run_at=minute)
        storage.fire_due_recurring()
        return minute - timedelta(milliseconds=10)

    monkeypatch.setattr(storage, "now", enabled_and_fired_since_it_was_read)
    told = enable_template(storage, "tick")
    storage.fire_due_recurring()

    assert fired_for(storage).count(minute.isoformat()) == 1
    assert told.at > minute


def minutely(cron: str) -> RecurringJob:
    return RecurringJob.new("tick", cron, "work")


def fired_for(storage: Storage) -> list[str]:
    """The firing times of all jobs, each as the job is told of it."""
    return [str(job.metadata["fire_at"]) for job in storage.list_jobs(JobFilter()).jobs]


@pytest.mark.parametrize(("methods", "is_told"), [(("resize",), True), ((), False)], ids=["others", "none"])
def test_a_due_template_that_a_server_without_code_of_its_own_fires_is_not_told_as_unfired(
    storage: Storage,
    loop: RecurringLoop,
    caplog: pytest.LogCaptureFixture,
    methods: tuple[str, ...],
    is_told: bool,
) -> None:
    register(storage, "loops#1")
    storage.update_server("loops#1", SelfDescription(queues=(), methods=methods))
    unknown_here = replace(DAILY, method="deleted", next_run_at=storage.now() - DAY)
    storage.upsert_recurring_job(unknown_here)

    loop.tick(storage)

    assert ("digest is due and not fired" in caplog.text) == is_told
    assert len(storage.fire_due_recurring().jobs) == 1  # by that server


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
def test_a_template_whose_job_is_refused_is_told_once_also_where_each_refusal_says_another_thing(
    storage: Storage, raw: Raw, loop: RecurringLoop, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = raw.name("jobs")
    schema = jobs.partition(".")[0]
    refuses = "BEGIN RAISE EXCEPTION USING MESSAGE = 'no job ' || NEW.id; END"
    raw.run(f"CREATE FUNCTION {schema}.no() RETURNS trigger LANGUAGE plpgsql AS $$ {refuses} $$")
    raw.run(f"CREATE TRIGGER no BEFORE INSERT ON {jobs} FOR EACH ROW EXECUTE FUNCTION {schema}.no()")
    storage.upsert_recurring_job(replace(DAILY, next_run_at=storage.now() - DAY))

    for _ in range(3):
        loop.tick(storage)

    assert caplog.text.count("is due and not fired, because storage refuses its job") == 1


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
def test_a_due_template_that_somebody_else_has_locked_is_left_to_them_for_a_moment(
    storage: Storage, raw: Raw, connect: Callable[[], Any], loop: RecurringLoop
) -> None:
    storage.upsert_recurring_job(replace(DAILY, next_run_at=storage.now() - DAY))
    other = connect()
    other.execute(f"SELECT id FROM {raw.name('recurring_jobs')} FOR UPDATE")

    while_they_have_it = loop.tick(storage)
    made_meanwhile = len(storage.list_jobs(JobFilter()).jobs)
    other.rollback()
    loop.tick(storage)

    assert while_they_have_it is not None
    assert timedelta() < while_they_have_it < timedelta(seconds=1)
    assert made_meanwhile == 0
    assert len(storage.list_jobs(JobFilter()).jobs) == 1


@pytest.mark.parametrize("queue", [DAILY.queue, "letters"], ids=["as it was", "changed"])
def test_a_declaration_waits_for_a_person_who_is_switching_the_template_off(
    storage: Storage, raw: Raw, url: str, connect: Callable[[], Any], queue: str
) -> None:
    storage.upsert_recurring_job(DAILY)
    person, table = connect(), raw.name("recurring_jobs")
    if raw.is_sqlite:
        person.execute("BEGIN IMMEDIATE")
    person.execute(f"UPDATE {table} SET enabled = {'0' if raw.is_sqlite else 'false'}, next_run_at = NULL")

    declare_while_blocked(raw, url, replace(DAILY, queue=queue), then=person.commit)

    (stored,) = storage.list_recurring_jobs()
    assert (stored.enabled, stored.next_run_at, stored.queue) == (False, None, queue)


def test_a_declaration_waits_for_another_one_that_is_not_committed_yet(
    storage: Storage, raw: Raw, url: str, connect: Callable[[], Any]
) -> None:
    first, table = connect(), raw.name("recurring_jobs")
    if raw.is_sqlite:
        first.execute("BEGIN IMMEDIATE")
    later = (DAILY.created_at + 3 * DAY).replace(microsecond=0)
    instants = (raw.instant(later), raw.instant(later))
    place = "?" if raw.is_sqlite else "%s"
    first.execute(
        f"INSERT INTO {table} (id, cron, tz, method, payload, queue, next_run_at, created_at)"
        f" VALUES ('digest', '{DAILY.cron}', 'UTC', 'old_name', 'null', 'mail', {place}, {place})",
        instants,
    )

    declare_while_blocked(raw, url, DAILY, then=first.commit)

    (stored,) = storage.list_recurring_jobs()
    assert (stored.next_run_at, stored.method, stored.payload) == (later, "send_digest", {"to": "all"})


def declare_while_blocked(raw: Raw, url: str, template: RecurringJob, *, then: Callable[[], object]) -> None:
    """Declare it from another connection, and let it go on by `then` once it waits for a lock."""
    name = f"declarer-{uuid.uuid4()}"
    with closing(open_patiently(url, application_name=name)) as another, ThreadPoolExecutor(1) as thread:
        declared = thread.submit(another.upsert_recurring_job, template)
        wait_until_blocked(raw, name, declared)
        then()
        declared.result(PATIENCE_S)


def wait_until_blocked(raw: Raw, name: str, call: Future[None]) -> None:
    """Until this session waits for a lock; an SQLite file shows nobody who waits for it."""
    waiting = "SELECT 1 FROM pg_stat_activity WHERE application_name = ? AND wait_event_type = 'Lock'"

    def is_blocked() -> bool:
        assert not call.done()
        return raw.is_sqlite or bool(raw.run(waiting, name))

    wait_until(is_blocked, what="a session that waits for a lock")
