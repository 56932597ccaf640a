"""Every process: claims that are given back by others than their workers, in an open transaction."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial

from qml_mp.core.begun import begun_by_worker
from qml_mp.core.job import Claim, ClaimKey
from qml_mp.core.outcome import Release
from qml_mp.errors import StorageError
from qml_mp.storage.database import Database, Result, RowsRefused, Transaction
from qml_mp.storage.left_out import LeftOut
from qml_mp.storage.outcomes import write_change
from qml_mp.storage.row_change import row_change
from qml_mp.storage.storable import storable_change
from qml_mp.storage.values import Retention

_ASKED_FOR_TOGETHER = 100
"""How many changes, of a row each, have one limit for their replies."""


Released = Callable[[Transaction, Sequence[Claim]], int]
"""Give back claims whose rows are locked in the open transaction and read under the lock; how many."""


def give_back(
    db: Database,
    release: Release,
    retention: Retention,
    transact: Callable[[Released, LeftOut | None], int],
    *,
    left_out: LeftOut | None,
) -> int:
    """How many `transact` gives back, in a transaction of its own: at first all or none; where the database
    refuses some, and with `left_out`, all but these. It is told of `left_out` then: what is refused is undone
    within the transaction, which would leave a pipeline out of step."""
    if left_out is None or not left_out.ids:
        try:
            return transact(partial(_release_all, db, release=release, retention=retention), None)
        except StorageError as error:
            if left_out is None or not db.refuses_rows(error):
                raise
    but_refused = partial(_release_but_refused, db, release=release, retention=retention, left_out=left_out)
    return transact(but_refused, left_out)


def _release_all(
    db: Database, transaction: Transaction, claims: Sequence[Claim], release: Release, retention: Retention
) -> int:
    """A job whose cancel was asked for ends Deleted instead, as everywhere."""
    return _release(db, transaction, claims, release, retention, begun=_begun(claims))


def _release_but_refused(
    db: Database,
    transaction: Transaction,
    claims: Sequence[Claim],
    release: Release,
    retention: Retention,
    *,
    left_out: LeftOut,
) -> int:
    """The same for those that are not to be left out yet. What the database refuses of them is undone and
    left out; and some are not tried where it refuses many.

    Which claims had begun is told by all that are held: of one that is left out alone, it is taken for begun
    the next time.
    """
    by_id, begun = {claim.job.id: claim for claim in claims}, _begun(claims)
    left_out.keep(by_id.keys())
    # Each by tries of their own: where many are refused again and again, the others would never have one.
    again, refused = left_out.due(), set(left_out.ids)
    never_refused = [job_id for job_id in by_id if job_id not in refused]

    def release_these(job_ids: Sequence[str]) -> int:
        these = [by_id[job_id] for job_id in job_ids]
        return transaction.apart(lambda: _release(db, transaction, these, release, retention, begun=begun))

    def is_refusal(error: StorageError) -> bool:
        return isinstance(error, RowsRefused)

    return sum(left_out.change(each, release_these, is_refusal=is_refusal) for each in (never_refused, again))


def _release(
    db: Database,
    transaction: Transaction,
    claims: Sequence[Claim],
    release: Release,
    retention: Retention,
    *,
    begun: Collection[ClaimKey],
) -> int:
    def write(claim: Claim) -> Result:
        is_begun = claim.key in begun
        change = row_change(claim.job, replace(release, not_begun=not is_begun), retention)
        return write_change(db, transaction, claim, storable_change(change), is_lost=is_begun)

    count = 0
    for first in range(0, len(claims), _ASKED_FOR_TOGETHER):
        results = [write(claim) for claim in claims[first : first + _ASKED_FOR_TOGETHER]]
        count += sum(result.written_at is not None for result in results)
    return count


def _begun(claims: Sequence[Claim]) -> Collection[ClaimKey]:
    return {claim.key for claim in begun_by_worker(claims).values()}  # the others were no attempts
