"""Every process: new jobs written, and what becomes of those whose unique key another job has.

A job that has not ended has its key by an index of the table. One that was enqueued with `unique_for` holds
it by a row of the named locks too, which outlives its end, and of which only who asks for a period knows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import groupby

from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.errors import StorageUnavailable
from qml_mp.storage.database import Transaction, Values
from qml_mp.storage.queries import JobQueries
from qml_mp.storage.rows import text_of
from qml_mp.storage.storable import NewRow
from qml_mp.storage.values import Retention

_TRIES = 5
_UNTIL_THE_END = timedelta(minutes=1)
_RESOURCE = "qml-mp:unique:"
"""Before the key; no lock of a user begins so."""


def wishes_of(jobs: Iterable[Job]) -> dict[str, Job]:
    """By id, those that want more of their key than that no other job has it."""
    return {
        job.id: job
        for job in jobs
        if job.unique_key is not None and (job.unique_for is not None or job.on_conflict == "replace")
    }


def insert_unique(
    queries: JobQueries,
    transaction: Transaction,
    rows: Sequence[NewRow],
    wishes: Mapping[str, Job],
    *,
    retention: Retention,
) -> list[str]:
    """Insert them as if one by one, in the order given; for each row the id of the job that stands for it.

    That is the row's own id, or the id of the job that has its key: one that has not ended, or whose period
    has not. One that makes place is Deleted, and kept as `retention` says.
    """
    several = _wanted_several_times(rows, wishes) if wishes else frozenset()
    if not several:
        return _insert_together(queries, transaction, rows, wishes, retention)
    keep_others_out(queries, transaction, wishes.values())
    _lock_replaced(queries, transaction, wishes.values())
    stands_for: dict[str, str] = {}
    # By their keys, as two lists that enqueue the same ones would wait for each other. Those of one key one
    # after the other, as each may be kept, or replaced, by the next.
    by_key = sorted(rows, key=lambda row: row.unique_key or "")
    for is_several, group in groupby(by_key, lambda row: row.unique_key in several):
        if not is_several:
            together = list(group)
            its_wishes = _of_rows(wishes, together)
            ids = _insert_together(queries, transaction, together, its_wishes, retention)
            stands_for |= {row.id: job_id for row, job_id in zip(together, ids, strict=True)}
            continue
        for row in group:
            its_wish = _of_rows(wishes, [row])
            if _is_there(queries, transaction, row.id):
                # By an earlier try, whose reply was lost. The next of the list may have replaced it.
                _free_unused(queries, transaction, its_wish, {})
            else:
                [stands_for[row.id]] = _insert_together(queries, transaction, [row], its_wish, retention)
    return [stands_for.get(row.id, row.id) for row in rows]


def _of_rows(wishes: Mapping[str, Job], rows: Iterable[NewRow]) -> dict[str, Job]:
    return {row.id: wishes[row.id] for row in rows if row.id in wishes}


def _wanted_several_times(rows: Sequence[NewRow], wishes: Mapping[str, Job]) -> frozenset[str | None]:
    """The keys that several of the rows have, and one of them does not merely keep the job that has it."""
    wanted = Counter(row.unique_key for row in rows)
    return frozenset(job.unique_key for job in wishes.values() if wanted[job.unique_key] > 1)


def _insert_together(
    queries: JobQueries,
    transaction: Transaction,
    rows: Sequence[NewRow],
    wishes: Mapping[str, Job],
    retention: Retention,
) -> list[str]:
    """`insert_unique` of rows whose keys differ, save of those that merely keep the job that has it."""
    stands_for = dict(_held_by_others(queries, transaction, wishes, retention)) if wishes else {}
    wanted = [row for row in rows if row.id not in stands_for]
    missing = transaction.insert(wanted) if wanted else ()
    for _ in range(_TRIES):
        if missing:
            holders = dict(_holders(queries, transaction, missing))
            stands_for.update(
                (row_id, holder)
                for row_id, holder in holders.items()
                if row_id == holder or _keeps(queries, transaction, wishes.get(row_id), holder, retention)
            )
            missing = [row for row in missing if row.id not in stands_for]
        if not missing:
            ids = [stands_for.get(row.id, row.id) for row in rows]
            _free_unused(queries, transaction, wishes, stands_for)
            return ids
        # The job that held a key ended between the two queries, or was replaced: the key is free again.
        missing = transaction.insert(missing)
    raise StorageUnavailable("Unique keys changed hands too quickly to enqueue; try again.")


def _held_by_others(
    queries: JobQueries, transaction: Transaction, wishes: Mapping[str, Job], retention: Retention
) -> Iterator[tuple[str, str]]:
    """Take the keys of those that want one for a period; which of them has to give way, and to what job."""
    taken: list[tuple[Job, str]] = []
    for job in _in_order(wishes.values()):
        # Who only replaces holds it until the end of the transaction, so that they come one after the other.
        values = _hold_of(job)
        if transaction.run(queries.hold_key, values).count == 1 or job.unique_for is None:
            continue
        row = transaction.run(queries.key_holder, values).first()
        holder = None if row is None else text_of(row["owner"])
        # One that is there is so by an earlier try, whose reply was lost; the holder has replaced it since.
        if holder is not None and not _is_there(queries, transaction, job.id):
            taken.append((job, holder))
    _lock_replaced(queries, transaction, wishes.values())
    for job, holder in taken:
        if not _replaces(queries, transaction, job, holder, retention):
            yield job.id, holder
        else:
            values = _hold_of(job)
            transaction.run(queries.free_key, {**values, "owner": holder})
            transaction.run(queries.hold_key, values)


def _lock_replaced(queries: JobQueries, transaction: Transaction, jobs: Iterable[Job]) -> None:
    """Once nobody else may have the keys: what several of these replace, or they would wait for who locks the
    same jobs in another order, and that for them."""
    keys = [job.unique_key for job in jobs if job.on_conflict == "replace"]
    if len(keys) > 1 and queries.lock_replaced is not None:
        transaction.run(queries.lock_replaced, {"keys": keys})


def keep_others_out(queries: JobQueries, transaction: Transaction, jobs: Iterable[Job]) -> None:
    """Have all others wait, until the end of the transaction, who want one of their keys for a period or to
    replace. Nothing else comes of it: what these had before, by an earlier try, they have still."""
    of_keys = {job.unique_key: replace(job, unique_for=None) for job in jobs}
    for job in _in_order(of_keys.values()):
        values = _hold_of(job)
        transaction.run(queries.hold_key, values)
        transaction.run(queries.free_key, values)


def _in_order(jobs: Iterable[Job]) -> list[Job]:
    """Always the same, as two that enqueue the same keys would wait for each other."""
    return sorted(jobs, key=lambda job: job.unique_key or "")


def _hold_of(job: Job) -> Values:
    resource = f"{_RESOURCE}{job.unique_key}"
    if job.unique_for is None:
        # Not as itself: as that it may be handed what is left of the hold of the one that it replaces.
        return {"resource": resource, "owner": f"replaces:{job.id}", "ttl": _UNTIL_THE_END}
    return {"resource": resource, "owner": job.id, "ttl": job.unique_for}


def _is_there(queries: JobQueries, transaction: Transaction, job_id: str) -> bool:
    return transaction.run(queries.state, {"id": job_id}).first() is not None


def _keeps(
    queries: JobQueries, transaction: Transaction, job: Job | None, holder: str, retention: Retention
) -> bool:
    """Whether a job that has its key stands for this one: it has not made place, and has not ended
    meanwhile."""
    if job is None or job.on_conflict != "replace":
        return True
    if _replaces(queries, transaction, job, holder, retention):
        return False
    row = transaction.run(queries.state, {"id": holder}).first()
    return row is not None and text_of(row["state"]) == StateName.PROCESSING


def _replaces(
    queries: JobQueries, transaction: Transaction, job: Job, holder: str, retention: Retention
) -> bool:
    """Whether the holder of its key has made place for this job, which holds it then for the rest of the
    period, unless it has one of its own."""
    if job.on_conflict != "replace":
        return False
    change = {"id": holder, "reason": f"replaced by job {job.id}", "ttl": retention.succeeded_ttl}
    if transaction.run(queries.replace, change).count != 1:
        return False
    if job.unique_for is None:
        transaction.run(queries.hand_key, {**_hold_of(job), "owner": holder, "to": job.id})
    return True


def _free_unused(
    queries: JobQueries, transaction: Transaction, wishes: Mapping[str, Job], stands_for: Mapping[str, str]
) -> None:
    """A job that was not written, or has asked for no period, holds no key."""
    for job in wishes.values():
        if job.unique_for is None or stands_for.get(job.id, job.id) != job.id:
            transaction.run(queries.free_key, _hold_of(job))


def _holders(
    queries: JobQueries, transaction: Transaction, missing: Sequence[NewRow]
) -> Iterator[tuple[str, str]]:
    keys = [row.unique_key for row in missing if row.unique_key is not None]
    found = transaction.run(queries.holders, {"ids": [row.id for row in missing], "keys": keys}).rows()
    ids = {text_of(row["id"]) for row in found}
    by_key = {text_of(row["unique_key"]): text_of(row["id"]) for row in found if row["is_live"]}
    for row in missing:
        if row.id in ids:
            yield row.id, row.id
        elif row.unique_key in by_key:
            yield row.id, by_key[row.unique_key]
