"""Client: `qml-mp bench`: how fast the user's own storage is, and a server on it."""

from __future__ import annotations

import math
import os
import time
from datetime import timedelta

import click

from qml_mp.bench.figures import Measure
from qml_mp.bench.run import run_bench
from qml_mp.cli.bench_page import BenchRun, print_bench, to_json
from qml_mp.cli.interruption import interrupted_once
from qml_mp.cli.output import json_option, note, print_json
from qml_mp.cli.session import Command, Session, pass_session
from qml_mp.host import core_count
from qml_mp.settings import MOST_WORKERS
from qml_mp.storage.store import Storage

_BUSY = 0.5
"""Share of the cores that others may use before the user is told."""


def _as_number(_ctx: click.Context, _parameter: click.Parameter, value: float) -> float:
    """Callback of an option: not NaN, which no range leaves out."""
    if math.isnan(value):
        raise click.BadParameter("nan is no number.")
    return value


@click.command(cls=Command)
@click.option(
    "-w", "--workers", type=click.IntRange(1, MOST_WORKERS), help="Worker processes. Default: one a core."
)
@click.option(
    "--seconds",
    type=click.FloatRange(1, 3600),
    callback=_as_number,
    default=60,
    show_default=True,
    metavar="S",
    help="About how long to measure.",
)
@click.option(
    "--only",
    multiple=True,
    type=click.Choice([str(measure) for measure in Measure]),
    help="Measure this alone; may be given several times.",
)
@json_option
@pass_session
def bench(
    session: Session, workers: int | None, seconds: float, only: tuple[str, ...], as_json: bool
) -> None:  # fmt: skip
    """Measure the storage, and a server on it, in about a minute.

    All of it happens in a schema (PostgreSQL) or a folder (SQLite) beside the storage, which is removed at
    the end, also after Ctrl-C or an error. What the storage holds is not touched. On PostgreSQL this needs
    the right to CREATE in the database; without it nothing is written.
    """
    storage = session.storage_of_probed_app()
    with interrupted_once():
        run = _run(
            storage,
            workers=workers or core_count(),
            within=timedelta(seconds=seconds),
            only={Measure(name) for name in only} or set(Measure),
        )
    if as_json:
        print_json(to_json(run))
    else:
        print_bench(run)


def _run(storage: Storage, *, workers: int, within: timedelta, only: set[Measure]) -> BenchRun:
    cores, load = core_count(), os.getloadavg()[0]
    if load > cores * _BUSY:
        note(f"other programs use the cores too (load {load:.1f} of {cores}), so the figures will be too low")
    began_s = time.monotonic()
    figures = run_bench(storage, workers=workers, within=within, only=only, tell=note)
    return BenchRun(
        storage=storage.display_url,
        workers=workers,
        cores=cores,
        load_before=load,
        took=timedelta(seconds=time.monotonic() - began_s),
        figures=figures,
    )
