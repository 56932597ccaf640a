"""Tests: the independent judgement of a run, from the jobs' journal, the database's log and the kills."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from qml_mp.core.outcome import AttemptKind
from qml_mp.core.state import StateName
from tests.audit import JobRow, Transition
from tests.faults import (
    ended_and_taken_away,
    faults_of_deaths,
    faults_of_runs,
    faults_of_transitions,
    was_taken_away,
)
from tests.processes.journal import Line


@dataclass(kw_only=True)
class Kills:
    """What the scenario killed. Written by it, read by the judge."""

    workers: set[str] = field(default_factory=set)
    """Worker ids; also those whose claims a peer gave to others."""
    supervisors: set[int] = field(default_factory=set)
    """Pids of supervisors; whatever their workers held runs again, unless it had ended."""
    with_everybody: set[str] = field(default_factory=set)
    """Worker ids: their supervisor and its guardian were killed with them. What had ended and was not written
    yet stood in the memory of these alone, so it runs again."""
    count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """One text for each offence; all empty when everything promised holds."""

    lost: tuple[str, ...]
    overlapping: tuple[str, ...]
    stale: tuple[str, ...]
    unexplained: tuple[str, ...]
    charged: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        return self.lost + self.overlapping + self.stale + self.unexplained + self.charged


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the judge reads."""

    expected: Collection[str]
    """The jobs that must have succeeded."""
    journal: Sequence[Line]
    transitions: Sequence[Transition]
    attempts: Mapping[tuple[str, int], AttemptKind]
    jobs: Sequence[JobRow]
    servers: Sequence[tuple[str, int]]
    kills: Kills
    failures: Mapping[str, int] = field(default_factory=dict)
    """How many failures jobs must have been charged with; the others with none."""


def judge(evidence: Evidence) -> Findings:
    """Find every offence against the invariants."""
    return Findings(
        lost=tuple(_lost(evidence)),
        overlapping=tuple(faults_of_runs(evidence.journal, evidence.transitions)),
        stale=tuple(_stale(evidence)),
        unexplained=tuple(_unexplained(evidence)),
        charged=tuple(_charged(evidence)),
    )


def _lost(evidence: Evidence) -> Iterable[str]:
    """Jobs that did not succeed, or whose success no run stands behind."""
    rows = {row.id: row for row in evidence.jobs}
    ended = {(line.job_id, line.claim_seq) for line in evidence.journal if line.what == "end"}
    for job_id in evidence.expected:
        row = rows.get(job_id)
        if row is None:
            yield f"job {job_id} has no row any more"
        elif row.state is not StateName.SUCCEEDED:
            yield f"job {job_id} is {row.state} after claim {row.claim_seq}"
        elif (job_id, row.claim_seq) not in ended:
            told = [line for line in evidence.journal if line.job_id == job_id]
            changes = [change for change in evidence.transitions if change.job_id == job_id]
            yield f"job {job_id} succeeded by claim {row.claim_seq}, which never ended: {told}, {changes}"


def _stale(evidence: Evidence) -> Iterable[str]:
    """Writes that the claim's number or the transition table should have refused. A job returns the
    number of its claim, so a result that differs from the row's number was written by a stale claim."""
    yield from faults_of_transitions(evidence.transitions, evidence.attempts)
    for change in evidence.transitions:
        if change.new is None:
            yield f"a row was deleted: {change}"
        if change.new is StateName.SUCCEEDED and change.result != str(change.new_seq):
            yield f"the result is another claim's: {change}"


def _unexplained(evidence: Evidence) -> Iterable[str]:
    """Claims that were taken from a worker which nobody is known to have killed, and runs that had ended,
    whoever was killed.

    A claim that no run had begun goes back uncharged, whoever held it.
    """
    begun = {(line.job_id, line.claim_seq) for line in evidence.journal if line.what == "start"}
    killed_servers = {name for name, pid in evidence.servers if pid in evidence.kills.supervisors}
    for change in evidence.transitions:
        if not was_taken_away(change, evidence.attempts) or _server_of(change.old_worker) in killed_servers:
            continue
        was_held_only = change.new is StateName.ENQUEUED and not change.crashes
        if was_held_only and (change.job_id, change.old_seq) not in begun:
            continue
        if change.old_worker not in evidence.kills.workers:
            yield f"job {change.job_id}: claim {change.old_seq} of {change.old_worker} -> {change.new}"
    for change in ended_and_taken_away(evidence.journal, evidence.transitions, evidence.attempts):
        if change.old_worker in evidence.kills.with_everybody:
            continue
        yield f"job {change.job_id}: claim {change.old_seq} had ended and was taken away: {change}"


def _charged(evidence: Evidence) -> Iterable[str]:
    """Budgets charged beyond what kills of workers explain."""
    yield from faults_of_deaths(evidence.transitions)
    hits: dict[str, int] = {}
    for change in evidence.transitions:
        if was_taken_away(change, evidence.attempts) and change.old_worker in evidence.kills.workers:
            hits[change.job_id] = hits.get(change.job_id, 0) + 1
    for row in evidence.jobs:
        if row.failures != evidence.failures.get(row.id, 0):
            yield f"job {row.id} was charged {row.failures} failures"
        if row.crashes > hits.get(row.id, 0):
            yield f"job {row.id} was charged {row.crashes} crashes for {hits.get(row.id, 0)} kills"


def _server_of(worker_id: str | None) -> str | None:
    return None if worker_id is None else worker_id.partition(":worker:")[0]
