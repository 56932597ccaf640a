"""Tests: the one judge of what a run has left: the database's log of transitions, and the jobs' journal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from qml_mp.core.outcome import AttemptKind
from qml_mp.core.state import TRANSITIONS, StateName
from tests.audit import Transition
from tests.processes.journal import OVERLAP, RECORDED, Line

_PROCESSING = StateName.PROCESSING


def faults_of_transitions(
    log: Sequence[Transition], attempts: Mapping[tuple[str, int], AttemptKind]
) -> Iterator[str]:
    """What in the log breaks I3, I4 or the transition table; nothing when all of it holds."""
    for one in log:
        if one.old is None:
            continue
        if one.new is None:
            if not one.old.is_final:
                yield f"{one.job_id}: removed while {one.old}"
        elif one.new not in TRANSITIONS[one.old]:
            yield f"{one.job_id}: {one.old} became {one.new}: {one}"
    yield from _faults_of_claims(log)
    yield from _faults_of_attempts(log, attempts)


def _faults_of_claims(log: Sequence[Transition]) -> Iterator[str]:
    """Each claim begins once, with the next number, and ends at most once, under its own number."""
    newest: Counter[str] = Counter()
    held: dict[str, int] = {}
    for one in log:
        if one.old_seq != newest[one.job_id]:
            yield f"{one.job_id}: had claim_seq {one.old_seq}, not {newest[one.job_id]}"
        if one.new is _PROCESSING:
            if one.new_seq != newest[one.job_id] + 1 or one.job_id in held:
                yield f"{one.job_id}: claim {one.new_seq} after {newest[one.job_id]}"
            newest[one.job_id] = held[one.job_id] = one.new_seq
        elif one.old is _PROCESSING and held.pop(one.job_id, None) != one.new_seq:
            yield f"{one.job_id}: claim {one.new_seq} ended and was not held"
        elif one.new_seq != newest[one.job_id]:
            yield f"{one.job_id}: has claim_seq {one.new_seq}, not {newest[one.job_id]}"


def _faults_of_attempts(
    log: Sequence[Transition], attempts: Mapping[tuple[str, int], AttemptKind]
) -> Iterator[str]:
    """What ended a claim, what it was charged for and what its history says are the same."""
    removed = {one.job_id for one in log if one.new is None}
    for one in log:
        if one.old is not _PROCESSING or one.job_id in removed:
            continue
        kind = attempts.get((one.job_id, one.new_seq))
        match one.new:
            case StateName.SUCCEEDED:
                fits = kind is None and one.failures == one.crashes == 0
            case StateName.DELETED:
                fits = kind is AttemptKind.CANCELLED and one.failures == one.crashes == 0
            case StateName.ENQUEUED:  # a release, or the first crash
                fits = (kind is None and one.crashes == 0) or (kind is AttemptKind.CRASH and one.crashes == 1)
            case _ if kind is AttemptKind.CRASH:
                fits = (one.failures, one.crashes) == (0, 1)
            case _:
                fits = kind in (AttemptKind.FAILURE, AttemptKind.TIMEOUT) and (
                    (one.failures, one.crashes) == (1, 0)
                )
        if not fits:
            yield f"{one.job_id}: claim {one.new_seq} ended {one.new} as {kind}: {one}"


def faults_of_runs(journal: Sequence[Line], log: Sequence[Transition]) -> Iterator[str]:
    """Runs that met another's lock, that no claim allowed, that one claim began twice, and lines of a run
    after a later one of the job began."""
    claims = {(one.job_id, one.new_seq) for one in log if one.new is _PROCESSING}
    newest: dict[str, int] = {}
    started: set[tuple[str, int]] = set()
    for line in sorted(journal, key=lambda line: line.at_ns):
        run = (line.job_id, line.claim_seq)
        if line.what == OVERLAP:
            yield f"job {line.job_id}: claim {line.claim_seq} began while another process ran it"
        if run not in claims:
            yield f"job {line.job_id}: ran as claim {line.claim_seq}, which was never made"
        if line.what == "start":
            if run in started:
                yield f"job {line.job_id}: claim {line.claim_seq} ran twice"
            started.add(run)
        if line.claim_seq < newest.get(line.job_id, 0):
            yield f"job {line.job_id}: claim {line.claim_seq} still ran after {newest[line.job_id]} had begun"
        newest[line.job_id] = max(line.claim_seq, newest.get(line.job_id, 0))


def faults_of_deaths(log: Sequence[Transition]) -> Iterator[str]:
    """Deaths of workers that were charged to more than the one claim in hand."""
    charged: Counter[str | None] = Counter()
    for one in log:
        charged[one.old_worker] += one.crashes
        if one.crashes and charged[one.old_worker] > 1:
            yield f"job {one.job_id}: charged with a death that another was charged with: {one}"


def ended_and_taken_away(
    journal: Sequence[Line], log: Sequence[Transition], attempts: Mapping[tuple[str, int], AttemptKind]
) -> Iterator[Transition]:
    """The claims of runs whose outcome was recorded and which ended by another verdict than their own."""
    recorded = {(line.job_id, line.claim_seq) for line in journal if line.what == RECORDED}
    for one in log:
        if (one.job_id, one.old_seq) in recorded and was_taken_away(one, attempts):
            yield one


def was_taken_away(one: Transition, attempts: Mapping[tuple[str, int], AttemptKind]) -> bool:
    """Whether a claim ended by a release or a crash, and not by the verdict of its own run."""
    kind = attempts.get((one.job_id, one.old_seq))
    is_over = one.new in (StateName.SUCCEEDED, StateName.DELETED)
    return one.old is _PROCESSING and not is_over and kind in (None, AttemptKind.CRASH)


def most_held(log: Sequence[Transition]) -> int:
    """The most claims that one worker held at one time."""
    held: Counter[str | None] = Counter()
    most = 0
    for one in log:
        if one.old is _PROCESSING:
            held[one.old_worker] -= 1
        if one.new is _PROCESSING:
            held[one.new_worker] += 1
            most = max(most, held[one.new_worker])
    return most
