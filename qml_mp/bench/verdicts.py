"""Client, no I/O: what the figures say to somebody who runs the storage, in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from itertools import takewhile

from qml_mp.bench.figures import EfficiencyFigures, Figures, Spread, StorageFigures, ThroughputFigures
from qml_mp.units import format_duration

_SLOW_FLUSH = timedelta(milliseconds=2)
"""Disks that are made for databases take less."""
_LONG_WAY = timedelta(milliseconds=1)
"""A server in the same building answers sooner."""
_GOOD_RATIO = 0.95


def verdicts(figures: Figures) -> Iterator[str]:
    """One sentence or two for each thing that was measured."""
    if figures.storage is not None:
        yield from _about_storage(figures.storage)
    if figures.throughput:
        yield _about_throughput(figures.throughput)
    if figures.latency is not None:
        yield _about_latency(figures.latency)
    if figures.efficiency:
        yield _about_efficiency(figures.efficiency)


def _about_storage(storage: StorageFigures) -> Iterator[str]:
    commits = timedelta(seconds=1) / storage.commit.p50
    flush, read = format_duration(storage.flush), format_duration(storage.read.p50)
    yield (
        f"One connection commits {commits:,.0f} times a second. A commit takes "
        f"{format_duration(storage.commit.p50)} and a read {read}: about {flush} is the write and its way to "
        "the disk."
    )
    if storage.flush >= _SLOW_FLUSH:
        yield f"The disk is slow to flush ({flush}): it, not the CPU, limits short jobs and single enqueues."
    if storage.read.p50 >= _LONG_WAY:
        yield f"The way to the database and back is long ({read}): each commit pays for it."
    yield from storage.caveats


def _about_throughput(throughput: tuple[ThroughputFigures, ...]) -> str:
    first, *_, last = throughput
    return (
        f"{first.jobs_per_s:,.0f} empty jobs a second with a commit for each, {last.jobs_per_s:,.0f} with "
        f"up to {last.batch} to a commit."
    )


def _about_latency(latency: Spread) -> str:
    return (
        f"An idle server starts a job {format_duration(latency.p50)} after its commit, and 99 of 100 within "
        f"{format_duration(latency.p99)}."
    )


def _about_efficiency(efficiency: tuple[EfficiencyFigures, ...]) -> str:
    good = list(takewhile(lambda each: each.ratio >= _GOOD_RATIO, reversed(efficiency)))
    if good:
        return (
            f"Jobs of {format_duration(good[-1].length)} and longer get at least {_GOOD_RATIO:.0%} of what "
            "bare processes get out of the cores."
        )
    longest = efficiency[-1]
    return (
        f"Even jobs of {format_duration(longest.length)} get only {longest.ratio:.0%} of what bare processes "
        "get out of the cores: the storage is slow, or something else needs them."
    )
