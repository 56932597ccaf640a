"""Every process: what each backend's table of named queries has for the history; see `queries`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryQueries:
    """What came of claims, by period. A period is known by step_s, begins_at and writer."""

    note: str
    """rows: a JSON list of objects, no period twice, each a period (begins_s, since 1970, for begins_at),
    claims, totals, queues, methods (JSON texts): have it so, unless as many claims or more stand there;
    `count` of those written."""
    totals: str
    """step_s, since, until: begins_at and told (totals) of the periods that begin in between."""
    queues: str
    """The same with queues."""
    methods: str
    """The same with methods."""
    method: str
    """The same with what methods has of this method; no row where that is nothing."""
    recorded: str
    """ids, claim_seqs (those of each claim at the same place): `released_columns` of its job, as it is now;
    of_claim, which is its claim_seq; ended_as, the kind of its attempt. No row where the job is gone."""
    any_old: str | None
    """older_than: a row if `forget` would hit any. None: it is not asked, as there are several writers."""
    forget: str
    """older_than, limit: delete periods that ended before."""
