"""Client: `--watch`: what a command shows, again and again, in the place where it stood before."""

from __future__ import annotations

import io
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import click

from qml_mp.cli.arguments import as_duration, name_of
from qml_mp.cli.failure import paragraph
from qml_mp.cli.text_width import rows_of
from qml_mp.errors import ConfigurationError, StorageUnavailable

_UP = "\x1b[{rows}A"
_CLEAR_LINE, _CLEAR_BELOW = "\x1b[K", "\x1b[J"
_LEAST = timedelta(milliseconds=100)

_Command = TypeVar("_Command", bound=Callable[..., Any])


def as_interval(ctx: click.Context, parameter: click.Parameter, value: str | None) -> timedelta | None:
    """Callback of an option: a duration between two looks. With less than a blink of an eye there is nothing
    more to see, and the storage is asked without a pause."""
    interval = as_duration(ctx, parameter, value)
    if interval is not None and interval < _LEAST:
        raise ConfigurationError(f"{name_of(parameter)} is {value!r}; it must be at least 100ms.")
    return interval


watch_option = click.option(
    "--watch",
    metavar="[SECONDS]",
    is_flag=False,
    flag_value="2",
    callback=as_interval,
    help="Show it again and again, every 2 seconds unless told otherwise, until Ctrl-C.",
)
"""`--watch`: the interval, or None."""


def show_once_or_watch(show: Callable[[], None], every: timedelta | None, *, as_json: bool = False) -> None:
    """Have `show` print to stdout, once or every so often until Ctrl-C. A storage that goes away meanwhile is
    told in its place, and asked again; of what a program reads (`as_json`), on stderr."""
    if every is None:
        show()
        return
    draw = partial(click.echo, nl=False) if as_json else Screen().draw
    tell = partial(click.echo, nl=False, err=True) if as_json else draw
    try:
        draw(printed(show))
        while True:
            time.sleep(every.total_seconds())
            try:
                draw(printed(show))
            except StorageUnavailable as error:
                tell(f"{paragraph(error)}\n")
    except KeyboardInterrupt:  # the ordinary end
        return


def printed(show: Callable[[], None]) -> str:
    """What it prints to stdout, as it would print it there."""
    out = sys.stdout
    text = _Captured(is_terminal=out.isatty(), encoding=out.encoding, errors=out.errors)
    with redirect_stdout(text):
        show()
    return text.text()


class Screen:
    """Blocks of lines on stdout, each in the place of the one before. Where stdout is no terminal they are
    appended, with an empty line between two."""

    def __init__(self) -> None:
        self._rows: int | None = None
        """Of the terminal, that the block there takes; None: there is none yet."""

    def draw(self, text: str) -> None:
        lines = text.splitlines()
        if not sys.stdout.isatty():
            click.echo(("" if self._rows is None else "\n") + text, nl=False)
            self._rows = len(lines)
            return
        size = shutil.get_terminal_size()
        kept, rows = _as_high_as(lines, columns=size.columns, rows=size.lines - 1)
        up = _UP.format(rows=self._rows) if self._rows else ""
        body = "".join(f"{line}{_CLEAR_LINE}\n" for line in kept)
        # In one write: nobody sees half of it.
        sys.stdout.write(f"{up}\r{body}{_CLEAR_BELOW}")
        sys.stdout.flush()
        self._rows = rows


def _as_high_as(lines: list[str], *, columns: int, rows: int) -> tuple[list[str], int]:
    """The first lines, with as many rows of a terminal as they may take, and how many they do."""
    kept: list[str] = []
    used = 0
    for number, line in enumerate(lines):
        height = rows_of(click.unstyle(line), columns)
        is_last = number == len(lines) - 1
        if used + height > rows - (0 if is_last else 1):
            return [*kept, f"… and {len(lines) - number} lines more"], used + 1
        kept.append(line)
        used += height
    return kept, used


class _Captured(io.TextIOWrapper):
    """What is printed, by somebody who looks at whether it is a terminal."""

    def __init__(self, *, is_terminal: bool, encoding: str, errors: str | None) -> None:
        self._bytes = io.BytesIO()
        super().__init__(self._bytes, encoding=encoding, errors=errors, newline="")
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal

    def text(self) -> str:
        self.flush()
        return self._bytes.getvalue().decode(self.encoding)
