"""Client: progress: one line that is drawn anew on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time

import click

_EVERY_S = 2.0
_REDRAW_S = 0.1


class Progress:
    """Where a long run stands, on stdout."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self._drawn_at: float | None = None
        self._shown = ""

    def show(self, text: str) -> None:
        """The present state; called as often as one likes."""
        now = time.monotonic()
        if self._drawn_at is not None and now - self._drawn_at < (_REDRAW_S if self._live else _EVERY_S):
            return
        self._drawn_at = now
        if self._live:
            click.echo(f"\r{text.ljust(len(self._shown))}", nl=False)
            self._shown = text
        else:
            click.echo(text)

    def say(self, text: str) -> None:
        """An event, on a line of its own that stays."""
        self.clear()
        click.echo(text)

    def clear(self) -> None:
        """Take the live line away; what is printed next stands at the margin."""
        if self._live and self._shown:
            click.echo(f"\r{' ' * len(self._shown)}\r", nl=False)
        self._shown = ""
        self._drawn_at = None
