"""Client: one run of `qml-mp bench`, as a table with what it says, or as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import click

from qml_mp import __version__
from qml_mp.bench.figures import Figures, Spread
from qml_mp.bench.verdicts import verdicts
from qml_mp.cli.output import print_table, say
from qml_mp.core.payload import JsonValue
from qml_mp.units import format_duration

_COLUMNS = 80
_Row = tuple[str, str | None, str | None, str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRun:
    """The figures, and what they were measured on."""

    storage: str
    """As people may see its URL."""
    workers: int
    cores: int
    load_before: float
    """Processes that wanted a core in the minute before."""
    took: timedelta
    figures: Figures


def print_bench(run: BenchRun) -> None:
    """For people, within 80 columns save the URL."""
    say(run.storage)
    say(
        f"{run.workers} workers on {run.cores} cores, {run.took.total_seconds():.0f} seconds, "
        f"qml-mp {__version__}"
    )
    click.echo()
    print_table(("MEASURE", "RESULT", "P50", "P99"), _rows(run.figures))
    click.echo()
    for verdict in verdicts(run.figures):
        for line in textwrap.wrap(verdict, _COLUMNS):
            say(line)


def to_json(run: BenchRun) -> dict[str, JsonValue]:
    """For programs. What was not measured is null or an empty list."""
    figures = run.figures
    storage, latency = figures.storage, figures.latency
    return {
        "storage": run.storage,
        "version": __version__,
        "workers": run.workers,
        "cores": run.cores,
        "load_before": round(run.load_before, 2),
        "seconds": round(run.took.total_seconds(), 1),
        "read_ms": None if storage is None else _spread_to_json(storage.read),
        "commit_ms": None if storage is None else _spread_to_json(storage.commit),
        "flush_ms": None if storage is None else _ms(storage.flush),
        "bulk_enqueue_jobs_per_s": None if storage is None else round(storage.bulk_per_s, 1),
        "throughput": [
            {"batch": rate.batch, "jobs": rate.jobs, "jobs_per_s": round(rate.jobs_per_s, 1)}
            for rate in figures.throughput
        ],
        "latency_ms": None if latency is None else _spread_to_json(latency),
        "efficiency": [
            {
                "job_ms": _ms(each.length),
                "jobs": each.jobs,
                "ratio": round(each.ratio, 4),
                "overhead_ms": _ms(each.overhead),
            }
            for each in figures.efficiency
        ],
        "verdicts": list(verdicts(figures)),
    }


def _rows(figures: Figures) -> Iterator[_Row]:
    if figures.storage is not None:
        yield _timed("read a row", figures.storage.read)
        yield _timed("enqueue one job (a commit)", figures.storage.commit)
        yield ("enqueue in bulk", f"{figures.storage.bulk_per_s:,.0f} jobs/s", None, None)
    for rate in figures.throughput:
        what = "run empty jobs, one at a time" if rate.batch == 1 else f"run empty jobs, by {rate.batch}"
        yield (what, f"{rate.jobs_per_s:,.0f} jobs/s", None, None)
    if figures.latency is not None:
        yield ("from commit to start", None, *_both(figures.latency))
    for each in figures.efficiency:
        what = f"efficiency, jobs of {format_duration(each.length)}"
        yield (what, f"{each.ratio:.0%}, {format_duration(each.overhead)} a job", None, None)


def _timed(what: str, spread: Spread) -> _Row:
    return (what, f"{timedelta(seconds=1) / spread.p50:,.0f} /s", *_both(spread))


def _both(spread: Spread) -> tuple[str, str]:
    return format_duration(spread.p50), format_duration(spread.p99)


def _spread_to_json(spread: Spread) -> dict[str, JsonValue]:
    return {"p50": _ms(spread.p50), "p99": _ms(spread.p99), "samples": spread.samples}


def _ms(duration: timedelta) -> float:
    return duration / timedelta(milliseconds=1)
