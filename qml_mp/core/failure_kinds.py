"""Anywhere: what failures are told apart by: method, type, and the user's line nearest to the error."""

from __future__ import annotations

import os
import re
from binascii import crc32  # hashlib would bring OpenSSL into every process, for keys that protect nothing
from dataclasses import dataclass

TRACEBACK = "Traceback (most recent call last):"
"""What each traceback begins with."""
OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
"""The folder of this package: what its frames' files begin with."""

_FRAME = re.compile(r'  File "(.+)", line (\d+), in (.+)')
_NO_PYTHON = re.compile(r'  File "([^<].*)", line (\d+)')
"""What a SyntaxError says of the file that could not be read."""
_LINKS = ("The above exception was the direct cause", "During handling of the above exception")
_FOREIGN = re.compile(
    r"^<frozen |^<string>$|^<attrs generated |[/\\](site|dist)-packages[/\\]|[/\\]lib[/\\]python3\.\d+[/\\]"
    r"|^<stringsource>$"
)
"""Files of the standard library and of installed packages; and code that these have written while the program
runs, such as the methods of a dataclass, whose lines stand in no file."""
_OF_CYTHON = re.compile(r"^[^/\\<][^:]*\.p(yx|xi|xd)$")
"""Their paths are as they were where they were compiled, often relative."""
_MADE = "<string>"
"""What stands for a file in the frames of such code, and of all that is given to exec() or `python -c`."""
_MAX_CHARS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameLine:
    """What the line of a traceback says that begins a frame."""

    file: str
    line: str
    function: str


def read_frame(line: str) -> FrameLine | None:
    """None: the line begins no frame."""
    found = _FRAME.fullmatch(line)
    return None if found is None else FrameLine(file=found[1], line=found[2], function=found[3])


def is_foreign(file: str, *, has_source: bool) -> bool:
    """Whether it belongs to the standard library or to an installed package, or is code that these made. Of
    Cython the user's own has its source there, from which the traceback has the line below the frame."""
    return _FOREIGN.search(file) is not None or (not has_source and _OF_CYTHON.search(file) is not None)


def failure_key(method: str, error_type: str, traceback: str | None) -> str:
    """What failures of the same kind have in common, short enough for an index whatever their names are."""
    told = "\0".join((method, error_type, user_frame(traceback) or "")).encode("utf-8", "surrogatepass")
    return f"{crc32(told):08x}{crc32(told[::-1]):08x}"


def user_frame(traceback: str | None) -> str | None:
    """The user's frame nearest to the error, "app/tasks.py:12 in thumb", with the last folder alone, so that
    the same code in two places is the same. Where none is the user's, the outermost: that of the job's
    function, installed as a package; or, where no file has that function, as of `python -c`, the nearest that
    is in none. None: the text has no frame.
    """
    nearest: re.Match[str] | None = None
    made: re.Match[str] | None = None
    below = ""
    for line in reversed((traceback or "").splitlines()):
        frame, has_source, below = _FRAME.fullmatch(line), below.startswith("    "), line
        if frame is not None:
            nearest = frame
            made = (made or frame) if frame[1] == _MADE else None
            if not is_foreign(frame[1], has_source=has_source):
                break
        elif nearest is not None and line.startswith(_LINKS):
            break  # what stands before it belongs to the cause
    if nearest is not None and nearest[1] == _MADE:
        nearest = made
    return None if nearest is None else _told(nearest)


def place_of_error(traceback: str) -> str | None:
    """`user_frame`, or of a file that is no Python the line that is none, "app/tasks.py:12"."""
    for line in reversed(traceback.splitlines()):
        if _FRAME.fullmatch(line) is not None:
            break
        unread = _NO_PYTHON.fullmatch(line)
        if unread is not None:
            return f"{with_last_folder(unread[1])}:{unread[2]}"[-_MAX_CHARS:]
    return user_frame(traceback)


def _told(frame: re.Match[str]) -> str:
    return f"{with_last_folder(frame[1])}:{frame[2]} in {frame[3]}"[-_MAX_CHARS:]


def with_last_folder(path: str) -> str:
    """Of a file's path what the same code has in two places: its name, and the folder that it is in."""
    return "/".join(path.replace("\\", "/").split("/")[-2:])
