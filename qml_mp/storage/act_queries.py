"""Every process: what each backend's table of named queries has for acts and the audit; see `queries`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ActQueries:
    """What is asked of servers, and what was changed. An act below: what `rows.act_of` reads; one that was
    not taken in time reads as expired."""

    ask: str
    """id, what, subject, server_id, arguments, asked_by, asked_from, within: insert it, unless one with its
    id is there, as asked, or as gone when its server is not there; a server that goes at the same moment
    finds it. Tells the servers."""
    note: str
    """id, what, subject, asked_by, asked_from, state, said: insert what was changed, or have the one with its
    id say so."""
    get: str
    """id: act."""
    page: str
    """asked_of_servers (only these), after (the id of the last one of the page before; None: from the first),
    limit: acts, newest first, without their answers."""
    any_asked: str
    """server_id, in_hand: a row if `take` would hit any."""
    take: str
    """server_id, in_hand: those that are asked of it or that it has taken, without these: taken, or expired
    when their time is over; act of each."""
    answer: str
    """id, server_id, state, said, answer: say so of one that it has taken and not ended."""
    end_of_server: str
    """server_id, done: unless the server is there, end what is asked of it and what it has taken; of the
    latter these ids are done, by a stop unless they ask for something else."""
    any_old: str | None
    """kept_for: a row if `delete_old` would hit any. None: it is not asked, as there are several writers."""
    delete_old: str
    """kept_for, limit: delete so many of those that are older, the oldest first, save those that a server is
    about."""
