"""Client: what commands print on stdout: JSON lines for programs, tables for people."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import datetime, timedelta
from typing import TextIO

import click

from qml_mp.cli.text_width import cut, in_lines, padded, width_of
from qml_mp.core.payload import JsonValue
from qml_mp.printable import printable, printable_json
from qml_mp.units import format_duration

_NOTHING = "-"
_COLOURS = {
    "enqueued": "blue", "scheduled": "blue", "processing": "cyan", "awaiting_retry": "yellow",
    "succeeded": "green", "failed": "red", "busy": "cyan", "dead": "red", "paused": "yellow", "crash": "red",
}  # fmt: skip

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object per line, for programs.")
"""`--json`, which every reading command has."""


def print_json(value: object) -> None:
    """One JSON value on one line of stdout."""
    utf8 = sys.stdout.encoding.lower().replace("-", "") == "utf8"
    click.echo(printable_json(json.dumps(value, ensure_ascii=not utf8, separators=(", ", ": "))))


def print_table(
    headers: Sequence[str], rows: Iterable[Sequence[object]], *, below: Sequence[str] | None = None
) -> None:
    """Columns under their headers; None is a dash, and known states have colours on a terminal. `below` has a
    line to follow each row."""
    cells = [[cell_text(cell) for cell in row] for row in rows]
    widths = [max(map(width_of, column)) for column in zip(headers, *cells, strict=True)]
    widths[-1] = 0  # nothing stands to the right of the last column
    click.echo(
        _line(
            click.style(padded(header, width), bold=True)
            for header, width in zip(headers, widths, strict=True)
        )
    )
    for number, row in enumerate(cells):
        click.echo(_line(coloured(cell, width) for cell, width in zip(row, widths, strict=True)))
        if below is not None:
            click.echo(below[number])


def cell_text(cell: object) -> str:
    """A cell of a table as text for a terminal."""
    return _NOTHING if cell is None else printable(str(cell))


def coloured(word: str, width: int = 0) -> str:
    """The word in the colour of the state it names, filled up to the width."""
    return click.style(padded(word, width), fg=_COLOURS.get(word))


def say(text: str) -> None:
    """A line of plain text on stdout."""
    click.echo(printable(text))


def report(text: str, *, err: bool = False) -> None:
    """A line of plain text on stdout or stderr of what was done, or not; see `unheard`."""
    with unheard():
        click.echo(printable(text), err=err)


def say_in_lines(text: str) -> None:
    """Prose on stdout; on a terminal in lines that it does not have to break."""
    click.echo(_for_terminal(printable(text), sys.stdout))


def note(text: str) -> None:
    """A remark for people, on stderr, where it does not mix with data; on a terminal as `say_in_lines`."""
    with unheard():
        click.echo(_for_terminal(f"qml-mp: {printable(text)}", sys.stderr), err=True)


@contextmanager
def unheard() -> Iterator[None]:
    """While it is told what was changed or judged: a reader that is gone, as in `… | head -1`, breaks nothing
    off and changes no exit code."""
    try:
        yield
    except BrokenPipeError:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except BrokenPipeError:  # it is this one, which has kept what it could not write
                discard(stream)


def discard(stream: TextIO) -> None:
    """Point it nowhere, so that neither a later line nor the interpreter's last flush complains."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def short(text: str, limit: int) -> str:
    """The text, cut with an ellipsis when it takes more columns of a terminal; with a tilde where the
    encoding of stdout has no ellipsis, as the escape that is printed for one takes six columns."""
    return text if width_of(text) <= limit else cut(text, limit - 1) + _mark_of_a_cut()


def compact_json(value: JsonValue) -> str:
    """A JSON value for people, on one line."""
    return json.dumps(value, ensure_ascii=False, separators=(", ", ": "))


def local_time(instant: datetime | None) -> str | None:
    """The instant in the zone of this machine, to the second."""
    return None if instant is None else instant.astimezone().strftime("%Y-%m-%d %H:%M:%S")


@contextmanager
def stdout_for_data() -> Iterator[None]:
    """While code of the user is imported, here or in a copy of this process: what it prints goes to stderr,
    and so does what the programs print that it calls."""
    own = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(own, 1)
        os.close(own)


def age(duration: timedelta | float | None) -> str | None:
    """A duration for people."""
    if duration is None:
        return None
    return format_duration(duration if isinstance(duration, timedelta) else timedelta(seconds=duration))


def _for_terminal(text: str, stream: TextIO) -> str:
    return in_lines(text, shutil.get_terminal_size().columns) if stream.isatty() else text


def _mark_of_a_cut() -> str:
    try:
        "…".encode(sys.stdout.encoding or "utf-8")  # a stream in memory has none
    except UnicodeEncodeError:
        return "~"
    return "…"


def _line(cells: Iterable[str]) -> str:
    return "  ".join(cells)
