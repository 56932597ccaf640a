"""Every process: the jobs of a template's firings, written into an open transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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

_MOMENT = timedelta(microseconds=1)


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


def insert_ahead(
    transaction: Transaction,
    queries: JobQueries,
    rows: Iterable[Row],
    template_of: Callable[[Row], tuple[RecurringJob, datetime]],
    *,
    most: int,
) -> dict[str, Ahead]:
    """Insert the jobs of at most so many due templates of which one firing is due and that look at no other
    job, all by one statement: it waits for its reply, and hundreds may be due at one instant. By template,
    for `fire_ahead`. What can make no job is left out. `template_of` gives the row's now as well."""
    made: dict[str, Ahead] = {}
    for row in rows:
        with suppress(ConfigurationError, InvalidJob):  # told when it fires by itself
            template, now = template_of(row)
            upcoming, firings = _firings_of(row, template, now)
            if template.overlap == "allow" and template.waiting_for is None and len(firings) == 1:
                job, labels = (
                    job_of(row, template, now=now, firing=firings[0]),
                    template.labels_of(firings[0]),
                )
                new = new_row(job)._replace(recurring_id=template.id, fire_at=next(labels))
                moved = replace(template, next_run_at=upcoming)
                made[template.id] = Ahead(job=job, row=new, labels=labels, is_stored=True, moved=moved)
        if len(made) == most:
            break
    missing = {row.id for row in _not_stored(transaction, queries, [each.row for each in made.values()])}
    return {
        template_id: replace(each, is_stored=each.row.id not in missing) for template_id, each in made.items()
    }


def fire_ahead(transaction: Transaction, queries: JobQueries, ahead: Ahead) -> tuple[list[Job], RecurringJob]:
    """`fire_template` of a template whose job is inserted, under another label where need be."""
    is_stored = ahead.is_stored
    while not is_stored and (label := next(ahead.labels, None)) is not None:
        is_stored = not _not_stored(transaction, queries, [ahead.row._replace(fire_at=label)])
    return [ahead.job] if is_stored else [], ahead.moved


def fire_template(
    transaction: Transaction,
    queries: Queries,
    row: Row,
    template: RecurringJob,
    *,
    now: datetime,
    most: int,
) -> tuple[list[Job], RecurringJob]:
    """Enqueue the jobs of a due template, at most so many: they, and the template moved past the present, or
    to the first firing that is left. Raises what a row raises that can make no job."""
    upcoming, firings = _firings_of(row, template, now)

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
        due, waiting = [*waiting, *firings], []
        made = make(due[:most])
        upcoming = next(iter(due[most:]), upcoming)
    else:
        unfinished = transaction.run(queries.recurring.unfinished, {"id": template.id})
        is_free = unfinished.first() is None
        for firing in [*waiting, *firings]:
            if is_free:
                made, waiting = make([firing]), []
                is_free = not made
            elif template.overlap == "queue":
                waiting = waiting or [firing]
    return made, replace(template, next_run_at=upcoming, waiting_for=next(iter(waiting), None))


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
    return Job.new(template.method, payload, queue=template.queue, metadata=about, delay=delay, now=now)


def _firings_of(
    row: Row, template: RecurringJob, now: datetime
) -> tuple[datetime | None, Sequence[datetime]]:
    """When the template fires next, and the firings that are due. Whatever the row raises comes first: the
    transaction goes on with the other templates."""
    job_of(row, template, now=now, firing=None)
    upcoming, firings = template.schedule.next_after(now), template.firings_to_make(now)
    if template.next_run_at is None or template.next_run_at > now:
        upcoming = template.next_run_at  # it is here for the firing that waits
    return upcoming, firings


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
