"""Tests of the storage: a template that qml-mp switched off, when its app declares it again."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from qml_mp.core.recurring import RecurringJob
from qml_mp.storage.store import Storage
from tests.storage.conftest import Raw

DAY = timedelta(days=1)
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
        {"tz": "Europe/Berlin"},
        {"method": "send_letter"},
        {"payload": {"to": "some"}},
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
