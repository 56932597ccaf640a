"""Every process: what each backend's table of named queries has for who is told of ends; see `queries`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitQueries:
    """Waiting for the ends of jobs. waiter: a name that each has for itself."""

    ended: str
    """ids: asked_id and job of each that has ended or is not there; of the latter the job is all NULL. found:
    how many there are, also of those whose rows are left out of an answer that would be too long; NULL: all
    are here."""
    begin: str | None
    """waiter, ids, ttl: have the ends of these jobs be told for so long. None: each commit is seen."""
    end: str | None
    """waiter, ids: no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureQueries:
    """Callbacks of failures that are to be called. methods: of jobs; tries: how often one was begun, which
    also fences it."""

    hooked: str
    """methods: method, calls, traces of those among them whose code wants to be told of something."""
    hook: str
    """methods, calls, traces: their code wants callbacks from now on, or to trace attempts, or both."""
    unhook: str
    """methods: it does not any more."""
    note: str
    """id, claim_seq: if the job has Failed by this claim, and its code wants it, one is to be called."""
    note_all: str
    """ids: the same for jobs that have Failed without a claim."""
    due: str
    """methods: a row if there is one that can be taken. What nobody has tried can, whenever it is due: the
    clock may have been set back."""
    take: str
    """methods, worker_id, lease: the one that is due for longest is this worker's for so long, if it is in
    the registry; job_id, claim_seq, tries. It is due too when the worker that has it is there no more."""
    postpone: str
    """job_id, claim_seq, tries, delay: it is to be tried again then."""
    hasten: str
    """Have those be due now that are put off by more than six minutes, as no call that raises puts one off:
    the clock was set back."""
    end: str
    """job_id, claim_seq, tries: it was called, or is given up."""
    looked_through: str
    """after (the id of a job), limit: job_id and is_gone of so many, by the ids of their jobs. A job is
    gone when it is Deleted, or not there any more."""
    forget: str
    """ids: delete those of these jobs that are gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LostAttemptQueries:
    """Attempts that somebody else has ended than the worker that began them, until their span is exported."""

    note: str
    """id, claim_seq, method, facts (JSON): keep this one, if the code of its method traces its attempts."""
    due: str
    """methods: a row if there is one that can be taken."""
    take: str
    """methods, worker_id, lease, limit: those that are due for longest are this worker's for so long, if it
    is in the registry, and for twice as long each further time; job_id, claim_seq, facts, ended_at. They are
    due too when the worker that has them is there no more."""
    hasten: str
    """Have those be due now that are put off for longer than by the newest of their tries: the clock was set
    back."""
    end: str
    """worker_id, ids, claim_seqs: of these, those that it has are exported."""
    any_old: str | None
    """A row if `forget` would hit any. None: it is not asked, as there are several writers."""
    forget: str
    """limit: delete so many of those that have waited for a day, the oldest first: no worker is left
    that traces their methods, or none could export them."""
