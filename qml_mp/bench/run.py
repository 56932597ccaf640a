"""Client: one run: a storage of its own made, what was asked for measured in it, and the storage removed."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from typing import assert_never

from qml_mp.bench.figures import Figures, Measure
from qml_mp.bench.measures import (
    Bench,
    measure_efficiency,
    measure_latency,
    measure_storage,
    measure_throughput,
)
from qml_mp.bench.signals import signals_held
from qml_mp.bench.stamps import Stamps
from qml_mp.errors import StorageError
from qml_mp.storage.open import open_storage
from qml_mp.storage.scratch import Scratch
from qml_mp.storage.store import Storage

_BATCHES = (1, 100)
_LENGTHS = tuple(timedelta(milliseconds=length) for length in (1, 5, 50))
_SHARES = {Measure.STORAGE: 1, Measure.THROUGHPUT: 3, Measure.LATENCY: 2, Measure.EFFICIENCY: 4}


def run_bench(
    storage: Storage,
    *,
    workers: int,
    within: timedelta,
    only: Collection[Measure],
    tell: Callable[[str], None],
) -> Figures:
    """Measure in a scratch beside the storage, which itself is not touched. `tell` is given what is done.

    Whatever happens, no process of ours, no schema and no file is left; when the storage refuses that, the
    next run removes it, and `tell` is told. Raises `StorageError` and `QmlError`.
    """
    scratch: Scratch | None = None
    try:
        with signals_held():
            scratch = storage.make_scratch()
        tell(f"measuring in {scratch.place}, which is removed afterwards")
        with closing(open_storage(scratch.url, application_name="qml-mp: bench")) as own:
            own.migrate()
            bench = Bench(storage=own, stamps=Stamps(), workers=workers)
            figures = _measure(bench, scratch.caveats, within, only, tell)
    except BaseException:
        with signals_held():
            if scratch is not None:
                _remove_after_error(scratch, tell)
        raise
    with signals_held():
        scratch.remove()
    return figures


def _measure(
    bench: Bench,
    caveats: tuple[str, ...],
    within: timedelta,
    only: Collection[Measure],
    tell: Callable[[str], None],
) -> Figures:
    figures = Figures()
    share = within / sum(_SHARES[measure] for measure in only)
    for measure in filter(only.__contains__, Measure):
        tell(f"measuring {measure}")
        its_own = share * _SHARES[measure]
        match measure:
            case Measure.STORAGE:
                figures = replace(figures, storage=measure_storage(bench, its_own, caveats=caveats))
            case Measure.THROUGHPUT:
                each = its_own / len(_BATCHES)
                rates = tuple(measure_throughput(bench, each, batch=batch) for batch in _BATCHES)
                figures = replace(figures, throughput=rates)
            case Measure.LATENCY:
                figures = replace(figures, latency=measure_latency(bench, its_own))
            case Measure.EFFICIENCY:
                ratios = measure_efficiency(bench, its_own, lengths=_LENGTHS)
                figures = replace(figures, efficiency=ratios)
            case _:
                assert_never(measure)
    return figures


def _remove_after_error(scratch: Scratch, tell: Callable[[str], None]) -> None:
    """Without hiding the error that has ended the run."""
    try:
        scratch.remove()
    except StorageError as error:
        tell(f"{error} The next run removes it.")
