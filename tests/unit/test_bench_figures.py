"""What is measured becomes figures, and figures become sentences."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from qml_mp.bench.figures import EfficiencyFigures, Figures, Spread, StorageFigures, ThroughputFigures
from qml_mp.bench.stamps import Stamps
from qml_mp.bench.verdicts import verdicts
from qml_mp.errors import QmlError

MS = timedelta(milliseconds=1)


def spread(p50: timedelta, p99: timedelta | None = None) -> Spread:
    return Spread(p50=p50, p99=p99 or 2 * p50, samples=100)


FAST_DISK = StorageFigures(read=spread(0.1 * MS), commit=spread(0.5 * MS), bulk_per_s=20_000.0, caveats=())
FIVE_MS = EfficiencyFigures(length=5 * MS, jobs=100, ratio=0.97, overhead=0.2 * MS)


def test_a_spread_is_the_middle_and_what_99_of_100_stay_within() -> None:
    figures = Spread.of([number / 1000 for number in range(100, 0, -1)])

    assert figures == Spread(p50=50 * MS, p99=99 * MS, samples=100)
    assert Spread.of([0.004]) == Spread(p50=4 * MS, p99=4 * MS, samples=1)


def test_a_fast_disk_is_told_in_one_sentence_without_a_warning() -> None:
    assert list(verdicts(Figures(storage=FAST_DISK))) == [
        "One connection commits 2,000 times a second. A commit takes 0.5ms and a read 0.1ms: about 0.4ms is "
        "the write and its way to the disk."
    ]


def test_a_slow_disk_a_long_way_and_what_the_server_is_set_to_are_named() -> None:
    slow = replace(FAST_DISK, commit=spread(5 * MS), read=spread(1.5 * MS), caveats=("fsync is off.",))

    first, *others = verdicts(Figures(storage=slow))

    assert first.startswith("One connection commits 200 times a second.")
    assert others == [
        "The disk is slow to flush (3.5ms): it, not the CPU, limits short jobs and single enqueues.",
        "The way to the database and back is long (1.5ms): each commit pays for it.",
        "fsync is off.",
    ]


def test_the_shortest_jobs_that_use_the_cores_well_are_named() -> None:
    one = replace(FIVE_MS, length=MS, ratio=0.7)
    fifty = replace(FIVE_MS, length=50 * MS, ratio=0.99)

    (good,) = verdicts(Figures(efficiency=(one, FIVE_MS, fifty)))
    (bad,) = verdicts(Figures(efficiency=(replace(one, ratio=1.0), replace(fifty, ratio=0.8))))

    assert good.startswith("Jobs of 5ms and longer get at least 95% of what bare processes get")
    assert bad.startswith("Even jobs of 50ms get only 80% of what bare processes get")


def test_throughput_and_latency_are_told_with_their_figures() -> None:
    rates = tuple(
        ThroughputFigures(batch=batch, jobs=1_000, jobs_per_s=rate)
        for batch, rate in ((1, 590.4), (100, 22_100))
    )

    told = list(verdicts(Figures(throughput=rates, latency=spread(2.5 * MS, 6.1 * MS))))

    assert told == [
        "590 empty jobs a second with a commit for each, 22,100 with up to 100 to a commit.",
        "An idle server starts a job 2.5ms after its commit, and 99 of 100 within 6.1ms.",
    ]


def test_a_span_reaches_from_the_first_begin_to_the_last_end() -> None:
    stamps = Stamps()
    for place in (1, 0, 2):
        stamps.begin(place)
    for place in (2, 1, 0):
        stamps.end(place)

    stamps.wait_for(3)
    span = stamps.span(3)

    assert 0 < span.length_s < 60
    stamps.forget(3)
    with pytest.raises(QmlError, match="has ended"):
        stamps.wait_for(3, runs=lambda: False)
