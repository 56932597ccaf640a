"""Every process: templates of recurring jobs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from types import MappingProxyType

from qml_mp.core.cron import UnknownZone, is_known_zone
from qml_mp.core.job import Job
from qml_mp.core.recurring import Followed, RecurringJob, firings_to_correct, is_of
from qml_mp.errors import ConfigurationError, InvalidJob, StorageError, StorageUnavailable
from qml_mp.storage.database import Operations, Result, RowsRefused, Transaction, Values
from qml_mp.storage.firings import (
    advance,
    behind_of,
    due_of,
    fire_ahead,
    fire_template,
    in_turn,
    insert_ahead,
    insert_by_hand,
    job_of,
)
from qml_mp.storage.redeclared import declared_values, is_over, may_replace, redeclared
from qml_mp.storage.rows import Row, template_of, text_of
from qml_mp.storage.storable import storable_reason
from qml_mp.storage.values import Fired

logger = logging.getLogger(__name__)

_FIRING = "firing recurring jobs"
_LOOK_AGAIN = timedelta(seconds=1)
_MOST_FIRINGS = 250
"""Of a tick; of the last template that it takes, all are looked at. Meanwhile nobody else writes to an SQLite
file, and PostgreSQL ends a transaction in which it hears nothing for some seconds."""
_MOST_REFUSED = 1000
"""Firings of templates whose jobs are refused, of a tick."""


class RecurringStore(Operations):
    """Templates of recurring jobs."""

    _lacking: frozenset[str] = frozenset()
    """Zones that this machine does not know, of templates that it has found due."""
    _refused: Mapping[str, str] = MappingProxyType({})
    """Id to reason of due templates whose jobs the database has refused when this process tried them the last
    time, the one that was tried last at the end."""

    def upsert_recurring_job(self, template: RecurringJob) -> None:
        """Insert or replace what a person or a call makes. When cron and zone are as they were, `next_run_at`
        stays too, so that declaring the same template again never skips or repeats a firing; else it is as
        the template says (`from_now_on`), or the following one when it has passed since the template was
        made. `enabled` always stays as a person set it. Raises `ConfigurationError` for a template that code
        declares."""
        with self._db.transaction("storing a recurring job") as transaction:
            held, stored = self._declare(transaction, template)
            if stored is None:
                owner = f"of the app {text_of(held['app'])}" if held["app"] else "of an app without a name"
                raise ConfigurationError(
                    f"The recurring template {template.id!r} is declared by the code {owner}. Change it "
                    "there, or use another id."
                )

    def follow_code(
        self,
        app: str,
        templates: Sequence[RecurringJob],
        *,
        spec: str = "",
        removing: Collection[RecurringJob] = (),
    ) -> Followed:
        """Store the templates that the code of this app declares, as `upsert_recurring_job` does, from now on
        by the database's clock; `removing`: and delete those that it no longer does, as they were looked at.
        A second call is harmless.

        Templates of other apps and of people are left alone, and what newer code has declared since. What
        the app of the same "module:attribute" (`spec`) in another folder has declared is taken over, when
        this one declares it too, and never deleted. One whose zone this machine does not know is left as it
        is, also when nobody has stored it yet.
        """
        added, changed, removed, over = [], [], [], []
        refused: dict[str, str | None] = {}
        taken: dict[str, str] = {}
        now = self._db.now()
        # In one order, because each is locked until the commit.
        lacking = {each.id: each.tz for each in templates if not is_known_zone(each.tz)}
        here = [each for each in sorted(templates, key=lambda each: each.id) if each.id not in lacking]
        declared = [replace(each.from_now_on(now), app=app) for each in here]
        with self._db.transaction("storing the templates of the code") as transaction:
            for template in declared:
                held, stored = self._declare(transaction, template, spec=spec)
                if stored is None:
                    refused[template.id] = None if held["app"] is None else text_of(held["app"])
                    continue
                if held["app"] != app and is_of(spec, held["app"]):
                    taken[template.id] = text_of(held["app"])
                if is_over(held, stored):
                    over.append(template.id)
                if self._db.instant(held["created_at"]) == template.created_at:
                    added.append(template.id)
                elif stored is not held:
                    changed.append(template.id)
            if removing:
                ids, methods = {each.id for each in removing}, {each.method for each in removing}
                removed = self._remove_of(transaction.run, app, ids, methods)
        return Followed(
            added=tuple(added), changed=tuple(changed), removed=tuple(removed), refused=refused,
            taken=taken, over=tuple(over), lacking=lacking,
        )  # fmt: skip

    def remove_templates_of(
        self, app: str, ids: Collection[str], *, methods: Collection[str]
    ) -> tuple[str, ...]:
        """Delete those that this app has declared and that are of one of these methods still; which were."""
        return tuple(self._remove_of(partial(self._db.write, "removing recurring jobs"), app, ids, methods))

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
        self,
        recurring_id: str,
        enabled: bool,
        *,
        next_run_at: datetime | None,
        of: RecurringJob | None = None,
    ) -> bool:
        """Switch a template on (with its next firing) or off; whether it existed. With `of`, only if it has
        the cron and zone of that, by which the firing was computed, and has no firing to come: one that was
        switched on since may have fired for that time."""
        change = {"id": recurring_id, "enabled": enabled, "next_run_at": next_run_at, "disabled_reason": None}
        change |= {"cron": of and of.cron, "tz": of and of.tz}
        query = self._db.queries.recurring.switch
        return self._db.write("switching a recurring job", query, change).count == 1

    def fire_due_recurring(self, *, limit: int = 256, methods: Sequence[str] | None = None) -> Fired:
        """Enqueue the jobs of due templates, advance `next_run_at` past the present, at most `limit`
        and no more than some hundreds of firings; those that are left are due at once again. Templates that
        have several to catch up come last. No job, and some due at once (`next_due_in` is zero): they are in
        somebody else's hands, most likely of a server that fires them, or firings that made none came first.

        Only templates of these methods, unless they are None; others stay due for a server that knows
        what they run, and so do those whose zone this machine does not know.

        One transaction; locked so that two servers never fire the same tick, and unique
        (recurring id, firing time) in the table besides. What becomes of firings that were missed, or that
        come while a job of the template has not ended, is decided in it, as the template says. A template
        that cannot be read (its cron, payload, queue, …) is disabled with the reason. One whose job a
        constraint or a trigger of the user's refuses stays due, and the others fire. A firing time that
        comes again, because the clock was set back, makes another job only for a template that fires in
        each hour of each day.
        """
        queries = self._db.queries.recurring
        which = self._which(limit, methods)
        upcoming_rows = self._db.read(_FIRING, queries.next_firing, which)
        if self._between(upcoming_rows[0], "now", "first_at") != timedelta():
            return self._idle(upcoming_rows, unknown=())  # nothing is due, whoever knows it: one statement
        if self._db.has_one_writer:
            idle = self._idle(upcoming_rows, self._db.read(_FIRING, queries.unknown, which))
            if idle.next_due_in != timedelta():
                return idle
        if not self._refused:
            try:
                return self._fire_due(which)
            except StorageUnavailable:
                raise
            except StorageError:
                pass  # perhaps about the job of one template, whichever it is
        return self._fire_due(self._which(limit, methods), apart=True)

    def correct_firings(self) -> list[str]:
        """Compute anew each `next_run_at` to come that is not the schedule's next firing; the ids. It is
        later after the clock was set back, and either way when the zone has other rules than it had. A second
        call is harmless."""
        wrong = firings_to_correct(self.list_recurring_jobs(), now=self._db.now())
        if not wrong:
            return []
        query = self._db.queries.recurring.correct
        changes = [{"id": each.id, "next_run_at": then, "wrong": each.next_run_at} for each, then in wrong]
        with self._db.transaction("correcting firings") as transaction:
            corrected = [transaction.run(query, change) for change in changes]
        return [template.id for (template, _), result in zip(wrong, corrected, strict=True) if result.count]

    def run_recurring_now(self, recurring_id: str) -> str | None:
        """Enqueue one job from the template now, leaving its schedule alone; the job's id, or None."""
        with self._db.transaction("running a recurring job") as transaction:
            row = transaction.run(self._db.queries.recurring.lock, {"id": recurring_id}).first()
            if row is None:
                return None
            template, now = self._template_of(row)
            job = job_of(row, template, now=now, firing=None)
            insert_by_hand(transaction, template, job)
            advance(transaction, self._db.queries, template, made=[job])
        return job.id

    def _declare(
        self, transaction: Transaction, template: RecurringJob, *, spec: str = ""
    ) -> tuple[Row, Row | None]:
        """Insert or replace: the template that was found or inserted, and what it is now, which is the same
        when it was not replaced; None: it is another's, and stays. Whoever declares it at the same moment
        waits, and finds what the first has left."""
        declared = declared_values(template)
        queries = self._db.queries.recurring
        held = transaction.run(queries.insert_or_lock, declared).rows()[0]
        if not may_replace(held, template.app, spec):
            return held, None
        locked_at, upcoming = self._db.instant(held["locked_at"]), template.next_run_at
        if locked_at and upcoming and template.created_at < upcoming <= locked_at:
            # It came after the template was made, and before the lock: others may have fired just then.
            declared = {**declared, "next_run_at": template.schedule.next_after(locked_at)}
        change = redeclared(held, declared)
        if change is None:
            return held, held
        transaction.run(queries.replace, change)
        return held, change

    def _fire_due(self, which: Values, *, apart: bool = False) -> Fired:
        """Fire them in one transaction; `apart`: a template whose job is refused stays due, and the others
        fire."""
        db, queries, lacking = self._db.queries, self._db.queries.recurring, self._lacking
        jobs: list[Job] = []
        disabled: dict[str, str] = {}
        looked_at = in_vain = 0
        with self._db.transaction(_FIRING, pipelined=not apart) as transaction:
            rows = transaction.run(queries.lock_due, which).rows()
            behind = behind_of(rows, self._template_of)
            plain = [row for row in rows if text_of(row["id"]) not in behind]
            together = [] if apart or len(plain) < 2 else plain
            ahead = insert_ahead(transaction, db.jobs, together, self._template_of, most=_MOST_FIRINGS)
            ids = {text_of(row["id"]) for row in rows}
            refused = {each: reason for each, reason in self._refused.items() if each in ids}
            for row in in_turn(rows, ahead, behind, refused):
                template_id, firings = text_of(row["id"]), 1
                refused.pop(template_id, None)
                try:
                    if template_id in ahead:
                        fire = partial(fire_ahead, transaction, db, ahead[template_id])
                    else:
                        due = due_of(row, *self._template_of(row))
                        firings = len(due.firings)
                        fire = partial(fire_template, transaction, db, due, most=_MOST_FIRINGS - looked_at)
                    jobs.extend(transaction.apart(fire) if apart else fire())
                    looked_at += firings
                except RowsRefused as error:
                    refused[template_id] = str(error)
                    in_vain += firings
                except (ConfigurationError, InvalidJob) as error:
                    if isinstance(error, UnknownZone) and self._leave(row, error, lacking):
                        continue
                    reason = storable_reason(str(error))
                    off = {"id": row["id"], "enabled": False, "next_run_at": None, "cron": None, "tz": None}
                    transaction.run(queries.switch, {**off, "disabled_reason": reason})
                    disabled[template_id] = str(error)
                if looked_at >= _MOST_FIRINGS or in_vain >= _MOST_REFUSED:
                    break
            which = {**which, "lacking": sorted(self._lacking), "refused": sorted(refused)}
            upcoming = transaction.run(queries.next_firing, which)
            unknown = transaction.run(queries.unknown, which)
        self._refused = refused
        idle = self._idle(upcoming.rows(), unknown.rows())
        due_in = idle.next_due_in
        if refused and not (jobs and due_in == timedelta()):  # those that are left may be refused as well
            due_in = min(due_in or _LOOK_AGAIN, _LOOK_AGAIN)
        return replace(idle, jobs=tuple(jobs), disabled=disabled, refused=refused, next_due_in=due_in)

    def _which(self, limit: int, methods: Sequence[str] | None) -> dict[str, object]:
        """What the queries about due templates are bound to."""
        self._lacking = frozenset(zone for zone in self._lacking if not is_known_zone(zone))
        known = None if methods is None else list(methods)
        return {"limit": limit, "methods": known, "lacking": sorted(self._lacking), "refused": []}

    def _leave(self, row: Row, error: UnknownZone, lacking: Collection[str]) -> bool:
        """Leave the templates of its zone to servers that know it, and say so once. False: they should have
        been left out already, and would be due for ever."""
        zone = text_of(row["tz"])
        if zone in lacking:
            return False
        if zone not in self._lacking:
            logger.warning(
                "Recurring template %s, and others of its zone, do not fire here: %s", row["id"], error
            )
        self._lacking |= {zone}
        return True

    def _remove_of(
        self, run: Callable[[str, Values], Result], app: str, ids: Collection[str], methods: Collection[str]
    ) -> list[str]:
        which = {"app": app, "ids": sorted(ids), "methods": sorted(methods)}
        return sorted(text_of(row["id"]) for row in run(self._db.queries.recurring.remove_of, which).rows())

    def _template_of(self, row: Row) -> tuple[RecurringJob, datetime]:
        """And the `now` of the query."""
        now = self._db.instant(row["now"])
        assert now is not None
        return template_of(row, self._db.instant), now

    def _idle(self, upcoming: Sequence[Row], unknown: Sequence[Row]) -> Fired:
        """What is told when nothing was fired."""
        due_in = self._between(upcoming[0], "now", "due_at")
        if upcoming[0]["waiting"]:  # for the end of a job, which nobody announces
            due_in = _LOOK_AGAIN if due_in is None else min(due_in, _LOOK_AGAIN)
        methods = {text_of(row["id"]): text_of(row["method"]) for row in unknown}
        return Fired(jobs=(), disabled={}, next_due_in=due_in, unknown=methods)
