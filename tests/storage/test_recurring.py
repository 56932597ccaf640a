"""Tests of the storage: templates of recurring jobs, their firings, and the code that declares them."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from qml_mp.core.recurring import Followed, RecurringJob
from qml_mp.core.state import StateName
from qml_mp.errors import ConfigurationError
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Fired, JobFilter
from tests.storage.conftest import Raw
from tests.storage.helpers import DONE, HOUR, KEEP, fetch, in_an_hour, in_children, open_patiently, present
from tests.until import PATIENCE_S, wait_until

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
        ("cron", "no cron", "'no cron'"), ("payload", "{no json", "recurring job cannot be read"),
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


# A template that qml-mp switched off, when its app declares it again.
DECLARED = RecurringJob.new("digest", "0 0 9 * * *", "send_digest", payload={"to": "all"}, queue="mail")


def switched_off(storage: Storage, raw: Raw, declared: RecurringJob) -> None:
    """Store the template, and have it fail to fire for a queue that cannot be, whatever else it says."""
    storage.upsert_recurring_job(declared)
    raw.age("recurring_jobs", "next_run_at", DAY)
    raw.run("UPDATE {recurring_jobs} SET queue = 'no queue'")
    assert storage.fire_due_recurring().disabled.keys() == {declared.id}
    raw.run("UPDATE {recurring_jobs} SET queue = ?", declared.queue)


@pytest.mark.parametrize(
    "change",
    [
        {"cron": "0 0 10 * * *"},
        {"queue": "letters"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_template_that_was_switched_off_gets_another_chance_once_it_is_another_one(
    storage: Storage, raw: Raw, change: dict[str, Any]
) -> None:
    switched_off(storage, raw, DECLARED)

    storage.upsert_recurring_job(replace(DECLARED, **change))

    stored = storage.get_recurring_job("digest")
    assert stored is not None
    assert (stored.enabled, stored.disabled_reason) == (True, None)
    raw.age("recurring_jobs", "next_run_at", DAY)
    assert len(storage.fire_due_recurring().jobs) == 1


def test_a_template_that_was_switched_off_stays_off_as_it_was(storage: Storage, raw: Raw) -> None:
    switched_off(storage, raw, DECLARED)

    storage.upsert_recurring_job(DECLARED)

    stored = storage.get_recurring_job("digest")
    assert stored is not None
    assert not stored.enabled
    assert stored.disabled_reason


def test_a_template_that_was_switched_off_and_is_declared_as_it_was_has_not_changed(
    storage: Storage, raw: Raw
) -> None:
    storage.follow_code("shop", [DECLARED])
    switched_off(storage, raw, replace(DECLARED, app="shop"))

    again = storage.follow_code("shop", [DECLARED])

    assert (again.added, again.changed, again.removed) == ((), (), ())


def test_a_template_that_a_person_switched_off_stays_off_whatever_it_becomes(storage: Storage) -> None:
    storage.upsert_recurring_job(DECLARED)
    storage.set_recurring_enabled("digest", False, next_run_at=None)

    storage.upsert_recurring_job(replace(DECLARED, queue="letters"))

    stored = storage.get_recurring_job("digest")
    assert stored is not None
    assert (stored.enabled, stored.queue) == (False, "letters")


# Templates follow the code of their app, and leave alone what is others'.

NOTHING = Followed(added=(), changed=(), removed=(), refused={})


def declared(*ids: str, cron: str = "0 9 * * *", method: str = "send") -> list[RecurringJob]:
    return [RecurringJob.new(each, cron, method) for each in ids]


def owners(storage: Storage) -> dict[str, str | None]:
    return {template.id: template.app for template in storage.list_recurring_jobs()}


def test_what_the_code_adds_changes_and_has_no_more_is_followed(storage: Storage) -> None:
    first = storage.follow_code("shop", declared("one", "digest", "old"))

    now = [*declared("one", "two"), *declared("digest", cron="0 10 * * *")]
    second = storage.follow_code("shop", now, removing=declared("old"))
    third = storage.follow_code("shop", declared("one", "two"), removing=declared("digest"))

    assert first == replace(NOTHING, added=("digest", "old", "one"))
    assert second == replace(NOTHING, added=("two",), changed=("digest",), removed=("old",))
    assert third == replace(NOTHING, removed=("digest",))
    assert owners(storage) == {"one": "shop", "two": "shop"}


def test_what_is_declared_as_it_was_is_no_change(storage: Storage) -> None:
    storage.follow_code("shop", declared("one"))
    before = storage.list_recurring_jobs()

    assert storage.follow_code("shop", declared("one")) == NOTHING
    assert storage.list_recurring_jobs() == before


def test_nothing_is_deleted_that_was_not_looked_at_nor_is_of_another_app(storage: Storage) -> None:
    storage.follow_code("shop", declared("one"))
    storage.follow_code("", declared("two"))

    assert storage.follow_code("shop", []) == NOTHING
    assert storage.follow_code("", [], removing=declared("one")) == NOTHING
    assert owners(storage) == {"one": "shop", "two": ""}


def test_a_template_that_is_of_another_method_by_now_is_not_deleted(storage: Storage) -> None:
    looked_at = declared("one", "two")
    storage.follow_code("shop", [*declared("one"), *declared("two", method="newer")])

    followed = storage.follow_code("shop", [], removing=looked_at)

    assert followed.removed == ("one",)
    assert owners(storage) == {"two": "shop"}


def test_of_named_templates_only_the_apps_own_of_the_method_are_removed(storage: Storage) -> None:
    storage.follow_code("shop", [*declared("one", "two"), *declared("three", method="other")])
    storage.follow_code("blog", declared("theirs"))

    removed = storage.remove_templates_of("shop", ["one", "three", "theirs", "none"], methods=["send"])

    assert removed == ("one",)
    assert owners(storage) == {"three": "shop", "theirs": "blog", "two": "shop"}


def test_each_app_touches_only_its_own(storage: Storage) -> None:
    storage.upsert_recurring_job(declared("by-hand")[0])
    storage.follow_code("shop", declared("digest", "theirs"))

    blog = storage.follow_code("blog", declared("digest", "mine", "by-hand", cron="0 1 * * *"))
    gone = storage.follow_code("blog", [], removing=declared("digest", "mine", "by-hand"))

    assert blog == replace(NOTHING, added=("mine",), refused={"digest": "shop", "by-hand": None})
    assert gone.removed == ("mine",)
    assert owners(storage) == {"by-hand": None, "digest": "shop", "theirs": "shop"}
    assert {template.cron for template in storage.list_recurring_jobs()} == {"0 9 * * *"}


def test_the_app_of_another_folder_takes_over_what_it_declares_and_deletes_nothing(storage: Storage) -> None:
    storage.follow_code("tasks:app in /releases/1", declared("digest", "old"), spec="tasks:app")

    now = storage.follow_code(
        "tasks:app in /releases/2", declared("digest"), spec="tasks:app", removing=declared("old")
    )
    other = storage.follow_code("tasks:app2 in /", declared("digest"), spec="tasks:app2")

    assert now == replace(NOTHING, changed=("digest",), taken={"digest": "tasks:app in /releases/1"})
    assert other.refused == {"digest": "tasks:app in /releases/2"}
    assert owners(storage) == {"digest": "tasks:app in /releases/2", "old": "tasks:app in /releases/1"}


def test_an_app_that_is_given_a_name_takes_over_what_it_has_declared_without(storage: Storage) -> None:
    storage.follow_code("tasks:app in /srv", declared("digest"), spec="tasks:app")

    named = storage.follow_code("shop", declared("digest"), spec="tasks:app")

    again = storage.follow_code("shop", declared("digest"), spec="tasks:app")

    assert named == replace(NOTHING, changed=("digest",), taken={"digest": "tasks:app in /srv"})
    assert again == NOTHING
    assert owners(storage) == {"digest": "shop"}


@pytest.mark.parametrize("app", ["shop", ""])
def test_a_person_cannot_replace_what_code_declares(storage: Storage, app: str) -> None:
    storage.follow_code(app, declared("digest"))

    with pytest.raises(ConfigurationError, match="is declared by the code"):
        storage.upsert_recurring_job(declared("digest", cron="0 10 * * *")[0])

    assert storage.list_recurring_jobs()[0].cron == "0 9 * * *"


def test_a_persons_switch_survives_what_the_code_declares(storage: Storage) -> None:
    storage.follow_code("shop", declared("digest"))
    storage.set_recurring_enabled("digest", False, next_run_at=None)

    storage.follow_code("shop", declared("digest", cron="0 10 * * *"))

    (template,) = storage.list_recurring_jobs()
    assert (template.enabled, template.cron) == (False, "0 10 * * *")


@pytest.mark.parametrize("owner", ["?", ""])
def test_a_template_whose_owner_is_not_known_belongs_to_the_first_app_that_declares_it(
    storage: Storage, raw: Raw, owner: str
) -> None:
    for each in declared("digest", "other"):
        storage.upsert_recurring_job(each)
    raw.run("UPDATE {recurring_jobs} SET app = ?", owner)

    assert storage.follow_code("shop", declared("digest")).changed == ("digest",)
    assert storage.follow_code("shop", declared("digest")) == NOTHING
    assert owners(storage) == {"digest": "shop", "other": owner}


def test_a_template_is_declared_from_now_on_by_the_clock_of_the_storage(storage: Storage) -> None:
    """Not by that of a machine three hours behind, nor from the import of a program that runs for long."""
    made_at = storage.now() - timedelta(hours=3)
    old = [RecurringJob.new("tick", "* * * * * *", "send", misfire="catch_up(100)", now=made_at)]

    before = storage.now()
    storage.follow_code("shop", old)
    after = storage.now()

    (template,) = storage.list_recurring_jobs()
    assert template.next_run_at is not None
    assert before <= template.created_at <= after
    assert timedelta() < template.next_run_at - template.created_at <= timedelta(seconds=1)


def test_what_has_fired_is_not_fired_again_when_the_same_code_is_followed_after_its_removal(
    storage: Storage, raw: Raw
) -> None:
    made_at = storage.now() - timedelta(hours=3)
    code = [RecurringJob.new("tick", "0 * * * *", "send", misfire="catch_up(100)", now=made_at)]
    storage.follow_code("shop", code)
    raw.age("recurring_jobs", "next_run_at", timedelta(hours=2))
    fired = storage.fire_due_recurring().jobs
    storage.remove_recurring_job("tick")

    again, more = storage.follow_code("shop", code), storage.fire_due_recurring().jobs

    assert len(fired) in (2, 3)  # the latter when the hour has just struck
    assert (again.added, more) == (("tick",), ())


def test_a_changed_schedule_counts_from_now_on_by_the_clock_of_the_storage(storage: Storage) -> None:
    made_at = storage.now() - timedelta(hours=3)
    storage.follow_code("shop", [RecurringJob.new("tick", "0 9 * * *", "send", now=made_at)])

    storage.follow_code("shop", [RecurringJob.new("tick", "0 * * * *", "send", now=made_at)])

    (template,) = storage.list_recurring_jobs()
    assert template.next_run_at is not None
    assert template.next_run_at > storage.now() - timedelta(minutes=1)


ONCE = "1 52 0 28 11 * 2020"


def test_what_never_fires_again_is_told_as_long_as_it_is_switched_on(storage: Storage) -> None:
    code = [RecurringJob.new("once", ONCE, "send", from_code=True), *declared("daily")]

    followed = [storage.follow_code("shop", code).over for _ in range(2)]
    storage.set_recurring_enabled("once", False, next_run_at=None)

    assert followed == [("once",), ("once",)]
    assert storage.follow_code("shop", code).over == ()
    assert storage.fire_due_recurring().jobs == ()


def test_a_template_whose_zone_is_not_known_here_is_left_as_others_have_stored_it(
    storage: Storage, raw: Raw
) -> None:
    with pytest.warns(UserWarning, match="Atlantis"):
        lacking = [
            RecurringJob.new(each, "0 9 * * *", "send", tz="Europe/Atlantis", from_code=True) for each in "ab"
        ]
    storage.follow_code("shop", declared("a"))
    raw.run("UPDATE {recurring_jobs} SET tz = 'Europe/Atlantis'")  # as a machine has it that knows the zone
    before = storage.list_recurring_jobs()

    followed = storage.follow_code("shop", [*lacking, *declared("c")])

    told = {"a": "Europe/Atlantis", "b": "Europe/Atlantis"}
    assert followed == replace(NOTHING, added=("c",), lacking=told)
    assert storage.list_recurring_jobs()[:1] == before
    assert owners(storage) == {"a": "shop", "c": "shop"}


def test_servers_that_start_at_once_add_each_template_once(storage: Storage, url: str) -> None:
    storage.migrate()
    storage.close()

    def start() -> None:
        with closing(open_patiently(url)) as mine:
            followed = mine.follow_code("shop", declared("a", "b", "c"))
            assert followed.added in ((), ("a", "b", "c"))

    assert in_children([partial(start)] * 4) == [0] * 4
    assert owners(storage) == {"a": "shop", "b": "shop", "c": "shop"}


# A template that several servers declare, fire and switch at the same moment.

DAILY = RecurringJob.new("digest", "0 0 9 * * *", "send_digest", payload={"to": "all"}, queue="mail")


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


def minutely(cron: str) -> RecurringJob:
    return RecurringJob.new("tick", cron, "work")


def fired_for(storage: Storage) -> list[str]:
    """The firing times of all jobs, each as the job is told of it."""
    return [str(job.metadata["fire_at"]) for job in storage.list_jobs(JobFilter()).jobs]


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
