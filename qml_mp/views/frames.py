"""Client and web process: a traceback taken apart: the user's own frames, the nearest to the error first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qml_mp.core.failure_kinds import is_foreign, read_frame, with_last_folder

_MOST = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One of the user's."""

    where: str
    """ "shop/tasks.py:41 in resize", with the last folder alone."""
    code: str
    """The line, as far as the traceback has it."""


def user_frames(traceback: str | None) -> Sequence[Frame]:
    """Those in files that are neither of the standard library nor installed, the nearest to the error first,
    at most 30."""
    found: list[Frame] = []
    lines = (traceback or "").splitlines()
    for line, below in zip(lines, [*lines[1:], ""], strict=False):
        frame = read_frame(line)
        code = "" if read_frame(below) is not None else below
        if frame is None or is_foreign(frame.file, has_source=code.startswith("    ")):
            continue
        where = f"{with_last_folder(frame.file)}:{frame.line} in {frame.function}"
        found.append(Frame(where=where, code=code.strip()))
    return found[::-1][:_MOST]
