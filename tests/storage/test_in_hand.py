"""Tests of the storage: which claim of a dead worker is charged with its death."""

from __future__ import annotations

from typing import Any

import pytest

from qml_mp.core.job import Claim, Job
from qml_mp.core.outcome import ProcessFacts, Release
from qml_mp.core.state import StateName
from qml_mp.events.emitter import new_emitter
from qml_mp.ipc.ended import Uncounted
from qml_mp.ipc.slot import Activity, SlotView
from qml_mp.storage.store import Storage
from qml_mp.supervisor.recovery.settle import settle
from qml_mp.supervisor.workers.death import Death
from tests.storage.claimer import FETCH, register
from tests.storage.helpers import KEEP, present

NOT_BEGUN = Release(reason="not begun", not_begun=True)
NOT_KEPT = Uncounted(method="work", queue="default", waited_us=1, ran_us=1, outcome=None)


@pytest.fixture
def claims(storage: Storage) -> tuple[Claim, ...]:
    register(storage)
    storage.enqueue_many([Job.new("work"), Job.new("work"), Job.new("work")])
    return storage.exchange((), fetch=FETCH, limit=3, retention=KEEP).claims


def charged(storage: Storage, claims: tuple[Claim, ...], **said: Any) -> list[int]:
    """The places of the claims that the death of their worker is charged to."""
    death = Death(worker_id="w-1", number=1, process=ProcessFacts(pid=4242, exit_code=1), **said)
    settle(storage, death, max_crashes=3, retention=KEEP, events=new_emitter())
    return [place for place, claim in enumerate(claims) if present(storage, claim).crashes]


def running(claim: Claim) -> SlotView:
    return SlotView(activity=Activity.RUNNING, key=claim.key)


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_a_claim_that_is_shown_is_charged_if_the_worker_had_taken_it(
    storage: Storage, claims: tuple[Claim, ...], taken: int
) -> None:
    assert charged(storage, claims, slot=running(claims[taken]), has_taken=True) == [taken]


def test_a_claim_that_is_shown_because_it_goes_back_is_not_charged(
    storage: Storage, claims: tuple[Claim, ...]
) -> None:
    ended = {claims[1].key: NOT_BEGUN}

    assert charged(storage, claims, slot=running(claims[2]), ended=ended) == []


def test_a_job_that_has_ended_of_which_nothing_was_kept_is_charged_whatever_went_back_since(
    storage: Storage, claims: tuple[Claim, ...]
) -> None:
    said = {"slot": running(claims[2]), "ended": {claims[1].key: NOT_BEGUN}}

    assert charged(storage, claims, uncounted={claims[0].key: NOT_KEPT}, **said) == [0]


def test_of_several_jobs_that_have_ended_of_which_nothing_was_kept_none_is_charged(
    storage: Storage, claims: tuple[Claim, ...]
) -> None:
    not_kept = {claim.key: NOT_KEPT for claim in claims[:2]}

    assert charged(storage, claims, uncounted=not_kept, slot=running(claims[1]), has_taken=True) == []
    assert [present(storage, claim).state_name for claim in claims] == [StateName.ENQUEUED] * 3


def test_that_one_of_them_is_history_by_then_does_not_make_the_other_the_guilty_one(
    storage: Storage, claims: tuple[Claim, ...]
) -> None:
    storage.finish(claims[0], Release(reason="by somebody else"), retention=KEEP)
    not_kept = {claim.key: NOT_KEPT for claim in claims[:2]}

    assert charged(storage, claims, uncounted=not_kept) == []
