"""Tests: names, units and numbers of the metrics, and when a server lives and is ready."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from qml_mp.core.history import Ending, SeriesKey, numbers_of_one
from qml_mp.ipc.side import LoopReport, ServerReport, WorkerReport
from qml_mp.metrics.families import ServerCollector
from qml_mp.metrics.health import TURNED_WITHIN_S, why_not_alive, why_not_ready
from qml_mp.metrics.storage_looks import StorageLook
from qml_mp.storage.values import QueueStats

NOW, WALL = 1000.0, 1_800_000_000.0
LOOP = LoopReport(name="heartbeat", succeeded_at=WALL - 5, due_since=None, failing_since=None)
FINE = ServerReport(
    at=NOW - 0.5,
    server_id="one#1",
    started_at=WALL - 900,
    wanted_workers=1,
    workers=[WorkerReport(number=1, pid=5, state="busy")],
    loops=[LOOP],
    is_stopping=False,
    is_paused=False,
    storage_fails=False,
    trouble=None,
)
ANSWERS = StorageLook(at=NOW, server_id="one#1", answers=True, schema_fits=True)


def not_ready(report: ServerReport | None, look: StorageLook | None = ANSWERS) -> Sequence[str]:
    return why_not_ready(report, look, now=NOW, since=NOW - 1)


def test_a_server_lives_as_long_as_its_supervisor_turns() -> None:
    assert why_not_alive(FINE, now=FINE.at + TURNED_WITHIN_S, since=0) == []
    assert why_not_alive(FINE, now=FINE.at + 60, since=0) == ["the supervisor has not turned for 60 s"]


def test_one_that_has_not_reported_yet_has_a_moment_for_it_and_is_not_ready_meanwhile() -> None:
    assert why_not_alive(None, now=NOW, since=NOW - 1) == []
    assert why_not_alive(None, now=NOW, since=NOW - 60) == ["the supervisor has not reported yet"]
    assert not_ready(None) == ["the supervisor has not reported yet"]


def test_a_server_that_can_do_its_work_is_ready() -> None:
    assert not_ready(FINE) == []
    assert not_ready(replace(FINE, wanted_workers=0, workers=[])) == []
    assert not_ready(replace(FINE, is_paused=True)) == []


@pytest.mark.parametrize(
    ("report", "look", "reason"),
    [
        (FINE, None, "the storage does not answer"),
        (FINE, replace(ANSWERS, answers=False), "the storage does not answer"),
        (FINE, replace(ANSWERS, schema_fits=False), "the schema of the storage is not that of this version"),
        (replace(FINE, at=NOW - 30), ANSWERS, "the supervisor has not turned for 30 s"),
        (replace(FINE, is_stopping=True), ANSWERS, "the server is stopping"),
        (replace(FINE, storage_fails=True), ANSWERS, "the supervisor cannot reach the storage"),
        (replace(FINE, workers=[]), ANSWERS, "no worker is ready"),
        (
            replace(FINE, workers=[WorkerReport(number=1, pid=5, state="booting")]),
            ANSWERS,
            "no worker is ready",
        ),
        (
            replace(FINE, loops=[replace(LOOP, due_since=FINE.at - 20)]),
            ANSWERS,
            "the heartbeat loop has been due for 20 s",
        ),
        (
            replace(FINE, loops=[replace(LOOP, failing_since=FINE.at - 6)]),
            ANSWERS,
            "the heartbeat loop has failed for 6 s",
        ),
    ],
)
def test_what_keeps_it_from_that_is_the_reason(
    report: ServerReport, look: StorageLook | None, reason: str
) -> None:
    assert not_ready(report, look) == [reason]


def test_a_loop_that_is_tried_again_in_a_moment_or_waits_for_another_is_no_reason_yet() -> None:
    moment = replace(LOOP, due_since=FINE.at - 2, failing_since=FINE.at - 2)

    assert not_ready(replace(FINE, loops=[moment])) == []


HOSTILE = 'a"b\\n\n{} ü'
REPORT = replace(
    FINE,
    workers=[WorkerReport(number=1, pid=os.getpid(), state="busy")],
    deaths={"SIGKILL": 2, "left": 1},
    storage_errors={"supervisor": 1, "workers": 3},
    lost_claims=1,
    firings={"digest": 4, HOSTILE: 1},
)
QUEUES = [QueueStats(name="images", enqueued=7, processing=2, held=1, oldest=timedelta(minutes=2))]
LOOK = replace(ANSWERS, queues=QUEUES)
ENDS = {
    SeriesKey(method="resize", queue="images", ending=Ending.SUCCEEDED): numbers_of_one(
        waited_us=3_000, ran_us=1_500_000
    ),
    SeriesKey(method="resize", queue="images", ending=Ending.RETRIED): numbers_of_one(
        waited_us=0, ran_us=7_200_000_000
    ),
    SeriesKey(method=HOSTILE, queue="default", ending=Ending.FAILED): numbers_of_one(waited_us=1, ran_us=1),
}


def registry(report: ServerReport | None = REPORT, look: StorageLook | None = LOOK) -> CollectorRegistry:
    made = CollectorRegistry()
    made.register(
        ServerCollector(
            version="1.2.3",
            backend="sqlite",
            report=lambda: report,
            ends=lambda: ENDS,
            look=lambda: look,
            monotonic=lambda: NOW,
        )
    )
    return made


class Collected(Collector):
    """What a registry has said once."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._metrics = list(registry.collect())

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def families() -> list[Metric]:
    return list(text_string_to_metric_families(generate_latest(registry()).decode()))


def samples(metrics: Iterable[Metric]) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for metric in metrics
        for sample in metric.samples
    }


def test_both_formats_say_the_same_to_the_parsers_of_prometheus() -> None:
    encode, kind = choose_encoder("application/openmetrics-text; version=1.0.0")
    once = CollectorRegistry()
    once.register(Collected(registry()))  # this process needs more memory at any moment

    text = encode(once).decode()
    strict = samples(openmetrics_families(text))  # type: ignore[no-untyped-call]

    assert kind.startswith("application/openmetrics-text")
    assert strict == samples(text_string_to_metric_families(generate_latest(once).decode()))
    assert len(strict) > 80


def test_attempts_are_counted_by_method_queue_and_outcome_with_how_long_they_took() -> None:
    found = samples(families())
    pair = {("method", "resize"), ("queue", "images")}

    assert found["qml_mp_jobs_total", frozenset(pair | {("outcome", "succeeded")})] == 1
    assert found["qml_mp_job_running_seconds_bucket", frozenset(pair | {("le", "0.5")})] == 0
    assert found["qml_mp_job_running_seconds_bucket", frozenset(pair | {("le", "2.0")})] == 1
    assert found["qml_mp_job_running_seconds_bucket", frozenset(pair | {("le", "3600.0")})] == 1
    assert found["qml_mp_job_running_seconds_bucket", frozenset(pair | {("le", "+Inf")})] == 2
    assert found["qml_mp_job_running_seconds_count", frozenset(pair)] == 2
    assert found["qml_mp_job_running_seconds_sum", frozenset(pair)] == pytest.approx(7201.5)
    assert found["qml_mp_job_waiting_seconds_bucket", frozenset(pair | {("le", "0.001")})] == 1


def test_what_a_pair_has_not_come_to_yet_is_counted_as_0() -> None:
    """Or Prometheus would take the first failure for the beginning of the series, and not for an increase."""
    found = samples(families())

    counted = {
        (labels["method"], labels["outcome"]): value
        for name, pairs in found
        if name == "qml_mp_jobs_total"
        for labels, value in [(dict(pairs), found[name, pairs])]
    }
    assert counted == {
        **{(method, str(ending)): 0 for method in ("resize", HOSTILE) for ending in Ending},
        ("resize", "succeeded"): 1,
        ("resize", "retried"): 1,
        (HOSTILE, "failed"): 1,
    }


def test_queues_beyond_a_number_are_counted_together() -> None:
    many = [
        QueueStats(name=f"q{number}", enqueued=1, processing=0, held=0, oldest=timedelta(seconds=number))
        for number in range(5000)
    ]

    found = samples(
        text_string_to_metric_families(generate_latest(registry(look=replace(LOOK, queues=many))).decode())
    )

    depths = {key: value for key, value in found.items() if key[0] == "qml_mp_queue_jobs"}
    assert len(depths) == 2 * 201
    assert sum(depths.values()) == 5000
    assert found["qml_mp_queue_oldest_job_age_seconds", frozenset({("queue", "(other)")})] == 4999
