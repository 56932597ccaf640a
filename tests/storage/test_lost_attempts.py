"""Attempts whose worker died: kept in the commit that ends them, until a worker has exported their spans."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider

from qml_mp.child.lost_attempts import LostAttemptExport
from qml_mp.core.job import Job
from qml_mp.core.lost_attempt import LostAttempt
from qml_mp.core.outcome import AttemptKind as Kind
from qml_mp.core.outcome import Cancelled, Crash, ErrorInfo, Failure, Outcome, ProcessFacts, Release, Retry
from qml_mp.core.state import StateName
from qml_mp.otel import OpenTelemetry
from qml_mp.storage.store import Storage
from tests.storage.conftest import Raw
from tests.storage.helpers import DONE, HOUR, KEEP, NO, claim_new, fetch, present, register

LEASE = timedelta(minutes=1)
DEAD = ProcessFacts(pid=4711, signal=9, peak_rss_bytes=1 << 20, cpu_s=0.5)
DIED = ErrorInfo(type="WorkerDied", message="It was killed by SIGKILL.")
SOON = timedelta(seconds=3)


@pytest.fixture(autouse=True)
def _workers(storage: Storage) -> None:
    """Two that are registered, of code that traces the method "work"."""
    register(storage, "server#1", "worker-1", "worker-2")
    storage.declare_hooks(["work"], calls=False, traces=True)


def take(storage: Storage, worker: str = "worker-1") -> list[LostAttempt]:
    return storage.take_lost_attempts(worker, ["work"], lease=LEASE)


def crash(storage: Storage) -> str:
    """The id of a job whose attempt is kept from now on."""
    claim = claim_new(storage)
    storage.finish(claim, Failure(error=DIED, process=DEAD), retention=KEEP)
    return claim.job.id


def take_in_next_server(storage: Storage) -> list[LostAttempt]:
    """By the worker of a server that starts now."""
    register(storage, "server#2", "worker-3")
    return take(storage, "worker-3")


@pytest.mark.parametrize(
    ("outcome", "ended_as", "state"),
    [
        (Crash(error=DIED, rerun_after=timedelta(), process=DEAD), "crash", StateName.ENQUEUED),
        (Crash(error=DIED, rerun_after=SOON, process=DEAD), "crash", StateName.AWAITING_RETRY),
        (Crash(error=DIED, rerun_after=None, process=DEAD), "crash", StateName.FAILED),
        (Retry(error=DIED, delay=SOON, kind=Kind.TIMEOUT, process=DEAD), "timeout", StateName.AWAITING_RETRY),
        (Failure(error=DIED, kind=Kind.TIMEOUT, process=DEAD), "timeout", StateName.FAILED),
        (Failure(error=DIED, process=DEAD), "failure", StateName.FAILED),
        (Cancelled(reason="why", process=DEAD), "cancelled", StateName.DELETED),
        (Release(reason="the server stopped", process=DEAD), "released", StateName.ENQUEUED),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value,
)
def test_whoever_ends_an_attempt_for_a_dead_worker_keeps_what_is_known_of_it(
    storage: Storage, outcome: Outcome, ended_as: str, state: StateName
) -> None:
    claim = claim_new(storage)

    storage.finish(claim, outcome, retention=KEEP)

    (lost,) = take(storage)
    job = present(storage, claim.job.id)
    assert (lost.key, lost.method, lost.queue) == (claim.key, "work", claim.job.queue)
    assert (lost.ended_as, lost.state, lost.process) == (ended_as, state, DEAD)
    assert job.state_name is state
    assert lost.started_at == claim.job.started_at
    assert lost.ended_at >= lost.started_at
    assert lost.attempt == 1
    has_error = not isinstance(outcome, Cancelled | Release)
    assert lost.error == (DIED if has_error else None)
    assert lost.reason or has_error


@pytest.mark.parametrize(
    "outcome",
    [DONE, Retry(error=NO, delay=SOON), Failure(error=NO), Cancelled(reason="why"), Release(reason="no")],
    ids=lambda value: type(value).__name__,
)
def test_of_what_the_worker_itself_ends_nothing_is_kept(storage: Storage, outcome: Outcome) -> None:
    storage.finish(claim_new(storage), outcome, retention=KEEP)

    assert not storage.has_lost_attempts(["work"])
    assert take(storage) == []


def test_a_crash_of_a_job_whose_cancel_was_asked_for_ends_as_cancelled(storage: Storage) -> None:
    claim = claim_new(storage)
    storage.request_cancel(claim.job.id, reason="not needed", retention=KEEP)

    storage.finish(claim, Crash(error=DIED, rerun_after=timedelta(), process=DEAD), retention=KEEP)

    (lost,) = take(storage)
    assert (lost.ended_as, lost.state, lost.reason) == ("cancelled", StateName.DELETED, "not needed")


def test_those_of_a_server_that_is_gone_are_kept_too(storage: Storage) -> None:
    job_id = storage.enqueue(Job.new("work", metadata={"traceparent": "00-" + "1" * 49, "other": "x" * 999}))
    claim = storage.fetch_and_lock_job(fetch())
    assert claim is not None

    assert storage.reclaim_server("server#1", silent_for=None, retention=KEEP) == 1

    assert take(storage) == []  # the workers are gone with it
    (lost,) = take_in_next_server(storage)
    assert (lost.job_id, lost.ended_as, lost.state) == (job_id, "released", StateName.ENQUEUED)
    assert "server#1" in lost.reason
    assert lost.metadata == {"traceparent": "00-" + "1" * 49}


def test_what_a_worker_of_a_server_that_is_gone_had_not_begun_is_no_attempt(storage: Storage) -> None:
    first, *_ = storage.enqueue_many([Job.new("work", priority=9), Job.new("work"), Job.new("work")])
    assert len(storage.exchange((), fetch=fetch(), limit=3, retention=KEEP).claims) == 3

    assert storage.reclaim_server("server#1", silent_for=None, retention=KEEP) == 3

    assert [lost.job_id for lost in take_in_next_server(storage)] == [first]


def test_a_write_whose_claim_is_lost_keeps_nothing(storage: Storage) -> None:
    claim = claim_new(storage)
    storage.finish(claim, DONE, retention=KEEP)

    storage.finish(claim, Crash(error=DIED, rerun_after=None, process=DEAD), retention=KEEP)

    assert take(storage) == []


def test_each_is_one_workers_at_a_time_until_it_is_ended(storage: Storage) -> None:
    storage.finish(claim_new(storage), Failure(error=DIED, process=DEAD), retention=KEEP)

    first, second = take(storage, "worker-1"), take(storage, "worker-2")
    storage.deregister_worker("worker-1")
    third = take(storage, "worker-2")

    assert (len(first), second) == (1, [])
    assert third == first
    keys = [first[0].key]
    assert [storage.end_lost_attempts(worker, keys) for worker in ("worker-1", "worker-2")] == [0, 1]
    assert take(storage, "worker-2") == []


def test_of_several_that_a_worker_has_those_that_it_names_are_ended(storage: Storage) -> None:
    for _ in range(3):
        crash(storage)
    first, second, third = take(storage)

    assert storage.end_lost_attempts("worker-1", [third.key, first.key]) == 2

    storage.deregister_worker("worker-1")
    assert take(storage, "worker-2") == [second]


def test_one_that_is_taken_again_is_due_again_after_twice_the_time(storage: Storage, raw: Raw) -> None:
    crash(storage)

    for doubled in (1, 2, 4, 8):
        assert len(take(storage)) == 1
        raw.age("lost_attempts", "due_at", LEASE * (doubled - 1))
        assert take(storage) == []
        raw.age("lost_attempts", "due_at", LEASE)

    assert len(take(storage)) == 1


@pytest.mark.fault(88)
def test_one_of_before_the_clock_was_set_back_is_due(storage: Storage, raw: Raw) -> None:
    crash(storage)
    raw.age("lost_attempts", "due_at", -HOUR)

    assert storage.has_lost_attempts(["work"])
    assert len(take(storage)) == 1
    assert take(storage) == []


@pytest.mark.fault(88)
@pytest.mark.parametrize("tries", [1, 3])
def test_one_that_was_tried_before_the_clock_was_set_back_is_brought_forward(
    storage: Storage, raw: Raw, tries: int
) -> None:
    crash(storage)
    for _ in range(tries):
        raw.age("lost_attempts", "due_at", HOUR)
        assert len(take(storage)) == 1
    assert storage.hasten_jobs_from_the_future() == 0
    raw.age("lost_attempts", "due_at", -HOUR)

    changed = [storage.hasten_jobs_from_the_future() for _ in range(2)]

    assert changed == [1, 0]
    assert len(take(storage)) == 1


class Collector(SpanProcessor):
    """Where spans go. What it is told while it is down is lost, as with the batches of the SDK."""

    def __init__(self) -> None:
        self.is_down = False
        self.has: set[str] = set()
        """The jobs of the spans."""
        self._told: list[ReadableSpan] = []
        self.looks = 0
        """How often the worker has read its pipe meanwhile."""

    def look(self) -> None:
        self.looks += 1

    def on_end(self, span: ReadableSpan) -> None:
        self._told.append(span)

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        told, self._told = self._told, []
        if not self.is_down:
            self.has |= {str((span.attributes or {})["messaging.message.id"]) for span in told}
        return not self.is_down


@pytest.fixture
def collector() -> Collector:
    return Collector()


@pytest.fixture
def export(storage: Storage, collector: Collector) -> LostAttemptExport:
    """That of the first worker."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(collector)
    who = replace(fetch(), methods=("work",))
    tracing = OpenTelemetry(provider, flush_timeout="1m")
    return LostAttemptExport(storage, tracing, fetch=who, look=collector.look)


def test_what_could_not_be_exported_is_not_ended_by_what_could(
    storage: Storage, export: LostAttemptExport, collector: Collector, raw: Raw
) -> None:
    first = crash(storage)
    collector.is_down = True
    export.export()

    second = crash(storage)
    collector.is_down = False
    export.export()
    assert collector.has == {second}

    raw.age("lost_attempts", "due_at", LEASE)
    export.export()
    assert collector.has == {first, second}
    assert raw.run("SELECT count(*) FROM {lost_attempts}") == [(0,)]


def test_what_storage_refuses_of_the_spans_is_told_once_until_it_works_again(
    storage: Storage,
    export: LostAttemptExport,
    collector: Collector,
    raw: Raw,
    caplog: pytest.LogCaptureFixture,
) -> None:
    lost = crash(storage)
    raw.refuse("UPDATE", "lost_attempts", saying="refused by the test")
    for _ in range(3):
        export.export()
    raw.allow("lost_attempts")
    export.export()

    assert collector.has == {lost}
    [told] = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "The spans of lost attempts wait for storage: " in told
    assert "refused by the test" in told


def test_between_two_spans_the_worker_reads_its_pipe(
    storage: Storage, export: LostAttemptExport, collector: Collector
) -> None:
    """An exporter may take long for each, and the worker would be taken for one that hangs."""
    for _ in range(3):
        crash(storage)

    export.export()

    assert len(collector.has) == collector.looks == 3


def test_however_often_it_could_not_be_exported_each_waits_for_its_day(
    storage: Storage, export: LostAttemptExport, collector: Collector, raw: Raw
) -> None:
    old, collector.is_down = crash(storage), True
    for _ in range(10):
        export.export()
        raw.age("lost_attempts", "due_at", timedelta(days=1))
    young = crash(storage)
    export.export()

    collector.is_down = False
    raw.age("lost_attempts", "due_at", timedelta(days=1))
    export.export()

    assert collector.has == {old, young}


def test_nothing_is_kept_for_code_that_does_not_trace(storage: Storage) -> None:
    changed = [
        storage.declare_hooks(["work"], calls=False, traces=True),
        storage.declare_hooks(["work"], calls=True, traces=False),
        storage.declare_hooks(["work"], calls=True, traces=False),
    ]

    storage.finish(claim_new(storage), Failure(error=DIED, process=DEAD), retention=KEEP)

    assert changed == [False, True, False]
    assert take(storage) == []
    assert storage.has_failure_callbacks(["work"])


def test_those_that_wait_for_nobody_stay_for_a_day(storage: Storage) -> None:
    storage.finish(claim_new(storage), Failure(error=DIED, process=DEAD), retention=KEEP)

    assert storage.forget_lost_attempts(limit=10) == 0
    assert len(take(storage)) == 1


def test_those_that_nobody_exported_for_a_day_are_forgotten_in_batches(storage: Storage, raw: Raw) -> None:
    for _ in range(3):
        crash(storage)
    raw.age("lost_attempts", "ended_at", timedelta(days=1, seconds=1))
    young = crash(storage)

    assert [storage.forget_lost_attempts(limit=2) for _ in range(3)] == [2, 1, 0]
    assert [lost.key.job_id for lost in take(storage)] == [young]
