"""Every process: templates of recurring jobs in PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from psycopg.rows import DictRow

from qml_mp.core.job import Job
from qml_mp.core.payload import encode_json
from qml_mp.core.recurring import RecurringJob
from qml_mp.errors import ConfigurationError, InvalidJob
from qml_mp.storage.postgres import sql_around
from qml_mp.storage.postgres.connection import Transaction
from qml_mp.storage.postgres.instants import from_column
from qml_mp.storage.postgres.part import Part
from qml_mp.storage.postgres.queries import QUERIES
from qml_mp.storage.protocol import Fired
from qml_mp.storage.rows import job_from_template, late_firings, template_of
from qml_mp.storage.storable import new_row, storable_reason


class RecurringPart(Part):
    """`RecurringStore` of the protocol."""

    def upsert_recurring_job(self, template: RecurringJob) -> None:
        row = {
            "id": template.id,
            "cron": template.cron,
            "tz": template.tz,
            "method": template.method,
            "payload": encode_json(template.payload, what="The payload"),
            "queue": template.queue,
            "enabled": template.enabled,
            "next_run_at": template.next_run_at,
            "created_at": template.created_at,
        }
        self._database.rows("storing a recurring job", sql_around.UPSERT_TEMPLATE, row)

    def remove_recurring_job(self, recurring_id: str) -> bool:
        which = {"id": recurring_id}
        return bool(self._database.rows("removing a recurring job", sql_around.REMOVE_TEMPLATE, which))

    def get_recurring_job(self, recurring_id: str) -> RecurringJob | None:
        which = {"id": recurring_id}
        rows = self._database.read("reading a recurring job", sql_around.GET_TEMPLATE, which)
        return _template(rows[0]) if rows else None

    def list_recurring_jobs(self) -> list[RecurringJob]:
        rows = self._database.read("listing recurring jobs", sql_around.LIST_TEMPLATES)
        return [_template(row) for row in rows]

    def set_recurring_enabled(
        self, recurring_id: str, enabled: bool, *, next_run_at: datetime | None
    ) -> bool:
        change = {"id": recurring_id, "enabled": enabled, "next_run_at": next_run_at}
        return bool(self._database.rows("switching a recurring job", sql_around.SET_ENABLED, change))

    def fire_due_recurring(self, *, limit: int = 256, methods: Sequence[str] | None = None) -> Fired:
        fired: list[Job] = []
        disabled: list[str] = []
        which = {"limit": limit, "methods": None if methods is None else list(methods)}
        with self._database.transaction("firing recurring jobs") as transaction:
            due = transaction.execute(sql_around.LOCK_DUE_TEMPLATES, which).fetchall()
            for row in due:
                try:
                    job, template, next_run_at = _firing(row)
                except (ConfigurationError, InvalidJob) as error:
                    reason = {"id": row["id"], "reason": storable_reason(str(error))}
                    transaction.execute(sql_around.DISABLE_TEMPLATE, reason)
                    disabled.append(row["id"])
                    continue
                if any(_insert(transaction, job, row["id"], label) for label in template.labels_of_firing()):
                    fired.append(job)
                advance = {"id": row["id"], "next_run_at": next_run_at}
                transaction.execute(sql_around.ADVANCE_TEMPLATE, advance)
            upcoming = transaction.execute(sql_around.NEXT_FIRING, which)
            left = None if methods is None else transaction.execute(sql_around.UNKNOWN_TEMPLATES, which)
        next_due = upcoming.fetchone()
        return Fired(
            jobs=tuple(fired),
            disabled=tuple(disabled),
            next_due_in=None if next_due is None else next_due["next_due_in"],
            unknown={} if left is None else {row["id"]: row["method"] for row in left.fetchall()},
        )

    def recompute_late_firings(self) -> list[str]:
        late = late_firings(self.list_recurring_jobs(), now=self.now())
        return [
            template.id
            for template, sooner in late
            if self._database.rows(
                "bringing a firing forward",
                sql_around.BRING_FORWARD,
                {"id": template.id, "next_run_at": sooner, "late": template.next_run_at},
            )
        ]

    def run_recurring_now(self, recurring_id: str) -> str | None:
        rows = self._database.read("reading a recurring job", sql_around.GET_TEMPLATE, {"id": recurring_id})
        if not rows:
            return None
        job = job_from_template(rows[0], now=self.now())
        with self._database.transaction("running a recurring job") as transaction:
            _insert(transaction, job, recurring_id, None)
        return job.id


def _firing(row: Mapping[str, Any]) -> tuple[Job, RecurringJob, datetime | None]:
    """The one job of a due template, and its next firing past the present: those that were missed
    collapse into this one. Raises `ConfigurationError` or `InvalidJob` for a row that can make no job."""
    now = from_column(row["now"])
    assert now is not None  # a column of the statement's own
    template = template_of(row, from_column)
    return job_from_template(row, now=now), template, template.schedule.next_after(now)


def _insert(transaction: Transaction, job: Job, recurring_id: str, fire_at: datetime | None) -> bool:
    """Insert the job of a firing; False when it has one already, as after a clock was set back."""
    row = new_row(job) | {"recurring_id": recurring_id, "fire_at": fire_at}
    columns = {name: [value] for name, value in row.items()}
    return bool(transaction.execute(QUERIES.jobs.insert, columns).fetchall())


def _template(row: DictRow) -> RecurringJob:
    return template_of(row, from_column)
