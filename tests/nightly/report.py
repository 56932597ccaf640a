"""Tests: what a scenario found, and the table of all of them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table. A number that a scenario has no use for is None."""

    scenario: str
    backend: str
    seed: int
    done: int
    wanted: int
    unit: str
    """What is counted: jobs, kills, stops, …"""
    seconds: float
    load: float
    """The machine's load average over the last minute, at the end."""
    kills: int | None = None
    lost: int | None = None
    overlapping: int | None = None
    stale: int | None = None
    unexplained: int | None = None
    figures: str = ""
    broken: tuple[str, ...] = ()
    """Promises that did not hold."""

    @property
    def verdict(self) -> str:
        if self.broken:
            return "BROKEN"
        return "ok" if self.done >= self.wanted else "ok so far"


class Stopwatch:
    """How long a scenario took, and what else the machine had to do."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def reading(self) -> tuple[float, float]:
        """(seconds, load average)."""
        return time.monotonic() - self._began, os.getloadavg()[0]


def quantile(values: Sequence[float], q: float) -> float:
    """The value below or at which a share `q` of all lies (nearest rank); 0 of none."""
    ordered = sorted(values)
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def median_and_p99(what: str, values_ms: Sequence[float]) -> str:
    """ "idle gone 1.2 / 8.0 ms" and the worst one."""
    middle, high = quantile(values_ms, 0.5), quantile(values_ms, 0.99)
    return f"{what} {middle:.1f} / {high:.1f} ms (max {max(values_ms, default=0.0):.1f})"


def table(rows: Iterable[Row]) -> str:
    """The rows under their headings, and below each broken line the reasons."""
    headings = (
        "scenario", "backend", "seed", "count", "kills", "lost", "overlap", "stale", "unexplained",
        "s", "load", "verdict", "median / p99",
    )  # fmt: skip
    rows = list(rows)
    cells = [headings, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(headings))]
    lines = [_line(headings, widths), _line(tuple("-" * width for width in widths), widths)]
    for row in rows:
        lines.append(_line(_cells(row), widths))
        lines += [f"    BROKEN: {text}" for text in row.broken[:20]]
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    count = f"{row.done} {row.unit}" if row.done >= row.wanted else f"{row.done} of {row.wanted} {row.unit}"
    numbers = (row.kills, row.lost, row.overlapping, row.stale, row.unexplained)
    return (
        row.scenario, row.backend, str(row.seed), count,
        *("-" if number is None else str(number) for number in numbers),
        f"{row.seconds:.0f}", f"{row.load:.1f}", row.verdict, row.figures,
    )  # fmt: skip


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
