"""Every process: templates of recurring jobs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta

from qml_mp.core.job import Job
from qml_mp.core.payload import encode_json
from qml_mp.core.recurring import RecurringJob
from qml_mp.errors import ConfigurationError, InvalidJob
from qml_mp.storage.database import Part, Transaction, Values
from qml_mp.storage.jobs import insert_firing
from qml_mp.storage.rows import Row, job_from_template, template_of, text_of
from qml_mp.storage.storable import storable_reason
from qml_mp.storage.values import Fired


class RecurringStore(Part):
    """Templates of recurring jobs."""

    def upsert_recurring_job(self, template: RecurringJob) -> None:
        """Insert or replace. When cron and zone are as they were, `next_run_at` stays too, so
        that declaring the same template at each start never skips or repeats a firing; `enabled`
        always stays as a person set it."""
        declared = {
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
        queries = self._db.queries.recurring
        with self._db.transaction("storing a recurring job") as transaction:
            # Whoever declares it at the same moment waits, and finds what the first has left.
            held = transaction.run(queries.insert_or_lock, declared).rows()[0]
            change = _redeclared(held, declared)
            if change is not None:
                transaction.run(queries.replace, change)

    def remove_recurring_job(self, recurring_id: str) -> bool:
        """Whether it existed. Jobs already enqueued from it stay."""
        which = {"id": recurring_id}
        return self._db.write("removing a recurring job", self._db.queries.recurring.remove, which).count == 1

    def get_recurring_job(self, recurring_id: str) -> RecurringJob | None:
        """The template, or None."""
        query, which = self._db.queries.recurring.get, {"id": recurring_id}
        return next(iter(self._read("reading a recurring job", query, template_of, which)), None)

    def list_recurring_jobs(self) -> list[RecurringJob]:
        """All templates by id."""
        return self._read("listing recurring jobs", self._db.queries.recurring.list_all, template_of)

    def set_recurring_enabled(
        self, recurring_id: str, enabled: bool, *, next_run_at: datetime | None
    ) -> bool:
        """Switch a template on (with its next firing) or off; whether it existed."""
        change = {"id": recurring_id, "enabled": enabled, "next_run_at": next_run_at, "disabled_reason": None}
        query = self._db.queries.recurring.switch
        return self._db.write("switching a recurring job", query, change).count == 1

    def fire_due_recurring(self, *, limit: int = 256, methods: Sequence[str] | None = None) -> Fired:
        """Enqueue one job per due template, advance `next_run_at` past the present, at most `limit`.

        Only templates of these methods, unless they are None; others stay due for a server that knows
        what they run.

        One transaction; locked so that two servers never fire the same tick, and unique
        (recurring id, firing time) in the table besides. Firings missed while no server ran
        collapse into one. A template whose cron no longer parses is disabled with the reason.
        A firing time that comes again, because the clock was set back, makes another job only for a
        template that fires at least once an hour.
        """
        what, queries = "firing recurring jobs", self._db.queries.recurring
        which = {"limit": limit, "methods": None if methods is None else list(methods)}
        upcoming_rows = self._db.read(what, queries.next_firing, which)
        if self._between(upcoming_rows[0], "now", "first_at") != timedelta():
            return self._idle(upcoming_rows, unknown=())  # nothing is due, whoever knows it: one statement
        if self._db.has_one_writer:
            idle = self._idle(upcoming_rows, self._db.read(what, queries.unknown, which))
            if idle.next_due_in != timedelta():
                return idle
        jobs: list[Job] = []
        disabled: list[str] = []
        with self._db.transaction(what) as transaction:
            for row in transaction.run(queries.lock_due, which).rows():
                try:
                    jobs.extend(self._fire(transaction, row))
                except (ConfigurationError, InvalidJob) as error:
                    reason = storable_reason(str(error))
                    off = {"id": row["id"], "enabled": False, "next_run_at": None, "disabled_reason": reason}
                    transaction.run(queries.switch, off)
                    disabled.append(text_of(row["id"]))
            upcoming = transaction.run(queries.next_firing, which)
            unknown = transaction.run(queries.unknown, which)
        idle = self._idle(upcoming.rows(), unknown.rows())
        return replace(idle, jobs=tuple(jobs), disabled=tuple(disabled))

    def recompute_late_firings(self) -> list[str]:
        """Compute anew each `next_run_at` that is later than the schedule's next firing, as all are after the
        clock was set back; the ids. A second call is harmless."""
        late = _late_firings(self.list_recurring_jobs(), now=self._db.now())
        if not late:
            return []
        query = self._db.queries.recurring.bring_forward
        with self._db.transaction("bringing firings forward") as transaction:
            brought = [
                transaction.run(
                    query, {"id": template.id, "next_run_at": sooner, "late": template.next_run_at}
                )
                for template, sooner in late
            ]
        return [template.id for (template, _), result in zip(late, brought, strict=True) if result.count]

    def run_recurring_now(self, recurring_id: str) -> str | None:
        """Enqueue one job from the template now, leaving its schedule alone; the job's id, or None."""
        with self._db.transaction("running a recurring job") as transaction:
            row = transaction.run(self._db.queries.recurring.get, {"id": recurring_id}).first()
            if row is None:
                return None
            job = job_from_template(row, self._db.instant)
            insert_firing(transaction, job, recurring_id=recurring_id, fire_at=None)
        return job.id

    def _fire(self, transaction: Transaction, row: Row) -> list[Job]:
        """Enqueue the one job of a due template and move it past the present: firings that were missed
        meanwhile collapse into this one. Raises what a row raises that can make no job."""
        template = template_of(row, self._db.instant)
        job = job_from_template(row, self._db.instant)
        advance = {"id": row["id"], "next_run_at": template.schedule.next_after(job.created_at)}
        inserted = any(
            insert_firing(transaction, job, recurring_id=row["id"], fire_at=label)
            for label in template.labels_of_firing()
        )
        transaction.run(self._db.queries.recurring.advance, advance)
        return [job] if inserted else []  # none when this firing had its job before the clock was set back

    def _idle(self, upcoming: Sequence[Row], unknown: Sequence[Row]) -> Fired:
        """What is told when nothing was fired."""
        return Fired(
            jobs=(),
            disabled=(),
            next_due_in=self._between(upcoming[0], "now", "due_at"),
            unknown={text_of(row["id"]): text_of(row["method"]) for row in unknown},
        )


def _redeclared(held: Row, declared: Values) -> Values | None:
    """What becomes of a stored template that is declared; None: it stays as it is.

    A template that qml-mp itself switched off gets another chance once anything is different that can keep it
    from firing.
    """
    same = {name: held[name] == declared[name] for name in ("cron", "tz", "method", "payload", "queue")}
    was_disabled, unchanged = held["disabled_reason"] is not None, all(same.values())
    if unchanged and not was_disabled:
        return None
    keeps_firing = same["cron"] and same["tz"] and not was_disabled
    return {
        **declared,
        "enabled": bool(held["enabled"]) or (was_disabled and not unchanged),
        "next_run_at": held["next_run_at"] if keeps_firing else declared["next_run_at"],
        "disabled_reason": held["disabled_reason"] if unchanged else None,
    }


def _late_firings(templates: Iterable[RecurringJob], *, now: datetime) -> list[tuple[RecurringJob, datetime]]:
    """The templates whose `next_run_at` is later than their schedule says, with the firing that is next."""
    found = []
    for template in templates:
        with suppress(ConfigurationError):  # told when it is due: it is disabled with the reason then
            sooner = template.firing_sooner_than_stored(now)
            if sooner is not None:
                found.append((template, sooner))
    return found
