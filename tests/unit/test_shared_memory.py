"""Tests: the outcomes that a worker has left in shared memory are read whole."""

from __future__ import annotations

import os
import signal
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
