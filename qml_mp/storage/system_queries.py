"""Every process: what each backend's table of named queries has for the system itself; see `queries`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemQueries:
    """What servers tell of themselves, and what the storage takes."""

    describe: str
    """server_id, description: replace it; no row: the server is not there."""
    descriptions: str
    """id, description of each server."""
    size: str
    """name, bytes, live_rows, dead_rows, free_bytes, version: a row for each table, or one for all; NULL is
    what the backend does not tell."""
