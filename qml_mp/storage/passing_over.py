"""Every process: rows that another program has written so that they cannot be claimed. They are failed, and
the claim goes on with the next.

The database refuses some of them. Of an id the table looks at the characters alone; tickets, and keys in
shared memory, have the 16 bytes of a UUID, so another id would break its worker.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from qml_mp.core.failure_kinds import failure_key
from qml_mp.core.job import Claim
from qml_mp.core.outcome import ErrorInfo, Failure
from qml_mp.storage.database import Database, Values
from qml_mp.storage.queries import TakeQueries
from qml_mp.storage.row_change import unclaimable
from qml_mp.storage.rows import text_of
from qml_mp.storage.values import Retention

logger = logging.getLogger(__name__)


def fail_unclaimable(db: Database, take: TakeQueries, wanted: Values, retention: Retention) -> None:
    """Set Failed those of the best jobs that are proved to be ones that cannot be claimed. Another worker may
    have done so meanwhile: the best jobs are then others, and stay as they are."""
    queries = db.queries
    failed = {}
    with db.transaction("passing over a job that cannot be claimed", pipelined=False) as transaction:
        for job_id in [str(best["id"]) for best in transaction.run(take.best, wanted).rows()]:
            refusal = transaction.refusal_of(queries.claims.claim_this, {**wanted, "id": job_id})
            if refusal is not None:
                problem = failed[job_id] = unclaimable(refusal)
                [row] = transaction.run(queries.jobs.get, {"id": job_id}).rows()
                key = failure_key(text_of(row["method"]), problem.type, None)
                change = {"id": job_id, "ttl": retention.failed_ttl}
                error = {"type": problem.type, "message": problem.message, "key": key}
                transaction.run(queries.claims.fail_unclaimable, change | error)
        if failed:
            transaction.run(queries.failures.note_all, {"ids": sorted(failed)})
    for job_id, problem in failed.items():
        _tell(job_id, problem)


def without_odd_ids(
    claims: tuple[Claim, ...], finish: Callable[[Claim, Failure], object]
) -> tuple[Claim, ...]:
    """The claims whose ids are UUIDs; the others are given to `finish`."""
    odd = [claim for claim in claims if not is_uuid(claim.job.id)]
    if not odd:
        return claims
    problem = unclaimable("Its id is not a UUID.")
    for claim in odd:
        finish(claim, Failure(error=problem))
        _tell(claim.job.id, problem)
    return tuple(claim for claim in claims if claim not in odd)


def is_uuid(job_id: str) -> bool:
    """Of 36 digits and dashes, as the table has it: a third of what a regular expression takes."""
    return job_id[8:24:5] == "----" and job_id.count("-") == 4


def _tell(job_id: str, problem: ErrorInfo) -> None:
    logger.error("Job %s is failed: %s", job_id, problem.message, extra={"job_id": job_id})
