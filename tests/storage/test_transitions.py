"""Tests of the storage: each operation on a job in each state, held to the one transition table."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import pytest

from qml_mp.core.job import Claim
from qml_mp.core.state import StateName as S
from qml_mp.core.state import may_become
from qml_mp.errors import InvalidTransition
from qml_mp.storage.protocol import Storage
from tests.storage.conftest import Raw
from tests.storage.helpers import HOUR, KEEP, fetch, job_in, present
from tests.storage.test_finish import OUTCOMES

WAITING = (S.SCHEDULED, S.AWAITING_RETRY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What is done to the job, and the state it leads to from each state that allows it."""

    act: Callable[[Storage, Claim, Raw], object]
    leads: dict[S, S]


def promote(storage: Storage, claim: Claim, raw: Raw) -> None:
    raw.run("UPDATE {jobs} SET run_at = ? WHERE run_at IS NOT NULL", raw.instant(datetime.now(UTC) - HOUR))
    storage.promote_due(limit=10)


def finish(name: str) -> Callable[[Storage, Claim, Raw], object]:
    return lambda storage, claim, raw: storage.finish(claim, OUTCOMES[name], retention=KEEP)


OPERATIONS = {
    "claim": Operation(
        act=lambda storage, claim, raw: storage.fetch_and_lock_job(fetch(claim.job.queue)),
        leads={S.ENQUEUED: S.PROCESSING},
    ),
    "delete": Operation(
        act=lambda storage, claim, raw: storage.delete(claim.job.id, reason="r", retention=KEEP),
        leads={old: S.DELETED for old in (S.ENQUEUED, S.SCHEDULED, S.AWAITING_RETRY, S.SUCCEEDED, S.FAILED)},
    ),
    "retry by hand": Operation(
        act=lambda storage, claim, raw: storage.retry(claim.job.id), leads={S.FAILED: S.ENQUEUED}
    ),
    "cancel": Operation(
        act=lambda storage, claim, raw: storage.request_cancel(claim.job.id, reason="r", retention=KEEP),
        leads={old: S.DELETED for old in (S.ENQUEUED, *WAITING)},
    ),
    "promote": Operation(act=promote, leads={old: S.ENQUEUED for old in WAITING}),
    "requeue stranded": Operation(
        act=lambda storage, claim, raw: storage.requeue_stranded_jobs(datetime.now(UTC) + HOUR),
        leads={S.PROCESSING: S.ENQUEUED},
    ),
    "reclaim server": Operation(
        act=lambda storage, claim, raw: storage.reclaim_server("server#1", silent_for=None),
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
            assert may_become(state, after.state_name)
        else:
            assert without_request(after, raw) == without_request(before, raw)
            assert storage.attempts(claim.job.id) == attempts


def without_request(job: object, raw: Raw) -> object:
    """The job without what asking for a cancel, or the test's own haste with `run_at`, may change."""
    assert hasattr(job, "cancel_reason")
    return replace(job, cancel_reason=None, run_at=None, state=None)  # type: ignore[type-var]


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
