"""Client: failures by kind: how many, the last time, what failed where, and one job to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from qml_mp.cli.fitting import GAP, fitted, terminal_width
from qml_mp.cli.output import local_time, print_table, short
from qml_mp.cli.text_width import width_of
from qml_mp.core.failure_kinds import user_frame
from qml_mp.core.payload import JsonValue
from qml_mp.printable import printable
from qml_mp.storage.values import FailureKind

_ERROR_CHARS: Final = 100
"""Where there is no terminal whose width could be kept."""


def print_failures(kinds: Sequence[FailureKind]) -> None:
    """The table on stdout: a line for each kind, and below it where it failed, and a job."""
    width = terminal_width()
    headers, rows = fitted(
        {
            "JOBS": [str(kind.count) for kind in kinds],
            "LAST": [local_time(kind.last_at) or "" for kind in kinds],
            "METHOD": [printable(kind.newest.method) for kind in kinds],
            "ERROR": [
                short(printable(_error(kind)), _ERROR_CHARS if width is None else 1000) for kind in kinds
            ],
        },
        width=width,
        shrink={"ERROR": 16, "METHOD": 12},
    )
    print_table(headers, rows, below=[_where(kind, width) for kind in kinds])


def failure_to_json(kind: FailureKind) -> dict[str, JsonValue]:
    """A line of `jobs errors --json`."""
    error = kind.newest.last_error
    return {
        "count": kind.count,
        "method": kind.newest.method,
        "type": None if error is None else error.type,
        "message": None if error is None else error.message,
        "frame": None if error is None else user_frame(error.traceback),
        "last_at": kind.last_at.isoformat(),
        "example": kind.newest.id,
        "kind": kind.key,
    }


def _error(kind: FailureKind) -> str:
    error = kind.newest.last_error
    return "no error is known" if error is None else f"{error.type}: {error.message}"


def _where(kind: FailureKind, width: int | None) -> str:
    error = kind.newest.last_error
    frame = None if error is None else user_frame(error.traceback)
    example = f"e.g. {kind.newest.id}"
    if frame is None:
        return f"  {example}"
    where = printable(frame)
    if width is None or width_of(where) + len(example) + 2 * GAP <= width:
        return f"  {where}  {example}"
    return f"  {short(where, width - GAP)}\n  {example}"
