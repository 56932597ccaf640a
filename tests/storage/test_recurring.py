"""Tests of the storage: templates of recurring jobs and their firings."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from qml_mp.core.recurring import RecurringJob
from qml_mp.core.state import StateName
from qml_mp.errors import StorageError
from qml_mp.storage import recurring
from qml_mp.storage.storable import NewRow
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Fired, JobFilter
from qml_mp.views.templates import disable_template, enable_template
from tests.storage.conftest import Raw
from tests.storage.helpers import (
    DONE,
    HOUR,
    KEEP,
    fetch,
    in_an_hour,
    in_children,
    open_patiently,
    open_sqlite,
    present,
)

DAY = timedelta(days=1)
IN_2040 = "0 0 9 1 1 * 2040"
"""Once: what it tells does not change while a test runs."""


def daily(id: str = "digest", cron: str = "0 0 9 * * *", tz: str = "Europe/Warsaw") -> RecurringJob:
    return RecurringJob.new(id, cron, "send_digest", {"to": "all"}, "mail", tz=tz)


def test_a_template_is_read_back_as_it_was_stored(storage: Storage) -> None:
    templates = [daily("b", cron=IN_2040), daily("a", cron=IN_2040)]
    for template in templates:
        storage.upsert_recurring_job(template)

    assert storage.get_recurring_job("b") == templates[0]
    assert storage.list_recurring_jobs() == [templates[1], templates[0]]
    assert storage.get_recurring_job("c") is None


def test_removing_a_template_says_whether_it_was_there(storage: Storage) -> None:
    storage.upsert_recurring_job(daily())
    job_id = storage.run_recurring_now("digest")

    assert [storage.remove_recurring_job("digest"), storage.remove_recurring_job("digest")] == [True, False]
    assert job_id is not None
    assert storage.get(job_id) is not None


def test_declaring_a_template_again_keeps_its_next_firing_and_its_switch(storage: Storage) -> None:
    storage.upsert_recurring_job(daily())
    storage.set_recurring_enabled("digest", False, next_run_at=None)
    storage.set_recurring_enabled("digest", True, next_run_at=datetime(2030, 1, 1, tzinfo=UTC))
    storage.set_recurring_enabled("digest", False, next_run_at=datetime(2030, 1, 1, tzinfo=UTC))

    storage.upsert_recurring_job(replace(daily(), payload={"to": "some"}, queue="fast"))

    stored = storage.get_recurring_job("digest")
    assert stored is not None
    assert stored.next_run_at == datetime(2030, 1, 1, tzinfo=UTC)
    assert (stored.enabled, stored.payload, stored.queue) == (False, {"to": "some"}, "fast")


def test_the_jobs_of_a_template_have_its_priority(storage: Storage) -> None:
    def fired(at: datetime) -> list[int]:
        for each in storage.list_recurring_jobs():
            storage.set_recurring_enabled(each.id, True, next_run_at=at)
        return [job.priority for job in storage.fire_due_recurring().jobs]

    storage.upsert_recurring_job(replace(daily("a"), priority=7))
    alone = fired(datetime(2025, 1, 1, tzinfo=UTC))
    storage.upsert_recurring_job(replace(daily("a"), priority=-3))
    storage.upsert_recurring_job(replace(daily("b"), priority=9, overlap="queue"))
    storage.upsert_recurring_job(daily("c"))
    by_hand = storage.run_recurring_now("a")

    assert by_hand is not None
    assert (alone, present(storage, by_hand).priority) == ([7], -3)
    assert sorted(fired(datetime(2025, 1, 2, tzinfo=UTC))) == [-3, 0, 9]
    assert [each.priority for each in storage.list_recurring_jobs()] == [-3, 9, 0]


@pytest.mark.parametrize("changed", [daily(cron="0 0 10 1 1 * 2040"), daily(cron=IN_2040, tz="UTC")])
def test_a_changed_schedule_has_its_own_next_firing(storage: Storage, changed: RecurringJob) -> None:
    storage.upsert_recurring_job(daily(cron=IN_2040))
    storage.set_recurring_enabled("digest", True, next_run_at=datetime(2030, 1, 1, tzinfo=UTC))

    storage.upsert_recurring_job(changed)

    stored = storage.get_recurring_job("digest")
    assert stored is not None
    assert replace(stored, created_at=changed.created_at) == changed


def test_switching_a_template_that_is_not_there_is_told(storage: Storage) -> None:
    assert not storage.set_recurring_enabled("digest", True, next_run_at=None)


def test_nothing_fires_before_its_time(storage: Storage) -> None:
    at_start = storage.fire_due_recurring()
    storage.upsert_recurring_job(replace(daily(), next_run_at=in_an_hour()))

    fired = storage.fire_due_recurring()

    assert at_start == Fired(jobs=(), disabled={}, next_due_in=None)
    assert fired.jobs == ()
    assert fired.next_due_in is not None
    assert timedelta(minutes=59) < fired.next_due_in <= HOUR


def test_a_due_template_enqueues_one_job_and_moves_on(storage: Storage, raw: Raw) -> None:
    storage.upsert_recurring_job(daily())
    raw.age("recurring_jobs", "next_run_at", DAY)

    fired = storage.fire_due_recurring()

    [job] = fired.jobs
    stored = present(storage, job.id)
    template = storage.get_recurring_job("digest")
    assert (stored.method, stored.payload, stored.queue) == ("send_digest", {"to": "all"}, "mail")
    assert stored.state_name is StateName.ENQUEUED
    assert template is not None
    assert template.next_run_at is not None
    assert template.last_run_at is not None
    assert template.next_run_at > datetime.now(UTC)
    assert storage.fire_due_recurring().jobs == ()


@pytest.mark.fault(51)
def test_firings_missed_while_no_server_ran_collapse_into_one(storage: Storage, raw: Raw) -> None:
    storage.upsert_recurring_job(daily())
    raw.age("recurring_jobs", "next_run_at", 5 * DAY)

    firings = [len(storage.fire_due_recurring().jobs) for _ in range(3)]

    template = storage.get_recurring_job("digest")
    assert firings == [1, 0, 0]
    assert template is not None
    assert template.next_run_at is not None
    assert timedelta() < template.next_run_at - datetime.now(UTC) <= DAY + HOUR


def test_a_disabled_template_does_not_fire(storage: Storage, raw: Raw) -> None:
    storage.upsert_recurring_job(daily())
    storage.set_recurring_enabled("digest", False, next_run_at=datetime.now(UTC) - HOUR)

    assert storage.fire_due_recurring() == Fired(jobs=(), disabled={}, next_due_in=None)


def test_no_more_templates_fire_than_the_limit(storage: Storage, raw: Raw) -> None:
    for number in range(5):
        storage.upsert_recurring_job(daily(f"digest-{number}"))
    raw.age("recurring_jobs", "next_run_at", DAY)

    fired = [storage.fire_due_recurring(limit=2) for _ in range(3)]

    assert [len(one.jobs) for one in fired] == [2, 2, 1]
    assert fired[0].next_due_in == timedelta()


def test_no_more_jobs_are_made_at_once_than_others_can_wait_for(storage: Storage, raw: Raw) -> None:
    for number in range(3):
        storage.upsert_recurring_job(
            RecurringJob.new(f"each-day-{number}", "0 0 * * *", "work", misfire="catch_up(200)")
        )  # not each minute: another one may begin meanwhile
    raw.age("recurring_jobs", "next_run_at", 400 * DAY)

    fired = [storage.fire_due_recurring() for _ in range(3)]

    assert [len(one.jobs) for one in fired] == [250, 250, 100]
    assert [one.next_due_in for one in fired[:2]] == [timedelta()] * 2


def test_the_jobs_of_templates_that_are_due_together_are_inserted_together(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    port: Any = sys.modules[type(storage._db).__module__]
    insert, inserted = port._Transaction.insert, list[int]()

    def counting(transaction: Any, rows: Sequence[NewRow]) -> Sequence[NewRow]:
        inserted.append(len(rows))
        return insert(transaction, rows)  # type: ignore[no-any-return]

    fire_at = storage.now() - HOUR
    for number in range(20):
        storage.upsert_recurring_job(replace(daily(f"digest-{number}", IN_2040), next_run_at=fire_at))
    storage.upsert_recurring_job(replace(daily("one", IN_2040), overlap="skip", next_run_at=fire_at))
    for job in storage.fire_due_recurring(limit=3).jobs:
        again = str(job.metadata["recurring_id"])  # as after a step of the clock
        storage.set_recurring_enabled(again, False, next_run_at=None)
        storage.set_recurring_enabled(again, True, next_run_at=fire_at)
    monkeypatch.setattr(port._Transaction, "insert", counting)

    fired = storage.fire_due_recurring()

    assert inserted == [20, 1]
    assert len(fired.jobs) == 18
    assert storage.fire_due_recurring().jobs == ()
    assert sum(storage.job_counts().values()) == 21


@pytest.mark.fault(52)
def test_several_servers_fire_one_job_per_firing_time(storage: Storage, raw: Raw, url: str) -> None:
    for number in range(20):
        storage.upsert_recurring_job(daily(f"digest-{number}"))
    raw.age("recurring_jobs", "next_run_at", DAY)
    storage.close()

    def fire() -> None:
        mine = open_patiently(url)
        while mine.fire_due_recurring(limit=3).jobs:
            pass

    actions: list[Callable[[], None]] = [fire] * 4
    statuses = in_children(actions)

    assert statuses == [0] * 4
    assert storage.job_counts()[StateName.ENQUEUED] == 20


def test_a_firing_time_that_has_had_its_job_makes_no_other(storage: Storage, raw: Raw) -> None:
    storage.upsert_recurring_job(daily())
    fire_at = datetime(2026, 1, 5, 8, tzinfo=UTC)
    for _ in range(2):  # as when the clock, or a backup of the table, was set back
        storage.set_recurring_enabled("digest", True, next_run_at=fire_at)
        storage.fire_due_recurring()

    template = storage.get_recurring_job("digest")
    assert len(storage.list_jobs(JobFilter()).jobs) == 1
    assert template is not None
    assert template.next_run_at is not None
    assert template.next_run_at > datetime.now(UTC)


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("cron", "no cron", "'no cron'"), ("tz", "/etc/passwd", "'/etc/passwd'"),
        ("payload", "{no json", "recurring job cannot be read"), ("queue", "no queue", "'no queue'"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_fire_is_disabled_with_the_reason_and_others_fire(
    storage: Storage, raw: Raw, column: str, value: str, reason: str
) -> None:
    storage.upsert_recurring_job(daily("bad"))
    storage.upsert_recurring_job(daily("good"))
    raw.age("recurring_jobs", "next_run_at", DAY)
    raw.run(f"UPDATE {{recurring_jobs}} SET {column} = ? WHERE id = 'bad'", value)

    fired = storage.fire_due_recurring()

    bad = storage.get_recurring_job("bad")
    assert len(fired.jobs) == 1
    assert bad is not None
    assert not bad.enabled
    assert bad.disabled_reason
    assert reason in bad.disabled_reason
    assert fired.disabled == {"bad": bad.disabled_reason}
    assert storage.fire_due_recurring().disabled == {}


@pytest.mark.parametrize("by", ["a trigger", "a constraint"])
def test_a_template_whose_job_is_refused_stays_due_and_the_others_fire(
    storage: Storage, raw: Raw, by: str
) -> None:
    for name in ("a", "bad", "c", "worse"):
        method = "bad" if name in ("bad", "worse") else "work"
        storage.upsert_recurring_job(replace(daily(name), method=method))
    raw.age("recurring_jobs", "next_run_at", DAY)
    due = storage.list_recurring_jobs()
    allow = refuse_jobs_of_method_bad(raw, by)

    fired = [storage.fire_due_recurring() for _ in range(2)]
    moved = [
        now.next_run_at != then.next_run_at
        for then, now in zip(due, storage.list_recurring_jobs(), strict=True)
    ]
    allow()
    after = [storage.fire_due_recurring() for _ in range(2)]

    assert [[job.metadata["recurring_id"] for job in each.jobs] for each in fired] == [["a", "c"], []]
    assert [sorted(each.refused) for each in (*fired, *after)] == [["bad", "worse"]] * 2 + [[]] * 2
    assert ("not bad" in fired[0].refused["bad"]) == (by == "a trigger" or raw.is_sqlite)
    assert [each.next_due_in for each in fired] == [timedelta(seconds=1)] * 2
    assert all(template.enabled for template in storage.list_recurring_jobs())
    assert moved == [True, False, True, False]
    assert sorted(str(job.metadata["recurring_id"]) for job in after[0].jobs) == ["bad", "worse"]
    assert after[1].jobs == ()


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
@pytest.mark.parametrize("place", [0, 5, 7])
def test_on_postgresql_a_template_whose_job_a_deferred_trigger_refuses_keeps_no_others_wherever_it_stands(
    storage: Storage, raw: Raw, place: int
) -> None:
    """Whatever the driver has prepared on the connection by then."""
    names = [f"t{number}" for number in range(9)]
    for number, name in enumerate(names):
        storage.upsert_recurring_job(replace(daily(name), method="bad" if number == place else "work"))
    raw.age("recurring_jobs", "next_run_at", DAY)
    refuse_jobs_of_method_bad(raw, "a deferred trigger")

    fired = [storage.fire_due_recurring() for _ in range(8)]

    bad = names.pop(place)
    assert [job.metadata["recurring_id"] for each in fired for job in each.jobs] == names
    assert [each.refused for each in fired] == [{bad: "not bad."}] * 8


def test_while_a_template_is_refused_the_next_firing_of_another_is_told(
    storage: Storage, raw: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recurring, "_LOOK_AGAIN", DAY)  # or the other might fire before it is told of
    for name, method in (("bad", "bad"), ("good", "work")):
        storage.upsert_recurring_job(replace(daily(name), method=method))
    refuse_jobs_of_method_bad(raw, "a trigger")
    storage.set_recurring_enabled("bad", True, next_run_at=storage.now())
    told = []

    for due_in in (HOUR, 2 * DAY):
        storage.set_recurring_enabled("good", True, next_run_at=storage.now() + due_in)
        told.append(storage.fire_due_recurring().next_due_in)

    assert told[0] is not None
    assert timedelta() < told[0] <= HOUR
    assert told[1] == DAY  # the one that is refused is tried again


def test_jobs_that_are_left_are_made_without_a_pause_though_a_template_is_refused(
    storage: Storage, raw: Raw
) -> None:
    for name, method in (("bad", "bad"), ("good", "work")):
        storage.upsert_recurring_job(RecurringJob.new(name, "0 0 * * *", method, misfire="catch_up(600)"))
    raw.age("recurring_jobs", "next_run_at", 700 * DAY)
    refuse_jobs_of_method_bad(raw, "a trigger")

    fired = [storage.fire_due_recurring() for _ in range(4)]

    assert [len(each.jobs) for each in fired] == [250, 250, 100, 0]
    assert [each.next_due_in for each in fired[:2]] == [timedelta()] * 2
    assert fired[3].next_due_in == timedelta(seconds=1)
    assert list(fired[3].refused) == ["bad"]


def refuse_jobs_of_method_bad(raw: Raw, by: str) -> Callable[[], object]:
    """What allows them again. SQLite adds no constraint to a table that is there."""
    if raw.is_sqlite:
        raw.run(
            "CREATE TRIGGER no BEFORE INSERT ON {jobs} WHEN NEW.method = 'bad' "
            "BEGIN SELECT RAISE(ABORT, 'not bad'); END"
        )
        return lambda: raw.run("DROP TRIGGER no")
    if by == "a constraint":
        raw.run("ALTER TABLE {jobs} ADD CONSTRAINT no CHECK (method <> 'bad')")
        return lambda: raw.run("ALTER TABLE {jobs} DROP CONSTRAINT no")
    schema = raw.name("jobs").partition(".")[0]
    raw.run(
        f"CREATE FUNCTION {schema}.no() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'not bad'; END $$"
    )
    is_deferred = by == "a deferred trigger"
    at_once = "TRIGGER no BEFORE INSERT ON {jobs}"
    deferred = "CONSTRAINT TRIGGER no AFTER INSERT ON {jobs} DEFERRABLE INITIALLY DEFERRED"
    raw.run(
        f"CREATE {deferred if is_deferred else at_once} FOR EACH ROW WHEN (NEW.method = 'bad') "
        f"EXECUTE FUNCTION {schema}.no()"
    )
    return lambda: raw.run("DROP TRIGGER no ON {jobs}")


def test_a_refusal_for_which_sqlite_rolls_everything_back_is_told_and_nothing_fires(tmp_path: Path) -> None:
    with closing(open_sqlite(tmp_path / "jobs.db")) as storage:
        storage.upsert_recurring_job(replace(daily(), next_run_at=storage.now() - DAY))
        with closing(sqlite3.connect(tmp_path / "jobs.db")) as other:
            other.execute(
                "CREATE TRIGGER no BEFORE INSERT ON qml_jobs BEGIN SELECT RAISE(ROLLBACK, 'no'); END"
            )

            with pytest.raises(StorageError, match=r"\(no\)"):
                storage.fire_due_recurring()

            other.execute("DROP TRIGGER no")
        assert len(storage.fire_due_recurring().jobs) == 1


def test_a_template_whose_zone_is_not_known_here_is_left_to_others_and_hinders_none(
    storage: Storage, raw: Raw, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("bad", "good", "worse"):
        storage.upsert_recurring_job(daily(name))
    raw.age("recurring_jobs", "next_run_at", DAY)
    raw.run("UPDATE {recurring_jobs} SET tz = 'Mars/Base' WHERE id <> 'good'")

    first, second = storage.fire_due_recurring(), storage.fire_due_recurring()
    raw.run("UPDATE {recurring_jobs} SET tz = 'Europe/Warsaw'")  # as for a server that knows it
    elsewhere = storage.fire_due_recurring()

    assert [len(fired.jobs) for fired in (first, second, elsewhere)] == [1, 0, 2]
    assert first.disabled == second.disabled == {}
    assert first.next_due_in is not None
    assert first.next_due_in > timedelta()
    assert len([record for record in caplog.records if "Mars/Base" in record.getMessage()]) == 1


def test_a_template_that_was_disabled_for_its_cron_runs_again_with_another(
    storage: Storage, raw: Raw
) -> None:
    storage.upsert_recurring_job(daily())
    raw.age("recurring_jobs", "next_run_at", DAY)
    raw.run("UPDATE {recurring_jobs} SET cron = 'no cron'")
    storage.fire_due_recurring()

    storage.upsert_recurring_job(daily())

    stored = storage.get_recurring_job("digest")
    assert stored is not None
    assert (stored.enabled, stored.disabled_reason) == (True, None)
    raw.age("recurring_jobs", "next_run_at", DAY)
    assert len(storage.fire_due_recurring().jobs) == 1


def test_a_template_that_never_fires_again_rests(storage: Storage, raw: Raw) -> None:
    storage.upsert_recurring_job(RecurringJob.new("once", "0 0 0 1 1 * 2050", "work"))
    raw.run("UPDATE {recurring_jobs} SET cron = '0 0 0 1 1 * 2020'")
    raw.age("recurring_jobs", "next_run_at", 100 * 366 * DAY)

    fired = [storage.fire_due_recurring(), storage.fire_due_recurring()]

    assert [len(one.jobs) for one in fired] == [1, 0]
    assert fired[1].next_due_in is None


def test_a_template_run_by_hand_keeps_its_schedule(storage: Storage) -> None:
    storage.upsert_recurring_job(daily())
    before = storage.get_recurring_job("digest")

    ids = [storage.run_recurring_now("digest"), storage.run_recurring_now("digest")]

    assert None not in ids
    assert len(set(ids)) == 2
    after = storage.get_recurring_job("digest")
    assert before is not None
    assert after is not None
    assert (after.next_run_at, after.enabled) == (before.next_run_at, True)
    assert (after.last_job_id, after.last_job_state) == (ids[1], StateName.ENQUEUED)
    claim = storage.fetch_and_lock_job(fetch("mail"))
    assert claim is not None
    assert (claim.job.method, claim.job.payload) == ("send_digest", {"to": "all"})
    assert storage.finish(claim, DONE, retention=KEEP).accepted
    assert storage.run_recurring_now("nobody") is None


def test_a_template_whose_method_is_not_asked_for_stays_due_for_whoever_knows_it(
    storage: Storage, raw: Raw
) -> None:
    storage.upsert_recurring_job(daily("mine"))
    storage.upsert_recurring_job(replace(daily("theirs"), method="their_digest"))
    raw.age("recurring_jobs", "next_run_at", 3 * DAY)

    mine = [storage.fire_due_recurring(methods=["send_digest", "other"]) for _ in range(2)]
    nobody = storage.fire_due_recurring(methods=[])
    theirs = [storage.fire_due_recurring(methods=["their_digest"]) for _ in range(2)]

    assert [[job.method for job in fired.jobs] for fired in mine] == [["send_digest"], []]
    assert [dict(fired.unknown) for fired in [*mine, nobody]] == [{"theirs": "their_digest"}] * 3
    assert mine[1].next_due_in is not None
    assert mine[1].next_due_in > timedelta()  # else its loop would turn without a pause
    assert nobody.next_due_in is None
    assert [[job.method for job in fired.jobs] for fired in theirs] == [["their_digest"], []]
    assert dict(theirs[1].unknown) == {}


def test_a_template_that_is_not_due_is_unknown_to_nobody(storage: Storage) -> None:
    storage.upsert_recurring_job(replace(daily(), next_run_at=in_an_hour()))

    assert dict(storage.fire_due_recurring(methods=["other"]).unknown) == {}


def test_enabling_a_template_that_is_on_leaves_its_firings(storage: Storage, raw: Raw) -> None:
    storage.upsert_recurring_job(RecurringJob.new("digest", "0 9 * * *", "work", overlap="queue"))
    raw.age("recurring_jobs", "next_run_at", 2 * DAY)
    due = storage.get_recurring_job("digest").next_run_at  # type: ignore[union-attr]

    told = enable_template(storage, "digest")

    assert told.at == due
    assert len(storage.fire_due_recurring().jobs) == 1
    raw.age("recurring_jobs", "next_run_at", DAY)
    assert storage.fire_due_recurring().jobs == ()  # waits for the end of that job

    upcoming = enable_template(storage, "digest")

    stored = storage.get_recurring_job("digest")
    assert stored is not None
    assert stored.next_run_at == upcoming.at > storage.now()
    assert stored.waiting_for is not None
    disable_template(storage, "digest")
    assert enable_template(storage, "digest").at > storage.now()
