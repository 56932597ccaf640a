"""Beside a server: how attempts have ended, and how long they waited and ran, as counters and histograms."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric

from qml_mp.core.history import BOUNDS_S, Ending, Histogram, SeriesKey, Tally, tally_of
from qml_mp.ipc.side import ServerReport

SHOWN_BOUNDS_S = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 30.0, 120.0, 600.0, 1800.0, 3600.0)
"""Every other of those that are counted: each is a series of every method in every queue."""
_SHOWN = [(BOUNDS_S.index(bound), str(bound)) for bound in SHOWN_BOUNDS_S]


class ToldEnds:
    """Those of one server, which its reports tell part by part. Written by one thread, read by many."""

    def __init__(self) -> None:
        self._ends: dict[SeriesKey, Sequence[int]] = {}
        self._were_all_told = False

    def add(self, report: ServerReport) -> None:
        """The supervisor has reported."""
        self._ends |= {
            SeriesKey(method=each.method, queue=each.queue, ending=Ending(each.ending)): each.numbers
            for each in report.ends
        }
        self._were_all_told |= report.has_told_all_ends

    def numbers(self) -> Mapping[SeriesKey, Sequence[int]]:
        """Empty until each was told once: a sum of some would be less than what the process before this one
        has shown, and pass for a counter that began anew."""
        return dict(self._ends) if self._were_all_told else {}


def families_of_ends(ends: Mapping[SeriesKey, Sequence[int]]) -> Iterator[Metric]:
    """Of what attempts of a server came to. `ends` are the numbers of tallies.

    Of a method in a queue each outcome is there from the first attempt on, though it be 0: a counter that
    begins with its first event has not increased by it.
    """
    jobs = CounterMetricFamily(
        "qml_mp_jobs",
        "Attempts that have ended, by what they came to; of retried and crashed ones the job runs again.",
        labels=["method", "queue", "outcome"],
    )
    pairs: defaultdict[tuple[str, str], Tally] = defaultdict(Tally)
    counts: Counter[SeriesKey] = Counter()
    for key, numbers in ends.items():
        tally = tally_of(numbers)
        counts[key] = tally.count
        pairs[key.method, key.queue] += tally
    for method, queue in pairs:
        for ending in Ending:
            key = SeriesKey(method=method, queue=queue, ending=ending)
            jobs.add_metric([method, queue, str(ending)], counts[key])
    waited = _histogram("qml_mp_job_waiting_seconds", "How long attempts had waited since they could begin.")
    ran = _histogram("qml_mp_job_running_seconds", "How long attempts ran.")
    for pair, tally in pairs.items():
        waited.add_metric(pair, buckets=_buckets(tally.waited), sum_value=tally.waited.sum_us / 1e6)
        ran.add_metric(pair, buckets=_buckets(tally.ran), sum_value=tally.ran.sum_us / 1e6)
    yield from (jobs, waited, ran)


def _histogram(name: str, meaning: str) -> HistogramMetricFamily:
    return HistogramMetricFamily(name, meaning, labels=["method", "queue"])


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Those up to each bound, as the format wants it."""
    up_to = list(accumulate(histogram.counts))
    return [*((text, up_to[number]) for number, text in _SHOWN), ("+Inf", up_to[-1])]
