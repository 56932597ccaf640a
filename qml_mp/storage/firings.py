"""Every process: the jobs of a template's firings, written into an open transaction."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from qml_mp.core.job import Job
from qml_mp.core.payload import JsonValue
from qml_mp.core.recurring import RecurringJob
from qml_mp.errors import ConfigurationError, InvalidJob
from qml_mp.storage.database import Transaction
from qml_mp.storage.queries import JobQueries, Queries
from qml_mp.storage.rows import Row, json_of, text_of
from qml_mp.storage.storable import NewRow, new_row

TemplateOf = Callable[[Row], tuple[RecurringJob, datetime]]
"""What reads a row: the template, and the row's now."""

_MOMENT = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A due template, and what becomes of it."""

    row: Row
    template: RecurringJob
    now: datetime
    upcoming: datetime | None
    """Its next firing, once those that are due are made."""
    firings: Sequence[datetime]
    """Those that are due and get a job, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """The job of a template's one firing that is due, inserted together with those of others."""

    job: Job
    row: NewRow
    labels: Iterator[datetime]
    """Under which the firing may be stored, behind that of the row."""
    is_stored: bool
    """False: that instant has had its job."""
    moved: RecurringJob
    """The template, moved past the present."""


def behind_of(rows: Iterable[Row], template_of: TemplateOf) -> set[str]:
    """The ids of those that have several firings to catch up."""
    behind: set[str] = set()
    for row in rows:
        with suppress(ConfigurationError):  # told when it fires
            template, now = template_of(row)
            if template.is_behind(now):
                behind.add(template.id)
    return behind


def due_of(row: Row, template: RecurringJob, now: datetime) -> Due:
    """A due template and its firings. Whatever the row raises that can make no job comes here, before
    anything is written: the transaction goes on with the other templates."""
    job_of(row, template, now=now, firing=None)
    upcoming, firings = template.schedule.next_after(now), template.firings_to_make(now)
    if template.next_run_at is None or template.next_run_at > now:
        upcoming = template.next_run_at  # it is here for the firing that waits
    return Due(row=row, template=template, now=now, upcoming=upcoming, firings=firings)


def insert_ahead(
    transaction: Transaction,
    queries: JobQueries,
    rows: Iterable[Row],
    template_of: TemplateOf,
    *,
    most: int,
) -> dict[str, Ahead]:
    """Insert the jobs of at most so many due templates of which one firing is due and that look at no other
    job, all by one statement: it waits for its reply, and hundreds may be due at one instant. By template,
    for `fire_ahead`. What can make no job is left out."""
    made: dict[str, Ahead] = {}
    for row in rows:
        with suppress(ConfigurationError, InvalidJob):  # told when it fires by itself
            due = due_of(row, *template_of(row))
            template, firings = due.template, due.firings
            if template.overlap == "allow" and template.waiting_for is None and len(firings) == 1:
                job = job_of(row, template, now=due.now, firing=firings[0])
                labels = template.labels_of(firings[0])
                new = new_row(job)._replace(recurring_id=template.id, fire_at=next(labels))
                moved = replace(template, next_run_at=due.upcoming)
                made[template.id] = Ahead(job=job, row=new, labels=labels, is_stored=True, moved=moved)
        if len(made) == most:
            break
    missing = {row.id for row in _not_stored(transaction, queries, [each.row for each in made.values()])}
    return {
        template_id: replace(each, is_stored=each.row.id not in missing) for template_id, each in made.items()
    }


def in_turn(
    rows: Iterable[Row], ahead: Collection[str], behind: Collection[str], refused: Iterable[str]
) -> list[Row]:
    """The rows as they fire. First those whose job is there: they must be moved, however many the others
    make. Last those that are behind, each of which may take all that is left; of them, those that were
    refused last of all, the one that was tried last at the end, or they would keep the others for ever."""
    tried = {template_id: place for place, template_id in enumerate(refused)}

    def turn(row: Row) -> tuple[bool, bool, int]:
        template_id = text_of(row["id"])
        return template_id not in ahead, template_id in behind, tried.get(template_id, -1)

    return sorted(rows, key=turn)


def fire_ahead(transaction: Transaction, queries: Queries, ahead: Ahead) -> list[Job]:
    """`fire_template` of a template whose job is inserted, under another label where need be."""
    is_stored = ahead.is_stored
    while not is_stored and (label := next(ahead.labels, None)) is not None:
        is_stored = not _not_stored(transaction, queries.jobs, [ahead.row._replace(fire_at=label)])
    made = [ahead.job] if is_stored else []
    advance(transaction, queries, ahead.moved, made=made)
    return made


def fire_template(transaction: Transaction, queries: Queries, due: Due, *, most: int) -> list[Job]:
    """Enqueue the jobs of a due template, at most so many, and move it past the present, or to the first
    firing that is left."""
    row, template, now, upcoming = due.row, due.template, due.now, due.upcoming

    def make(firings: Sequence[datetime]) -> list[Job]:
        # Each after the one before, because jobs are claimed in the order of their making.
        jobs = [
            (firing, job_of(row, template, now=now + place * _MOMENT, firing=firing))
            for place, firing in enumerate(firings)
        ]
        return _insert(transaction, queries.jobs, template, jobs)

    waiting = [] if template.waiting_for is None else [template.waiting_for]
    made: list[Job] = []
    if template.overlap == "allow":
        left, waiting = [*waiting, *due.firings], []
        made = make(left[:most])
        upcoming = next(iter(left[most:]), upcoming)
    else:
        unfinished = transaction.run(queries.recurring.unfinished, {"id": template.id})
        is_free = unfinished.first() is None
        for firing in [*waiting, *due.firings]:
            if is_free:
                made, waiting = make([firing]), []
                is_free = not made
            elif template.overlap == "queue":
                waiting = waiting or [firing]
    moved = replace(template, next_run_at=upcoming, waiting_for=next(iter(waiting), None))
    advance(transaction, queries, moved, made=made)
    return made


def advance(
    transaction: Transaction, queries: Queries, template: RecurringJob, *, made: Sequence[Job]
) -> None:
    """Store when it fires next, and which job it has made last."""
    moved = {
        "id": template.id,
        "next_run_at": template.next_run_at,
        "waiting_for": template.waiting_for,
        "last_job_id": made[-1].id if made else None,
    }
    transaction.run(queries.recurring.advance, moved)


def insert_by_hand(transaction: Transaction, template: RecurringJob, job: Job) -> None:
    """The job of no firing."""
    transaction.insert([new_row(job)._replace(recurring_id=template.id)])


def job_of(row: Row, template: RecurringJob, *, now: datetime, firing: datetime | None) -> Job:
    """The job of a firing (None: by hand) of the row's template.

    Raises `InvalidJob` or `ConfigurationError` when the row (its payload, method, queue) makes no job.
    """
    payload, problem = json_of(row["payload"])
    if problem is not None:
        raise InvalidJob(f"The payload of the recurring job cannot be read. {problem}")
    about: dict[str, JsonValue] = {"recurring_id": template.id}
    if firing is not None:
        about["fire_at"] = firing.isoformat()
    delay = None if firing is None else template.delay_of(firing) or None
    return Job.new(
        template.method, payload, queue=template.queue, priority=template.priority, metadata=about,
        delay=delay, now=now,
    )  # fmt: skip


def _insert(
    transaction: Transaction,
    queries: JobQueries,
    template: RecurringJob,
    firings: Sequence[tuple[datetime, Job]],
) -> list[Job]:
    """The jobs that were stored, all together; the firings of the others had theirs before the clock was set
    back."""
    labels = {job.id: template.labels_of(firing) for firing, job in firings}
    left = [new_row(job)._replace(recurring_id=template.id) for _, job in firings]
    stored: set[str] = set()
    while left:
        labelled = ((row, next(labels[row.id], None)) for row in left)
        rows = [row._replace(fire_at=label) for row, label in labelled if label is not None]
        left = _not_stored(transaction, queries, rows)
        stored.update({row.id for row in rows} - {row.id for row in left})
    return [job for _, job in firings if job.id in stored]


def _not_stored(transaction: Transaction, queries: JobQueries, rows: Sequence[NewRow]) -> list[NewRow]:
    """Insert them; exactly those whose firing has its job."""
    doubtful = transaction.insert(rows) if rows else ()
    if len(rows) < 2 or not doubtful:
        return list(doubtful)
    found = transaction.run(queries.holders, {"ids": [row.id for row in doubtful], "keys": []}).rows()
    ids = {text_of(row["id"]) for row in found}
    return [row for row in doubtful if row.id not in ids]
