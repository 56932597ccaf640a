"""Every process: what is asked of servers through storage, and the audit."""

from __future__ import annotations

from typing import Final

from qml_mp.storage.act_queries import ActQueries
from qml_mp.storage.rows import ACT_COLUMNS

_STATE: Final = "iif(state = 'asked' AND until <= :now, 'expired', state) AS state"
_OPEN: Final = "server_id = :server_id AND state IN ('asked', 'taken')"
_TO_TAKE: Final = f"{_OPEN} AND id NOT IN (SELECT value FROM json_each(:in_hand))"
_OLD: Final = "asked_at < :now - :kept_for AND state <> 'taken'"

# `:now` was read under the write lock.
ACTS: Final = ActQueries(
    ask="""
        INSERT INTO qml_acts (
            id, what, subject, server_id, arguments, asked_by, asked_from, asked_at, until, state, ended_at)
        SELECT :id, :what, :subject, :server_id, :arguments, :asked_by, :asked_from, :now, :now + :within,
            iif(found, 'asked', 'gone'), iif(found, NULL, :now)
        FROM (SELECT EXISTS (SELECT 1 FROM qml_servers WHERE id = :server_id) AS found)
        WHERE true
        ON CONFLICT (id) DO NOTHING
    """,
    note="""
        INSERT INTO qml_acts (id, what, subject, asked_by, asked_from, asked_at, state, ended_at, said)
        VALUES (:id, :what, :subject, :asked_by, :asked_from, :now, :state, :now, :said)
        ON CONFLICT (id) DO UPDATE
        SET state = excluded.state, ended_at = excluded.ended_at, said = excluded.said
    """,
    get=f"SELECT {ACT_COLUMNS}, {_STATE}, answer FROM qml_acts WHERE id = :id",
    page=f"""
        SELECT {ACT_COLUMNS}, {_STATE}, NULL AS answer FROM qml_acts
        WHERE (NOT :asked_of_servers OR server_id IS NOT NULL)
          AND (:after IS NULL OR (asked_at, id) < (SELECT asked_at, id FROM qml_acts WHERE id = :after))
        ORDER BY asked_at DESC, id DESC LIMIT :limit
    """,
    any_asked=f"SELECT 1 AS asked FROM qml_acts WHERE {_TO_TAKE} LIMIT 1",
    take=f"""
        UPDATE qml_acts
        SET state = iif(until > :now, 'taken', 'expired'), taken_at = iif(until > :now, :now, NULL),
            ended_at = iif(until > :now, NULL, :now)
        WHERE {_TO_TAKE}
        RETURNING {ACT_COLUMNS}, state, answer
    """,
    answer="""
        UPDATE qml_acts
        SET state = :state, said = :said, answer = :answer, ended_at = iif(:state = 'taken', NULL, :now)
        WHERE id = :id AND server_id = :server_id AND state = 'taken'
    """,
    end_of_server=f"""
        UPDATE qml_acts
        SET state = CASE WHEN state = 'asked' AND until <= :now THEN 'expired'
                         WHEN state = 'asked' THEN 'gone'
                         WHEN id IN (SELECT value FROM json_each(:done)) THEN 'done'
                         ELSE 'unfinished' END,
            -- What it said before is how far it was.
            said = CASE WHEN id NOT IN (SELECT value FROM json_each(:done)) THEN said
                        WHEN what IN ('stop', 'drain') THEN 'stopped' END,
            ended_at = :now
        WHERE {_OPEN} AND NOT EXISTS (SELECT 1 FROM qml_servers AS s WHERE s.id = :server_id)
    """,
    any_old=f"SELECT 1 AS old FROM qml_acts INDEXED BY qml_acts_by_age WHERE {_OLD} LIMIT 1",
    delete_old=f"""
        DELETE FROM qml_acts WHERE id IN (
            SELECT id FROM qml_acts INDEXED BY qml_acts_by_age
            WHERE {_OLD} ORDER BY asked_at, id LIMIT :limit)
    """,
)
