"""Every process: what is asked of servers through storage, and the audit."""

from __future__ import annotations

from typing import Final

from qml_mp.storage.act_queries import ActQueries
from qml_mp.storage.postgres.queries.common import Told
from qml_mp.storage.rows import ACT_COLUMNS

_STATE: Final = """
    CASE WHEN state = 'asked' AND until <= clock_timestamp() THEN 'expired' ELSE state END AS state
"""
_OPEN: Final = "server_id = %(server_id)s AND state IN ('asked', 'taken')"
_TO_TAKE: Final = f"{_OPEN} AND id <> ALL(%(in_hand)s::text[])"
_TOLD: Final = f"pg_notify(%(channel)s, '{Told.NO_JOB}') AS told"

ACTS: Final = ActQueries(
    ask=f"""
        -- Its row is locked, so that who removes the server at the same time finds this in the query after.
        WITH server AS (SELECT id FROM {{s}}.servers WHERE id = %(server_id)s FOR KEY SHARE)
        INSERT INTO {{s}}.acts (id, what, subject, server_id, arguments, asked_by, asked_from, until, state,
                                ended_at)
        SELECT %(id)s, %(what)s, %(subject)s, %(server_id)s, %(arguments)s, %(asked_by)s, %(asked_from)s,
               now() + %(within)s::interval, CASE WHEN found THEN 'asked' ELSE 'gone' END,
               CASE WHEN found THEN NULL ELSE now() END
        FROM (SELECT EXISTS (SELECT FROM server) AS found) AS look
        ON CONFLICT (id) DO NOTHING
        RETURNING {_TOLD}
    """,
    note="""
        INSERT INTO {s}.acts (id, what, subject, asked_by, asked_from, state, ended_at, said)
        VALUES (%(id)s, %(what)s, %(subject)s, %(asked_by)s, %(asked_from)s, %(state)s, now(), %(said)s)
        ON CONFLICT (id) DO UPDATE
        SET state = excluded.state, ended_at = excluded.ended_at, said = excluded.said
    """,
    get=f"SELECT {ACT_COLUMNS}, {_STATE}, answer FROM {{s}}.acts WHERE id = %(id)s",
    page=f"""
        SELECT {ACT_COLUMNS}, {_STATE}, NULL AS answer FROM {{s}}.acts
        WHERE (NOT %(asked_of_servers)s::boolean OR server_id IS NOT NULL)
          AND (%(after)s::text IS NULL
               OR (asked_at, id) < (SELECT asked_at, id FROM {{s}}.acts WHERE id = %(after)s::text))
        ORDER BY asked_at DESC, id DESC LIMIT %(limit)s
    """,
    any_asked=f"SELECT 1 AS asked FROM {{s}}.acts WHERE {_TO_TAKE} LIMIT 1",
    # By the clock of this moment: the transaction may have waited for who asks.
    take=f"""
        UPDATE {{s}}.acts
        SET state = CASE WHEN until > clock_timestamp() THEN 'taken' ELSE 'expired' END,
            taken_at = CASE WHEN until > clock_timestamp() THEN clock_timestamp() END,
            ended_at = CASE WHEN until > clock_timestamp() THEN NULL ELSE clock_timestamp() END
        WHERE {_TO_TAKE}
        RETURNING {ACT_COLUMNS}, state, answer
    """,
    answer=f"""
        UPDATE {{s}}.acts
        SET state = %(state)s, said = %(said)s, answer = %(answer)s,
            ended_at = CASE WHEN %(state)s = 'taken' THEN NULL ELSE clock_timestamp() END
        WHERE id = %(id)s AND server_id = %(server_id)s AND state = 'taken'
        RETURNING {_TOLD}
    """,
    end_of_server=f"""
        UPDATE {{s}}.acts
        SET state = CASE WHEN state = 'asked' AND until <= clock_timestamp() THEN 'expired'
                         WHEN state = 'asked' THEN 'gone'
                         WHEN id = ANY(%(done)s::text[]) THEN 'done'
                         ELSE 'unfinished' END,
            -- What it said before is how far it was.
            said = CASE WHEN id <> ALL(%(done)s::text[]) THEN said
                        WHEN what IN ('stop', 'drain') THEN 'stopped' END,
            ended_at = clock_timestamp()
        WHERE {_OPEN} AND NOT EXISTS (SELECT FROM {{s}}.servers AS s WHERE s.id = %(server_id)s)
        RETURNING {_TOLD}
    """,
    any_old=None,
    delete_old="""
        DELETE FROM {s}.acts WHERE id = ANY(ARRAY(
            SELECT id FROM {s}.acts
            WHERE asked_at < now() - %(kept_for)s::interval AND state <> 'taken'
            -- SKIP LOCKED: another server deletes the others.
            ORDER BY asked_at, id LIMIT %(limit)s FOR UPDATE SKIP LOCKED))
    """,
)
