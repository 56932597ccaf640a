"""Tests: what is told of something that fails and is tried again, and how its pauses grow."""

from __future__ import annotations

import random
from functools import partial

import pytest

from qml_mp.errors import StorageUnavailable
from qml_mp.events.emitter import Emitter, new_emitter
from qml_mp.events.facts import Event, StorageBack, StorageLost
from qml_mp.events.retrying import Retrying

REFUSED = StorageUnavailable("refused")


def tries_of(events: Emitter) -> Retrying:
    lost, back = partial(StorageLost, worker_id="w"), StorageBack(worker_id="w")
    return Retrying(events, fails=lost, works=back, rng=random.Random(7))


def test_an_outage_has_one_line_when_it_begins_when_it_changes_and_when_it_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "qml_mp")
    tries = tries_of(new_emitter())

    for text in ("refused", "refused", "refused", "starting up", "starting up"):
        tries.failed("Cannot claim a job", StorageUnavailable(text))
    tries.worked()
    tries.worked()

    assert [record.getMessage() for record in caplog.records] == [
        "Cannot claim a job, will try again: refused",
        "Cannot claim a job, will try again: starting up",
        "Storage answers again",
    ]
    assert {vars(record)["worker_id"] for record in caplog.records} == {"w"}


def test_an_outage_that_says_now_this_and_now_that_has_a_line_for_each(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "qml_mp")
    tries = tries_of(new_emitter())

    for text in ("too many clients", "slots are reserved") * 20:
        tries.failed("Cannot claim a job", StorageUnavailable(text))
    tries.worked()
    tries.failed("Cannot claim a job", StorageUnavailable("slots are reserved"))

    assert [record.getMessage() for record in caplog.records] == [
        "Cannot claim a job, will try again: too many clients",
        "Cannot claim a job, will try again: slots are reserved",
        "Storage answers again",
        "Cannot claim a job, will try again: slots are reserved",
    ]


def test_an_outage_that_says_something_new_each_time_has_a_few_lines(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "qml_mp")
    tries = tries_of(new_emitter())

    for number in range(200):
        tries.failed("Cannot claim a job", StorageUnavailable(f"refused for the {number}th time"))

    assert len(caplog.records) == 10


def test_each_failed_try_is_a_fact_with_its_pause_and_one_that_works_only_after_a_failure() -> None:
    told: list[Event] = []
    tries = tries_of(Emitter(told.append))

    tries.worked()
    pauses_s = [tries.failed("Cannot claim a job", REFUSED) for _ in range(2)]
    tries.worked()

    first, second, back = told
    assert isinstance(first, StorageLost)
    assert isinstance(second, StorageLost)
    assert [each.retry_in.total_seconds() for each in (first, second)] == pytest.approx(pauses_s, abs=1e-6)
    assert (first.is_repeated, second.is_repeated) == (False, True)
    assert back == StorageBack(worker_id="w")


def test_the_pauses_grow_to_less_than_two_seconds_and_begin_anew_after_the_outage() -> None:
    tries = tries_of(Emitter(lambda _: None))

    pauses_s = [tries.failed("Cannot claim a job", REFUSED) for _ in range(10)]
    tries.worked()
    again_s = tries.failed("Cannot claim a job", REFUSED)

    assert pauses_s[0] <= 0.2
    assert all(1.0 <= pause_s <= 1.5 for pause_s in pauses_s[5:10])
    assert again_s <= 0.2


@pytest.mark.fault(76)
def test_however_long_it_has_failed_the_next_try_comes_within_two_seconds() -> None:
    tries = tries_of(Emitter(lambda _: None))

    pauses_s = []
    for _ in range(200):
        tries.failed("Cannot claim a job", REFUSED, now=100.0)
        pauses_s.append(tries.not_before - 100.0)

    assert max(pauses_s) < 2
    assert pauses_s[0] < pauses_s[2] < pauses_s[5]
