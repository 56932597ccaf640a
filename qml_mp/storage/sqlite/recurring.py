"""Every process: templates of recurring jobs in SQLite."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from qml_mp.core.job import Job
from qml_mp.core.payload import encode_json
from qml_mp.core.recurring import RecurringJob
from qml_mp.errors import ConfigurationError, InvalidJob
from qml_mp.storage.protocol import Fired
from qml_mp.storage.rows import job_from_template, late_firings, template_of
from qml_mp.storage.sqlite import sql_around
from qml_mp.storage.sqlite.instants import from_us, to_us
from qml_mp.storage.sqlite.part import Part
from qml_mp.storage.sqlite.queries import QUERIES
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
            "next_run_at": to_us(template.next_run_at),
            "created_at": to_us(template.created_at),
        }
        with self._database.write() as connection:
            connection.execute(sql_around.UPSERT_TEMPLATE, row)

    def remove_recurring_job(self, recurring_id: str) -> bool:
        with self._database.write() as connection:
            return connection.execute(sql_around.REMOVE_TEMPLATE, {"id": recurring_id}).rowcount == 1

    def get_recurring_job(self, recurring_id: str) -> RecurringJob | None:
        with self._database.read() as connection:
            row = connection.execute(sql_around.GET_TEMPLATE, {"id": recurring_id}).fetchone()
        return None if row is None else template_of(row, from_us)

    def list_recurring_jobs(self) -> list[RecurringJob]:
        with self._database.read() as connection:
            rows = connection.execute(sql_around.LIST_TEMPLATES).fetchall()
        return [template_of(row, from_us) for row in rows]

    def set_recurring_enabled(
        self, recurring_id: str, enabled: bool, *, next_run_at: datetime | None
    ) -> bool:
        change = {"id": recurring_id, "enabled": enabled, "next_run_at": to_us(next_run_at)}
        with self._database.write() as connection:
            return connection.execute(sql_around.SET_ENABLED, change).rowcount == 1

    def fire_due_recurring(self, *, limit: int = 256, methods: Sequence[str] | None = None) -> Fired:
        jobs: list[Job] = []
        disabled: list[str] = []
        known = {"any_method": methods is None, "methods": json.dumps(list(methods or ()))}
        if self._until_next_firing(known) == timedelta():
            with self._database.write() as connection:
                now = self.now()
                due = connection.execute(
                    sql_around.DUE_TEMPLATES, {**known, "now": to_us(now), "limit": limit}
                ).fetchall()
                for row in due:
                    try:
                        fired = self._fire(connection, row, now)
                    except (ConfigurationError, InvalidJob) as error:
                        reason = {"id": row["id"], "reason": storable_reason(str(error))}
                        connection.execute(sql_around.DISABLE_TEMPLATE, reason)
                        disabled.append(row["id"])
                    else:
                        jobs.extend(fired)
        return Fired(
            jobs=tuple(jobs),
            disabled=tuple(disabled),
            next_due_in=self._until_next_firing(known),
            unknown=self._unknown_templates(known),
        )

    def recompute_late_firings(self) -> list[str]:
        now = self.now()
        late = late_firings(self.list_recurring_jobs(), now=now)
        if not late:
            return []
        with self._database.write() as connection:
            return [
                template.id
                for template, sooner in late
                if connection.execute(
                    sql_around.BRING_FORWARD,
                    {"id": template.id, "next_run_at": to_us(sooner), "late": to_us(template.next_run_at)},
                ).rowcount
            ]

    def run_recurring_now(self, recurring_id: str) -> str | None:
        with self._database.write() as connection:
            row = connection.execute(sql_around.GET_TEMPLATE, {"id": recurring_id}).fetchone()
            if row is None:
                return None
            now = self.now()
            job = job_from_template(row, now=now)
            connection.execute(QUERIES.jobs.insert, _row(job, now, recurring_id=recurring_id, fire_at=None))
            return job.id

    def _fire(self, connection: sqlite3.Connection, row: sqlite3.Row, now: datetime) -> list[Job]:
        """Enqueue the one job of a due template and move it past the present: firings that were
        missed meanwhile collapse into this one."""
        template = template_of(row, from_us)
        next_run_at = template.schedule.next_after(now)
        job = job_from_template(row, now=now)
        inserted = any(
            connection.execute(
                QUERIES.jobs.insert, _row(job, now, recurring_id=row["id"], fire_at=to_us(label))
            ).fetchall()
            for label in template.labels_of_firing()
        )
        advance = {"id": row["id"], "next_run_at": to_us(next_run_at), "now": to_us(now)}
        connection.execute(sql_around.ADVANCE_TEMPLATE, advance)
        return [job] if inserted else []  # none when this firing had its job before the clock was set back

    def _until_next_firing(self, known: Mapping[str, object]) -> timedelta | None:
        with self._database.read() as connection:
            due_at = from_us(connection.execute(sql_around.NEXT_FIRING, known).fetchone()[0])
        return None if due_at is None else max(due_at - self.now(), timedelta())

    def _unknown_templates(self, known: Mapping[str, object]) -> dict[str, str]:
        with self._database.read() as connection:
            rows = connection.execute(sql_around.UNKNOWN_TEMPLATES, {**known, "now": to_us(self.now())})
            return {str(row["id"]): str(row["method"]) for row in rows}


def _row(job: Job, now: datetime, *, recurring_id: str, fire_at: int | None) -> dict[str, Any]:
    row = new_row(job) | {"recurring_id": recurring_id, "fire_at": fire_at, "now": now}
    return {name: to_us(value) if isinstance(value, datetime) else value for name, value in row.items()}
