"""Client: tables as wide as the terminal: columns left out, then shortened, in an order that each says."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence

from qml_mp.cli.output import cell_text, short
from qml_mp.cli.text_width import width_of

GAP = 2
"""Between two columns."""

Columns = Mapping[str, Sequence[object]]
"""Cells by their header; None is a dash."""


def terminal_width() -> int | None:
    """The columns that a line of stdout has; None: it is no terminal, and a program may read it."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def fitted(
    columns: Columns,
    *,
    width: int | None,
    drop: Sequence[str] = (),
    shrink: Mapping[str, int],
) -> tuple[list[str], list[tuple[str, ...]]]:
    """Headers and rows whose lines take at most so many columns of a terminal (None: as they come).

    Columns of `drop` are left out, in this order, as long as there is no room for what has to stay. Those of
    `shrink` are then shortened, in this order, at most to the length that each has there; the last column, if
    it must be, to one character.
    """
    kept = {name: [cell_text(cell) for cell in cells] for name, cells in columns.items()}
    if width is not None:
        for name in drop:
            if _width_of(kept, shrink) > width:
                kept.pop(name, None)
        for name, least in (*shrink.items(), (list(kept)[-1], 1)):
            too_much = _width_of(kept, {}) - width
            if name in kept and too_much > 0:
                room = max(least, _longest(name, kept[name]) - too_much)
                kept[name] = [short(cell, room) for cell in kept[name]]
    return list(kept), list(zip(*kept.values(), strict=True))


def _width_of(columns: Mapping[str, Sequence[str]], shrink: Mapping[str, int]) -> int:
    """Of a line, with what can be shortened as short as it may be."""
    widths = [
        min(_longest(name, cells), max(len(name), shrink[name])) if name in shrink else _longest(name, cells)
        for name, cells in columns.items()
    ]
    return sum(widths) + GAP * (len(widths) - 1)


def _longest(name: str, cells: Sequence[str]) -> int:
    return max(map(width_of, [name, *cells]))
