"""Tests: what worker and supervisor share is never torn: slots, tickets, outcomes."""

from __future__ import annotations

import math
import os
import select
import signal
import struct
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qml_mp.core.job import ClaimKey, Job, new_job_id
from qml_mp.core.outcome import (
    AttemptKind,
    Cancelled,
    Crash,
    ErrorInfo,
    Extras,
    Failure,
    Outcome,
    ProcessFacts,
    Release,
    Retry,
    Success,
)
from qml_mp.core.progress import Progress
from qml_mp.ipc.ended import EndedOutcomes, EndedTable
from qml_mp.ipc.slot import _BODY_AT, _VERSION_AT, Activity, SlotTable, SlotView, SlotWriter
from qml_mp.ipc.tickets import MOST_HELD, TicketPipe
from tests.until import PATIENCE_S


def begin_a_job(writer: SlotWriter) -> ClaimKey:
    key = ClaimKey(job_id=new_job_id(), claim_seq=7)
    writer.show(
        SlotView(activity=Activity.RUNNING, key=key, method="resize", since_ns=5, limit=timedelta(seconds=1))
    )
    return key


def leave_in_mid_write(slots: SlotTable) -> None:
    """Make the version odd, as a worker does before it writes."""
    version = struct.Struct("<Q")
    (now,) = version.unpack_from(slots._memory, _VERSION_AT)
    version.pack_into(slots._memory, _VERSION_AT, now + 1)


def test_a_worker_that_was_killed_in_mid_write_has_been_ready_all_the_same() -> None:
    slots = SlotTable(1)
    writer = slots.writer(0)
    writer.show_ready()

    leave_in_mid_write(slots)

    assert slots.read(0) is None
    assert slots.was_ready(0)


def test_a_slot_into_which_a_job_has_written_says_nothing_until_the_worker_writes_again() -> None:
    slots = SlotTable(1)
    writer = slots.writer(0)
    key = begin_a_job(writer)

    slots._memory[_BODY_AT] = 77
    meanwhile = slots.read(0)
    writer.show_finishing()

    assert meanwhile is None
    view = slots.read(0)
    assert view is not None
    assert (view.activity, view.key) == (Activity.FINISHING, key)


def test_a_slot_that_is_given_to_a_new_worker_remembers_nothing() -> None:
    slots = SlotTable(1)
    slots.writer(0).show_ready()
    slots.set_process(0, pid=4711, started_ticks=1)

    slots.clear(0)

    assert not slots.was_ready(0)
    assert slots.process(0) == (0, 0)


def test_progress_that_is_being_written_and_what_makes_no_sense_is_not_read() -> None:
    slots = SlotTable(1)
    worker, supervisor = slots.writer(0).progress, slots.progress(0)
    job = Job.new("f")
    worker.show(job, 1, None, "ä" * 150)

    supervisor._numbers[supervisor._version_at] += 1
    assert supervisor.read() is None
    supervisor._numbers[supervisor._version_at] += 1
    assert supervisor.read() == (job.claim_key, Progress(done=1, note="ä" * 150))
    worker.show(job, math.nan, None, "")  # by other means than `ctx.progress`
    assert supervisor.read() is None


@pytest.fixture
def pipe() -> Iterator[TicketPipe]:
    pipe = TicketPipe()
    yield pipe
    pipe.close()


def keys_of(count: int) -> list[ClaimKey]:
    return [ClaimKey(job_id=new_job_id(), claim_seq=number) for number in range(1, count + 1)]


def test_tickets_are_taken_in_their_order_until_there_is_none(pipe: TicketPipe) -> None:
    keys = keys_of(MOST_HELD)

    assert pipe.write(keys) == MOST_HELD

    assert [pipe.take() for _ in keys] == [key.packed for key in keys]
    assert pipe.take() is None
    assert pipe.take_all() == []


def test_a_full_pipe_takes_whole_tickets_or_none(pipe: TicketPipe) -> None:
    written: list[ClaimKey] = []
    while True:
        keys = keys_of(MOST_HELD)
        count = pipe.write(keys)
        written += keys[:count]
        if count < MOST_HELD:
            break

    assert pipe.write(keys_of(MOST_HELD)) == 0
    assert pipe.take_all() == written


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_two_readers_at_once_get_each_ticket_once_and_whole(pipe: TicketPipe) -> None:
    keys = keys_of(MOST_HELD)
    going, told = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:  # a supervisor, that takes all it finds
        try:
            os.set_blocking(going[0], False)
            taken = 0
            while True:
                found = len([key for key in pipe.take_all() if key in keys])
                if found and not taken:
                    os.write(told[1], b"x")
                taken += found
                try:
                    os.read(going[0], 1)
                    break
                except BlockingIOError:
                    continue
            os.write(told[1], struct.pack("<q", taken + len(pipe.take_all())))
        finally:
            os._exit(0)
    mine = rounds = 0
    deadline = time.monotonic() + PATIENCE_S  # of the other one, which may begin late
    while rounds < 300 or (time.monotonic() < deadline and not select.select([told[0]], [], [], 0)[0]):
        pipe.write(keys)
        rounds, last = rounds + 1, 0
        while (ticket := pipe.take()) is not None:
            key = ClaimKey.unpacked(ticket)
            assert key == keys[key.claim_seq - 1]
            assert key.claim_seq > last  # those in between are the supervisor's
            last, mine = key.claim_seq, mine + 1

    os.write(going[1], b"x")
    assert os.read(told[0], 1) == b"x"
    (theirs,) = struct.unpack("<q", os.read(told[0], 8))
    os.waitpid(pid, 0)
    for fd in (*going, *told):
        os.close(fd)
    assert mine + theirs == rounds * MOST_HELD
    assert mine > 0
    assert theirs > 0


DONE = Success(result=None, duration=timedelta(microseconds=12))

durations = st.timedeltas(min_value=timedelta(), max_value=timedelta(days=36_525))
errors = st.builds(ErrorInfo, type=st.text(), message=st.text(), traceback=st.none() | st.text())
processes = st.builds(
    ProcessFacts,
    pid=st.none() | st.integers(1, 2**22),
    signal=st.none() | st.integers(1, 64),
    exit_code=st.none() | st.integers(0, 255),
    peak_rss_bytes=st.none() | st.integers(0, 2**50),
    cpu_s=st.none() | st.floats(0, 1e9),
)
kinds = st.sampled_from(AttemptKind)
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
results = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)
extras = st.builds(
    Extras,
    follow_ups=st.lists(
        st.builds(
            Job.new,
            st.just("next"),
            results,
            queue=st.just("q"),
            priority=st.integers(-5, 5),
            max_retries=st.none() | st.integers(0, 3),
            max_crashes=st.none() | st.integers(1, 3),
            timeout=st.none() | st.just(timedelta(seconds=1.5)),
            delay=st.none() | st.just(timedelta(hours=1)),
            unique_key=st.just("k"),
            unique_for=st.none() | st.just(timedelta(days=3)),
            on_conflict=st.sampled_from(["keep", "replace"]),
            metadata=st.none() | st.dictionaries(texts, texts, max_size=2),
        ),
        max_size=2,
    ).map(tuple),
    progress=st.none() | st.builds(Progress, done=st.integers(0, 2**53), total=st.none() | st.floats(0, 9)),
)
outcomes: st.SearchStrategy[Outcome] = st.one_of(
    st.builds(Success, result=results, duration=durations, extras=extras),
    st.builds(Success, result=results, duration=durations, not_stored=st.none() | st.text()),
    st.builds(Retry, error=errors, delay=durations, kind=kinds, process=processes, extras=st.none() | extras),
    st.builds(Failure, error=errors, kind=kinds, process=processes),
    st.builds(Cancelled, reason=st.text(), process=processes),
    st.builds(Release, reason=st.text()),
    st.builds(Crash, error=errors, rerun_after=st.none() | durations, process=processes),
)


def a_key(claim_seq: int = 1) -> ClaimKey:
    return ClaimKey(job_id=new_job_id(), claim_seq=claim_seq)


@settings(deadline=None)
@given(st.lists(outcomes, max_size=4))
def test_every_outcome_comes_back_as_it_was(told: list[Outcome]) -> None:
    region = EndedTable(2).region(1)
    kept = {a_key(number): outcome for number, outcome in enumerate(told, start=1)}

    for key, outcome in kept.items():
        assert region.append(key, outcome)

    assert region.read()[1] == kept
    assert region.has_unwritten is bool(told)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_what_a_worker_killed_at_any_moment_has_kept_is_read_whole() -> None:
    table = EndedTable(1)
    for _ in range(20):
        region = table.region(0)
        pid = os.fork()
        if pid == 0:
            fill_for_ever(region)
        while not region.has_unwritten:
            pass
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

        found = list(region.read()[1].items())

        assert [key.claim_seq for key, _ in found] == list(range(1, len(found) + 1))
        assert {outcome for _, outcome in found} <= {DONE}


def fill_for_ever(region: EndedOutcomes) -> None:
    try:
        while True:
            for number in range(1, 100):
                region.append(a_key(number), DONE)
            region.empty()
    finally:
        os._exit(1)
