"""Every process: text from outside made harmless for a terminal, a log and a process list."""

from __future__ import annotations

import json
import re

_TAB_COLUMNS = 4
_IN_JSON = re.compile(r"[^ -~]")


def printable(text: str) -> str:
    """The text on one line, with a backslash escape for each character that is not printed as itself.

    Those are control characters (the C1 ones too), line and paragraph ends of every kind, characters
    of no width, and those that turn the direction of the text.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def printable_lines(text: str) -> list[str]:
    """The lines of a text such as a traceback, each printable, with its tabs as spaces."""
    return [printable(line.expandtabs(_TAB_COLUMNS)) for line in text.removesuffix("\n").split("\n")]


def printable_json(encoded: str) -> str:
    """The JSON text with the same characters as JSON escapes: the value that it stands for is the same."""
    return _IN_JSON.sub(_json_escape, encoded)


def _json_escape(found: re.Match[str]) -> str:
    char = found[0]
    return char if char.isprintable() else json.dumps(char)[1:-1]
