"""Every process: the jobs that follow others, enqueued by the commit that writes how these ended."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from qml_mp.core.job import Claim, ClaimKey, Job
from qml_mp.core.outcome import Outcome, Success
from qml_mp.storage.database import Transaction
from qml_mp.storage.queries import JobQueries
from qml_mp.storage.storable import new_row
from qml_mp.storage.unique import insert_unique, keep_others_out, wishes_of
from qml_mp.storage.values import Retention

_Finished = Sequence[tuple[Claim, Outcome]]


def keep_their_keys(queries: JobQueries, transaction: Transaction, finished: _Finished) -> None:
    """Before any job is locked, as whoever enqueues has the keys before the jobs: a job that is followed by
    one of its own key, and a producer that replaces it, would wait for each other."""
    keep_others_out(queries, transaction, wishes_of([job for _, job in _follow_ups(finished)]).values())


def enqueue_follow_ups(
    queries: JobQueries,
    transaction: Transaction,
    finished: _Finished,
    held: Collection[ClaimKey],
    retention: Retention,
    *,
    freed: bool,
) -> None:
    """Of those that end successes of claims that are held: the ones whose key the very jobs have that end so,
    or (not `freed`) all others.

    The others before any outcome is written. A new job waits at its key for whoever has ended the job that
    has it and not committed yet; so who waits must not have ended one himself, at whose key others wait.
    """
    keys = {claim.job.unique_key for claim, _ in finished if claim.key in held} - {None}
    jobs = [job for key, job in _follow_ups(finished) if key in held and (job.unique_key in keys) is freed]
    if jobs:
        rows = [new_row(job) for job in jobs]
        insert_unique(queries, transaction, rows, wishes_of(jobs), retention=retention)


def _follow_ups(finished: _Finished) -> Iterator[tuple[ClaimKey, Job]]:
    for claim, outcome in finished:
        if isinstance(outcome, Success) and outcome.extras is not None:
            yield from ((claim.key, job) for job in outcome.extras.follow_ups)
