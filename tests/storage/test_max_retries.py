"""Tests of the storage: no retry, so many, and "the policy decides" are three things in one column."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from qml_mp import QmlApp
from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.storage.conftest import Raw
from tests.storage.helpers import KEEP, claim_new, fetch, present
from tests.unit.processor_case import run


@pytest.mark.parametrize("max_retries", [None, 0, 1, 2**31 - 1])
def test_max_retries_is_read_back_as_it_was_written(storage: Storage, max_retries: int | None) -> None:
    claim = claim_new(storage, max_retries=max_retries)

    assert claim.job.max_retries == max_retries
    assert present(storage, claim).max_retries == max_retries


@pytest.mark.parametrize(("column", "meant"), [(0, None), (-1, 0), (3, 3), (-7, None)])
def test_a_row_of_another_program_means_what_it_does_in_the_reference(
    storage: Storage, raw: Raw, column: int, meant: int | None
) -> None:
    job_id = raw.add_job(max_retries=column)

    assert present(storage, job_id).max_retries == meant


@pytest.mark.parametrize("made_by", ["a firing", "hand", "name alone"])
def test_a_job_whose_row_says_nothing_is_retried_as_often_as_its_function_says(
    storage: Storage, made_by: str
) -> None:
    app = QmlApp()

    @app.recurring("0 3 1 * *")
    @app.job(max_retries=0)
    def charge_customers() -> None:
        raise OSError("half way")

    storage.upsert_recurring_job(app.program.recurring[0])
    match made_by:
        case "a firing":
            storage.set_recurring_enabled(
                "charge_customers", True, next_run_at=datetime(2025, 1, 1, tzinfo=UTC)
            )
            storage.fire_due_recurring()
        case "hand":
            storage.run_recurring_now("charge_customers")
        case "name alone":
            storage.enqueue(Job.new("charge_customers"))
    claim = storage.fetch_and_lock_job(fetch("default"))
    assert claim is not None
    storage.finish(claim, run(app.registry.get("charge_customers"), claim), retention=KEEP)

    job = present(storage, claim)
    assert (job.state_name, job.failures) == (StateName.FAILED, 1)
