"""Tests of the storage: templates follow the code of their app, and leave alone what is others'."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from functools import partial

import pytest

from qml_mp.core.recurring import Followed, RecurringJob
from qml_mp.errors import ConfigurationError
from qml_mp.storage.store import Storage
from tests.storage.conftest import Raw
from tests.storage.helpers import in_children, open_patiently

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


def test_a_last_firing_that_is_due_is_made_and_is_not_over_before(storage: Storage, raw: Raw) -> None:
    soon = storage.now().replace(microsecond=0) + timedelta(days=1)
    cron = f"{soon.second} {soon.minute} {soon.hour} {soon.day} {soon.month} * {soon.year}"
    storage.follow_code("shop", [RecurringJob.new("once", cron, "send", from_code=True)])
    late = soon - timedelta(days=2)
    raw.run(
        "UPDATE {recurring_jobs} SET next_run_at = ?, cron = ?",
        raw.instant(late),
        (past := f"{late.second} {late.minute} {late.hour} {late.day} {late.month} * {late.year}"),
    )
    code = [RecurringJob.new("once", past, "send", from_code=True)]

    before, made = storage.follow_code("shop", code), storage.fire_due_recurring().jobs
    after = storage.follow_code("shop", code)

    assert (before, len(made), after) == (NOTHING, 1, replace(NOTHING, over=("once",)))


def test_a_template_that_is_changed_to_what_is_over_is_told(storage: Storage) -> None:
    storage.follow_code("shop", declared("once"))

    followed = storage.follow_code("shop", [RecurringJob.new("once", ONCE, "send", from_code=True)])

    assert followed == replace(NOTHING, changed=("once",), over=("once",))


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


def test_what_a_firing_waits_for_survives_a_declaration(storage: Storage, raw: Raw) -> None:
    late = storage.now().replace(microsecond=0) - timedelta(seconds=1)
    cron = f"{late.second} {late.minute} {late.hour} * * *"
    template = RecurringJob.new("digest", cron, "send", misfire="catch_up(2)", overlap="queue")
    storage.follow_code("shop", [template])
    raw.run("UPDATE {recurring_jobs} SET next_run_at = ?", raw.instant(late - timedelta(days=1)))
    storage.fire_due_recurring()

    storage.follow_code("shop", [replace(template, queue="mail")])

    assert storage.list_recurring_jobs()[0].waiting_for == late


def test_servers_that_start_at_once_add_each_template_once(storage: Storage, url: str) -> None:
    storage.migrate()
    storage.close()

    def start() -> None:
        with closing(open_patiently(url)) as mine:
            followed = mine.follow_code("shop", declared("a", "b", "c"))
            assert followed.added in ((), ("a", "b", "c"))

    assert in_children([partial(start)] * 4) == [0] * 4
    assert owners(storage) == {"a": "shop", "b": "shop", "c": "shop"}
