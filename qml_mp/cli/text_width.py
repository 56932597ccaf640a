"""Client: how wide text is on a terminal: East Asian characters and emoji take two columns, accents none."""

from __future__ import annotations

import re
from unicodedata import category, east_asian_width

_WORD = re.compile(r"(?:--\S+ )?\S+")
_ON_THE_ONE_BEFORE = ("Mn", "Me")
"""Categories of marks that combine with the character before them."""
_VOWELS = re.compile("[\u1160-\u11ff\ud7b0-\ud7ff]")
"""And consonants behind them, of Korean text whose syllables are written by letters, as names of files are on
macOS: they stand within the syllable."""


def width_of(text: str) -> int:
    """The columns that printable text takes."""
    return len(text) if text.isascii() else sum(map(_columns_of, text))


def padded(text: str, width: int) -> str:
    """The text, filled up with spaces to so many columns."""
    return text + " " * (width - width_of(text))


def cut(text: str, width: int) -> str:
    """As much of the beginning as fits into so many columns, with the marks on its last character."""
    if text.isascii():
        return text[:width]
    used = 0
    for place, char in enumerate(text):
        used += _columns_of(char)
        if used > width:
            return text[:place]
    return text


def in_lines(text: str, columns: int) -> str:
    """Prose as lines of at most so many columns, divided between words; a longer word has a line of its own.
    An option stays with its value, so that both can be copied."""
    first, *words = _WORD.findall(text) or [""]
    lines = [first]
    for word in words:
        longer = f"{lines[-1]} {word}"
        if width_of(longer) <= columns:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)


def rows_of(text: str, columns: int) -> int:
    """How many rows of a terminal of so many columns it takes. No character is divided between two."""
    rows, used = 1, 0
    for width in map(_columns_of, text):
        if used + width > columns:
            rows, used = rows + 1, 0
        used += width
    return rows


def _columns_of(char: str) -> int:
    if category(char) in _ON_THE_ONE_BEFORE or _VOWELS.fullmatch(char):
        return 0
    return 2 if east_asian_width(char) in "WF" else 1
