"""Worker and supervisor: whether a worker may begin at all: one that is above a limit of its memory before
its first job would be replaced, or its jobs killed, for ever."""

from __future__ import annotations

from qml_mp.settings import ServerConfig
from qml_mp.units import format_size


class TooLargeError(Exception):
    """A worker without a job is above a limit of its memory."""


def lowest_limit(config: ServerConfig) -> int | None:
    """In bytes; None: there is no limit."""
    return min(
        (size for size in (config.max_memory, config.max_memory_hard) if size is not None), default=None
    )


def check_memory(limit_bytes: int | None, used_bytes: int | None) -> None:
    """Raise `TooLargeError` for a worker without a job that uses so much (None: not known)."""
    if limit_bytes is not None and used_bytes is not None and used_bytes >= limit_bytes:
        raise TooLargeError(
            f"The memory limit of {format_size(limit_bytes)} is less than what a worker uses before its "
            f"first job ({format_size(used_bytes)}), so it would be replaced for ever. Raise it."
        )
