"""Tests of the storage: each operation on a job in each state, held to the one transition table."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import pytest

from qml_mp.core.job import Claim, Job
from qml_mp.core.state import TRANSITIONS
from qml_mp.core.state import StateName as S
from qml_mp.errors import InvalidTransition
from qml_mp.storage.store import Storage
from tests.storage.conftest import Raw
from tests.storage.helpers import HOUR, KEEP, fetch, job_in, present
from tests.storage.test_finish import OUTCOMES

WAITING = (S.SCHEDULED, S.AWAITING_RETRY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What is done to the job, and the state it leads to from each state that allows it."""

    act: Callable[[Storage, Claim, Raw], object]
    leads: dict[S, S]


def promote(storage: Storage, _: Claim, raw: Raw) -> None:
    past = raw.instant(datetime.now(UTC) - HOUR)
    raw.run("UPDATE {jobs} SET run_at = ? WHERE state IN ('scheduled', 'awaiting_retry')", past)
    storage.promote_due(limit=10)


def simply(act: Callable[[Storage, Claim], object]) -> Callable[[Storage, Claim, Raw], object]:
    return lambda storage, claim, _raw: act(storage, claim)


def finish(name: str) -> Callable[[Storage, Claim, Raw], object]:
    return simply(lambda storage, claim: storage.finish(claim, OUTCOMES[name], retention=KEEP))


OPERATIONS = {
    "claim": Operation(
        act=simply(lambda storage, claim: storage.fetch_and_lock_job(fetch(claim.job.queue))),
        leads={S.ENQUEUED: S.PROCESSING},
    ),
    "delete": Operation(
        act=simply(lambda storage, claim: storage.delete(claim.job.id, reason="r", retention=KEEP)),
        leads=dict.fromkeys((S.ENQUEUED, *WAITING, S.SUCCEEDED, S.FAILED), S.DELETED),
    ),
    "retry by hand": Operation(
        act=simply(lambda storage, claim: storage.retry(claim.job.id)), leads={S.FAILED: S.ENQUEUED}
    ),
    "cancel": Operation(
        act=simply(lambda storage, claim: storage.request_cancel(claim.job.id, reason="r", retention=KEEP)),
        leads=dict.fromkeys((S.ENQUEUED, *WAITING), S.DELETED),
    ),
    "promote": Operation(act=promote, leads=dict.fromkeys(WAITING, S.ENQUEUED)),
    "requeue stranded": Operation(
        act=simply(lambda storage, _: storage.requeue_stranded_jobs(datetime.now(UTC) + HOUR)),
        leads={S.PROCESSING: S.ENQUEUED},
    ),
    "reclaim server": Operation(
        act=simply(lambda storage, _: storage.reclaim_server("server#1", silent_for=None)),
        leads={S.PROCESSING: S.ENQUEUED},
    ),
    "success": Operation(act=finish("success"), leads={S.PROCESSING: S.SUCCEEDED}),
    "retry": Operation(act=finish("retry"), leads={S.PROCESSING: S.AWAITING_RETRY}),
    "failure": Operation(act=finish("failure"), leads={S.PROCESSING: S.FAILED}),
    "cancelled": Operation(act=finish("cancelled"), leads={S.PROCESSING: S.DELETED}),
    "release": Operation(act=finish("release"), leads={S.PROCESSING: S.ENQUEUED}),
    "crash": Operation(act=finish("crash, run again later"), leads={S.PROCESSING: S.AWAITING_RETRY}),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_makes_only_the_transitions_of_the_table(storage: Storage, raw: Raw, name: str) -> None:
    operation = OPERATIONS[name]
    for state in S:
        claim = job_in(storage, state)
        before, attempts = present(storage, claim), storage.attempts(claim.job.id)
        assert before.state_name is state

        with suppress(InvalidTransition):
            operation.act(storage, claim, raw)

        after = present(storage, claim)
        assert after.state_name is operation.leads.get(state, state)
        if state in operation.leads:
            assert after.state_name in TRANSITIONS[state]
        else:
            assert unasked(after) == unasked(before)
            assert storage.attempts(claim.job.id) == attempts


def unasked(job: Job) -> Job:
    """The job without the one thing that asking for a cancel may change."""
    return replace(job, cancel_reason=None)


@pytest.mark.parametrize("state", [S.PROCESSING, S.DELETED])
def test_deleting_a_job_that_cannot_be_says_why(storage: Storage, state: S) -> None:
    claim = job_in(storage, state)

    with pytest.raises(InvalidTransition, match=f"{claim.job.id} is {state}"):
        storage.delete(claim.job.id, reason="r", retention=KEEP)


@pytest.mark.parametrize("state", [state for state in S if state is not S.FAILED])
def test_retrying_a_job_that_did_not_fail_says_why(storage: Storage, state: S) -> None:
    claim = job_in(storage, state)

    with pytest.raises(InvalidTransition, match=f"{claim.job.id} is {state}"):
        storage.retry(claim.job.id)
