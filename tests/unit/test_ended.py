"""Tests: outcomes that lie in shared memory come back as they were, and never torn."""

from __future__ import annotations

import os
import signal
from datetime import timedelta
from typing import Any

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
from qml_mp.core.payload import MAX_PAYLOAD_BYTES, encode_json
from qml_mp.core.progress import Progress
from qml_mp.ipc import ended
from qml_mp.ipc.ended import REGION_BYTES, EndedOutcomes, EndedTable

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


def of_size(size_bytes: int) -> Success:
    """A success with a result of so many bytes, which may be more than any job can return."""
    result = "x" * (size_bytes - 2)
    return Success(result=result, duration=timedelta(), encoded=f'"{result}"')


@settings(deadline=None)
@given(st.lists(outcomes, max_size=4))
def test_every_outcome_comes_back_as_it_was(told: list[Outcome]) -> None:
    region = EndedTable(2).region(1)
    kept = {a_key(number): outcome for number, outcome in enumerate(told, start=1)}

    for key, outcome in kept.items():
        assert region.append(key, outcome)

    assert region.read()[1] == kept
    assert region.has_unwritten is bool(told)


def test_what_was_emptied_is_gone_and_what_comes_next_is_kept() -> None:
    region, key = EndedTable(1).region(0), a_key()
    region.append(a_key(), DONE)

    region.empty()

    assert region.read()[1] == {}
    region.append(key, DONE)
    assert region.read()[1] == {key: DONE}


def test_regions_do_not_touch_each_other() -> None:
    table = EndedTable(3)
    regions = [table.region(index) for index in range(3)]
    large = of_size(REGION_BYTES - 100)
    keys = [a_key() for _ in regions]

    for region, key in zip(regions, keys, strict=True):
        assert region.append(key, large)

    assert [region.read()[1] for region in regions] == [{key: large} for key in keys]


@pytest.mark.parametrize("progress", [None, Progress(done=1.0, total=2.0, note="é" * 150)])
@pytest.mark.parametrize("one", ["x", "é", "\n", '"'])
def test_the_largest_result_is_kept_where_there_is_said_to_be_room(
    one: str, progress: Progress | None
) -> None:
    region = EndedTable(1).region(0)
    extras = None if progress is None else Extras(progress=progress)
    result = one * ((MAX_PAYLOAD_BYTES - 2) // len(encode_json(one, what="One").encode()[1:-1]))
    largest = Success(
        result=result, duration=timedelta(), encoded=encode_json(result, what="All"), extras=extras
    )
    other, keys = Success(result="x" * 10_000, duration=timedelta()), []
    while region.has_room:
        keys.append(a_key())
        region.append(keys[-1], other)

    assert len(keys) > 50
    region.empty()
    for key in keys[:-1]:
        region.append(key, other)
    assert region.append(keys[-1], largest)
    assert region.read()[1].keys() == set(keys)
    assert region.read()[1][keys[-1]] == largest


def test_an_outcome_that_finds_no_room_is_refused_and_those_before_it_stay() -> None:
    region, key = EndedTable(1).region(0), a_key()
    region.append(key, DONE)

    fits = region.append(a_key(), of_size(REGION_BYTES))

    assert not fits
    assert region.read()[1] == {key: DONE}


def test_what_came_of_all_jobs_that_have_run_can_be_taken_back() -> None:
    table = EndedTable(1)
    region, first, newest, returned = table.region(0), a_key(), a_key(), a_key()
    not_begun = Release(reason="not begun", not_begun=True)
    region.append(a_key(), DONE)
    region.empty()
    region.append(first, DONE)
    region.append(newest, Release(reason="the server is stopping"))
    region.append(returned, not_begun)

    region.take_back()

    assert region.read()[1] == {returned: not_begun}
    found = region.uncounted()
    assert {key: found[key].outcome for key in found} == {first: None, newest: None, returned: not_begun}
    region = table.region(0)
    region.append(first, DONE)
    assert region.read()[1] == {first: DONE}


def test_a_claim_that_goes_back_leaves_nothing_where_there_is_no_room_for_that() -> None:
    region, key = EndedTable(1).region(0), a_key()
    region.append(key, of_size(REGION_BYTES - 1000))

    while region.append(a_key(), Release(reason="r" * 100, not_begun=True)):
        pass

    assert all(one.outcome is not None for one in region.uncounted().values())


def test_what_has_no_text_is_refused() -> None:
    nested: Any = []
    for _ in range(100_000):
        nested = [nested]

    assert not EndedTable(1).region(0).append(a_key(), Success(result=nested, duration=timedelta()))


def test_a_record_that_was_not_finished_does_not_count() -> None:
    class Torn(Exception):
        pass

    class Numbers(list[int]):
        """Fails once a record is in place, and before it counts."""

        def __setitem__(self, *_: object) -> None:
            raise Torn

    region, key = EndedTable(1).region(0), a_key()
    region.append(key, DONE)
    numbers: Any = region._numbers

    region._numbers = Numbers(numbers)  # type: ignore[assignment]
    with pytest.raises(Torn):
        region.append(a_key(), DONE)
    region._numbers = numbers

    assert region.read()[1] == {key: DONE}


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


def test_a_reader_beside_a_worker_that_empties_and_fills_sees_no_mixture() -> None:
    region = EndedTable(1).region(0)
    pid = os.fork()
    if pid == 0:
        fill_for_ever(region)
    try:
        for _ in range(2000):
            found = [key.claim_seq for key in region.read()[1]]
            assert found == list(range(1, len(found) + 1))
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_the_worker_learns_what_its_supervisor_has_written() -> None:
    region, first, later = EndedTable(1).region(0), a_key(), a_key()
    region.append(first, DONE)
    assert region.has_unwritten

    head, _ = region.read()
    region.append(later, DONE)
    region.note_written(head)

    assert region.written_by_supervisor() == {first}
    assert region.has_unwritten
    region.empty()
    assert region.written_by_supervisor() == frozenset()
    region.append(a_key(), DONE)
    assert region.written_by_supervisor() == frozenset()


def test_what_a_job_has_written_there_by_mistake_is_passed_over() -> None:
    region, key = EndedTable(1).region(0), a_key()
    region.append(a_key(), Release(reason="told"))
    at = region._at + ended._RECORDS_AT + ended._RECORD.size
    region._memory[at : at + 4] = b"\xff\xff\xff\xff"
    region.append(key, DONE)

    assert region.read()[1] == {key: DONE}


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60_000)), max_size=9))
def test_what_is_dropped_is_gone_and_what_came_since_stays(steps: list[tuple[int, int]]) -> None:
    region, kept = EndedTable(2).region(1), {a_key(): DONE}
    region.append(next(iter(kept)), DONE)

    for dropped, size in steps:
        end, old = region.end, list(kept)
        key, outcome = a_key(), Success(result="x" * size, duration=timedelta())
        if region.append(key, outcome):
            kept[key] = outcome
        if dropped:
            region.drop_until(end)
            kept = {key: outcome for key, outcome in kept.items() if key not in old}
        assert region.read()[1] == kept
        assert region.has_unwritten is bool(kept)


def test_a_region_that_is_never_empty_does_not_fill_up() -> None:
    region = EndedTable(1).region(0)
    outcome = Success(result="x" * 50_000, duration=timedelta())
    region.append(a_key(), outcome)

    for _ in range(50):
        end, newest = region.end, a_key()
        assert region.append(newest, outcome)
        region.drop_until(end)
        assert list(region.read()[1]) == [newest]


def test_what_was_noted_as_written_says_nothing_of_what_is_kept_once_some_is_dropped() -> None:
    region = EndedTable(1).region(0)
    region.append(a_key(), DONE)
    region.note_written(region.read()[0])
    end = region.end
    region.append(a_key(), DONE)

    region.drop_until(end)

    assert region.has_unwritten
    assert region.written_by_supervisor() == frozenset()
