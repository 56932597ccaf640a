"""Every process: what servers tell of themselves, and what the tables take."""

from __future__ import annotations

from typing import Final

from qml_mp.storage.system_queries import SystemQueries

SYSTEM: Final = SystemQueries(
    describe="UPDATE {s}.servers SET description = %(description)s WHERE id = %(server_id)s",
    descriptions="SELECT id, description FROM {s}.servers",
    # By the oid of a table that is there: the name of the schema is quoted for SQL, and not to be compared.
    size="""
        SELECT pg_class.relname::text AS name, pg_total_relation_size(pg_class.oid) AS bytes,
            n_live_tup AS live_rows, n_dead_tup AS dead_rows, NULL::bigint AS free_bytes,
            'PostgreSQL ' || current_setting('server_version') AS version
        FROM pg_class LEFT JOIN pg_stat_user_tables ON relid = pg_class.oid
        WHERE relkind IN ('r', 'p') AND relnamespace = (
            SELECT relnamespace FROM pg_class WHERE oid = '{s}.jobs'::regclass)
        ORDER BY bytes DESC, name
    """,
)
