"""Tests of the storage: a result that could not be stored is told from every result that was."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta

import pytest

from qml_mp import JobHandle, ResultNotStored
from qml_mp.core.outcome import Success
from qml_mp.core.payload import JsonValue
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.storage.conftest import Raw
from tests.storage.helpers import KEEP, claim_new, present

WHY = "InvalidJob: The result is 2,000,000 bytes of JSON; the limit is 1,048,576."
DROPPED = Success(result=None, duration=timedelta(seconds=1), not_stored=WHY)


def test_a_result_that_could_not_be_stored_is_raised_and_not_returned(storage: Storage) -> None:
    claim = claim_new(storage)
    storage.finish(claim, DROPPED, retention=KEEP)
    handle = JobHandle(claim.job.id, storage=storage)

    asks: list[Callable[[], JsonValue]] = [lambda: handle.wait(0), lambda: handle.result]
    for ask in asks:
        with pytest.raises(ResultNotStored) as told:
            ask()
        assert (told.value.job_id, told.value.reason) == (claim.job.id, WHY)
        assert str(told.value) == (
            f"The job {claim.job.id} (work) succeeded, but its result was not stored: {WHY}"
        )
    assert handle.state is StateName.SUCCEEDED


def test_the_json_of_the_job_says_why_there_is_no_result(storage: Storage) -> None:
    claim = claim_new(storage)
    storage.finish(claim, DROPPED, retention=KEEP)

    printed = present(storage, claim).to_json()

    assert (printed["state"], printed["result"], printed["result_not_stored"]) == ("succeeded", None, WHY)


@pytest.mark.parametrize(
    "result", [None, {"qml_mp_dropped_result": "mine"}, {"result_not_stored": "mine"}, {"reason": WHY}, WHY]
)
def test_no_result_of_a_users_looks_like_one_that_was_dropped(storage: Storage, result: JsonValue) -> None:
    claim = claim_new(storage)
    storage.finish(claim, Success(result=result, duration=timedelta(seconds=1)), retention=KEEP)

    assert JobHandle(claim.job.id, storage=storage).wait(0) == result
    assert "result_not_stored" not in present(storage, claim).to_json()


def test_what_was_said_of_an_earlier_release_does_not_stay(storage: Storage, raw: Raw) -> None:
    claim = claim_new(storage)
    raw.run("UPDATE {jobs} SET reason = 'the server stopped' WHERE id = ?", claim.job.id)

    storage.finish(claim, Success(result=3, duration=timedelta(seconds=1)), retention=KEEP)

    assert JobHandle(claim.job.id, storage=storage).wait(0) == 3


def test_a_result_that_cannot_be_read_back_is_not_returned_as_none(storage: Storage, raw: Raw) -> None:
    claim = claim_new(storage)
    storage.finish(claim, Success(result=3, duration=timedelta(seconds=1)), retention=KEEP)
    raw.run("UPDATE {jobs} SET result = ? WHERE id = ?", json.dumps({"a": 1})[:-1], claim.job.id)

    with pytest.raises(ResultNotStored, match="not readable JSON"):
        JobHandle(claim.job.id, storage=storage).wait(0)


def test_why_a_result_was_dropped_is_bounded_and_storable(storage: Storage) -> None:
    claim = claim_new(storage)

    finished = storage.finish(
        claim, Success(result=None, duration=timedelta(0), not_stored="\0\ud800" * 10_000), retention=KEEP
    )

    assert finished.job == present(storage, claim)
    assert 0 < len(finished.job.result_not_stored or "") < 10_000
