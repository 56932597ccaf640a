"""Beside a server: its metrics, made at each scrape from its newest report and a look at storage.

Names have the prefix `qml_mp_` and base units. Every label has few values, whatever jobs, queues and errors
there are: beyond the first two hundred methods, queues or pairs of both, the others count as "(other)".
"""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from qml_mp.core.history import SeriesKey
from qml_mp.events.counts import within
from qml_mp.host import rss_bytes
from qml_mp.ipc.side import ServerReport
from qml_mp.metrics.ends import families_of_ends
from qml_mp.metrics.storage_looks import StorageLook
from qml_mp.storage.values import QueueStats

WORKER_STATES = ("booting", "idle", "busy", "leaving")


class ServerCollector(Collector):
    """What a scrape collects; `look` waits for a bounded time, and `ends` are those of the server's whole
    run."""

    def __init__(
        self,
        *,
        version: str,
        backend: str,
        report: Callable[[], ServerReport | None],
        ends: Callable[[], Mapping[SeriesKey, Sequence[int]]],
        look: Callable[[], StorageLook | None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._build = {"version": version, "python": platform.python_version(), "backend": backend}
        self._report = report
        self._ends = ends
        self._look = look
        self._monotonic = monotonic

    def describe(self) -> list[Metric]:
        """Nothing: the names need no look at anything."""
        return []

    def collect(self) -> Iterator[Metric]:
        report, look = self._report(), self._look()
        yield InfoMetricFamily("qml_mp_build", "What serves these metrics.", value=self._build)
        yield from _of_storage(look)
        if report is not None:
            yield from _of_supervisor(report, now=self._monotonic())
            yield from _of_workers(report)
            yield from _of_loops(report)
            yield from _of_troubles(report)
        yield from families_of_ends(self._ends())


def _of_storage(look: StorageLook | None) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "qml_mp_storage_up", "1 when storage answered this scrape.", value=look is not None and look.answers
    )
    queues = None if look is None else look.queues
    yield GaugeMetricFamily(
        "qml_mp_queue_metrics_reported",
        "1 when the figures of queues are here: one server of a storage has them, for the whole of it.",
        value=queues is not None,
    )
    if queues is not None:
        yield from _of_queues(queues)


def _of_queues(queues: Iterable[QueueStats]) -> Iterator[Metric]:
    jobs = GaugeMetricFamily("qml_mp_queue_jobs", "Jobs in the queue now.", labels=["queue", "state"])
    oldest = GaugeMetricFamily(
        "qml_mp_queue_oldest_job_age_seconds",
        "For how long at least the job waits that waits longest, of those that could run; 0: none waits.",
        labels=["queue"],
    )
    names: Counter[str] = Counter()
    counts: Counter[tuple[str, str]] = Counter()
    ages_s: dict[str, float] = {}
    for queue in queues:
        name = within(names, queue.name)
        names[name] += 1
        counts[name, "enqueued"] += queue.enqueued
        counts[name, "processing"] += queue.processing
        age_s = 0.0 if queue.oldest is None else max(0.0, queue.oldest.total_seconds())
        ages_s[name] = max(age_s, ages_s.get(name, 0.0))
    for labels, count in counts.items():
        jobs.add_metric(labels, count)
    for name, age_s in ages_s.items():
        oldest.add_metric([name], age_s)
    yield from (jobs, oldest)


def _of_supervisor(report: ServerReport, *, now: float) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "qml_mp_server_start_time_seconds", "Unix time of the server's start.", value=report.started_at
    )
    yield GaugeMetricFamily(
        "qml_mp_supervisor_last_turn_age_seconds",
        "Since when the supervisor has not said that it turns; a second is usual.",
        value=max(0.0, now - report.at),
    )
    yield GaugeMetricFamily(
        "qml_mp_server_paused", "1 while the server claims nothing.", value=report.is_paused
    )
    yield GaugeMetricFamily(
        "qml_mp_server_in_trouble",
        "1 while something keeps the server from its work.",
        value=bool(report.trouble),
    )


def _of_workers(report: ServerReport) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "qml_mp_workers_wanted", "Workers that there should be.", value=report.wanted_workers
    )
    states = Counter(worker.state for worker in report.workers)
    workers = GaugeMetricFamily("qml_mp_workers", "Workers by what they do now.", labels=["state"])
    for state in WORKER_STATES:
        workers.add_metric([state], states[state])
    memory = GaugeMetricFamily(
        "qml_mp_worker_resident_memory_bytes",
        "Resident memory of a worker, by the place that it fills.",
        labels=["worker"],
    )
    used = {each.number: rss_bytes(each.pid) for each in sorted(report.workers, key=lambda one: one.pid)}
    for number, size in sorted(used.items()):
        if size is not None:
            memory.add_metric([str(number)], size)
    yield from (workers, memory)


def _of_loops(report: ServerReport) -> Iterator[Metric]:
    succeeded = GaugeMetricFamily(
        "qml_mp_loop_last_success_timestamp_seconds",
        "Unix time at which the newest tick of a loop of the server succeeded.",
        labels=["loop"],
    )
    failing = GaugeMetricFamily(
        "qml_mp_loop_failing", "1 while the newest tick of the loop has failed.", labels=["loop"]
    )
    for loop in report.loops:
        failing.add_metric([loop.name], loop.failing_since is not None)
        if loop.succeeded_at is not None:
            succeeded.add_metric([loop.name], loop.succeeded_at)
    yield from (succeeded, failing)


def _of_troubles(report: ServerReport) -> Iterator[Metric]:
    deaths = CounterMetricFamily(
        "qml_mp_worker_deaths",
        "Workers that have died, by the cause; some have left as told.",
        labels=["cause"],
    )
    for cause, count in report.deaths.items():
        deaths.add_metric([cause], count)
    errors = CounterMetricFamily(
        "qml_mp_storage_errors",
        "Tries that failed because of storage, by whose they were.",
        labels=["process"],
    )
    for process, count in report.storage_errors.items():
        errors.add_metric([process], count)
    firings = CounterMetricFamily(
        "qml_mp_recurring_firings",
        "Jobs that this server enqueued for recurring templates.",
        labels=["method"],
    )
    for method, count in report.firings.items():
        firings.add_metric([method], count)
    lost = CounterMetricFamily(
        "qml_mp_lost_claims",
        "Claims whose outcome was not written, because the job was somebody else's by then.",
        value=report.lost_claims,
    )
    yield from (deaths, errors, firings, lost)
