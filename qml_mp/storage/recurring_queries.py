"""Every process: what each backend's table of named queries has for recurring templates; see `queries`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurringQueries:
    """Templates of recurring jobs. A declaration: id, cron, tz, method, payload (JSON text), queue, priority,
    misfire, overlap, jitter_us, app, enabled, next_run_at, created_at. A template below: what
    `rows.template_of` reads, and now. It is due at its next firing, and when one that waits need wait no
    longer. methods None: any."""

    insert_or_lock: str
    """A declaration: insert it unless its id is there; the template, locked until the transaction ends, and
    locked_at, an instant since."""
    replace: str
    """A declaration, disabled_reason: replace it, save created_at and last_run_at."""
    switch: str
    """id, enabled, next_run_at, disabled_reason, cron and tz (that it has to have, and no firing to come;
    None: any). No firing waits any more."""
    remove: str
    """id: delete it."""
    remove_of: str
    """app, ids, methods: delete those of the app's templates that are of one of these methods; id."""
    get: str
    """id: template."""
    lock: str
    """id: template, which nobody else fires or changes until the transaction ends."""
    list_all: str
    """Templates by id."""
    lock_due: str
    """methods, lacking (zones), limit: templates due, oldest first, without those that another has locked.
    Those that may have many firings to catch up come last: it takes many ticks, and the others need one."""
    unfinished: str
    """id: a row if a job of the template has not ended."""
    advance: str
    """id, next_run_at, waiting_for, last_job_id (of the job that it has made now; None: it made none)."""
    next_firing: str
    """methods, lacking, refused (ids): due_at of the first of these methods that is not refused, first_at of
    any (NULL: none), waiting (how many firings of these methods wait), now; always one row."""
    unknown: str
    """methods: id, method of those that are due and of none of these methods."""
    correct: str
    """id, next_run_at, wrong: fire it then, unless its next firing is not `wrong` any more."""
    newest_jobs: str
    """ids, limit: what `template_jobs.template_job_of` reads of up to so many jobs of each of these templates
    that were made for the newest firings, and of as many that were made by hand."""
