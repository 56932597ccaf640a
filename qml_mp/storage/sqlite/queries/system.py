"""Every process: what servers tell of themselves, and what the file takes."""

from __future__ import annotations

from typing import Final

from qml_mp.storage.system_queries import SystemQueries

SYSTEM: Final = SystemQueries(
    describe="UPDATE qml_servers SET description = :description WHERE id = :server_id",
    descriptions="SELECT id, description FROM qml_servers",
    # The file has no statistics of single tables.
    size="""
        SELECT 'the file' AS name, page_count * page_size AS bytes, NULL AS live_rows, NULL AS dead_rows,
            freelist_count * page_size AS free_bytes, 'SQLite ' || sqlite_version() AS version
        FROM pragma_page_count, pragma_page_size, pragma_freelist_count
    """,
)
