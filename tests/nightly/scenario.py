"""Tests: what every scenario is given and what it returns."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tests.nightly.ground import Ground
from tests.nightly.judge import Evidence, Findings, Kills, judge
from tests.nightly.report import Row, Stopwatch
from tests.processes.harness import left_in_registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One run of a scenario."""

    scenario: str
    backend: str
    postgres_url: str | None
    seed: int
    count: int
    unit: str
    minutes: float = float("inf")
    pace: float = 1.0
    """Multiplies how long outages and pauses last. Short runs have less than 1."""
    watch: Stopwatch = field(default_factory=Stopwatch)
    began: float = field(default_factory=time.monotonic)

    @property
    def time_is_up(self) -> bool:
        """Whether the scenario has used its time; it then says how far it got."""
        return time.monotonic() - self.began > self.minutes * 60

    def turns(self, count: int) -> Iterator[int]:
        """0, 1, 2, … up to the count or the end of the time, and once at least."""
        for number in range(count):
            if number and self.time_is_up:
                return
            yield number

    def row(
        self,
        *,
        done: int,
        findings: Findings | None = None,
        kills: int | None = None,
        figures: str = "",
        broken: tuple[str, ...] = (),
    ) -> Row:
        """The line of the table."""
        seconds, load = self.watch.reading()
        return Row(
            scenario=self.scenario,
            backend=self.backend,
            seed=self.seed,
            done=done,
            wanted=self.count,
            unit=self.unit,
            seconds=seconds,
            load=load,
            kills=kills,
            lost=None if findings is None else len(findings.lost),
            overlapping=None if findings is None else len(findings.overlapping),
            stale=None if findings is None else len(findings.stale),
            unexplained=None if findings is None else len(findings.unexplained),
            figures=figures,
            broken=broken if findings is None else findings.all + broken,
        )


def judge_ground(
    ground: Ground, *, expected: list[str], kills: Kills, failures: Mapping[str, int] | None = None
) -> Findings:
    """Read everything there is to read, and judge."""
    return judge(
        Evidence(
            expected=expected,
            journal=ground.journal(),
            transitions=ground.audit.transitions(),
            attempts=ground.audit.attempts(),
            jobs=ground.audit.jobs(),
            servers=ground.audit.servers(),
            kills=kills,
            failures=failures or {},
        )
    )


def nothing_left(ground: Ground, *, claims: bool = True) -> tuple[str, ...]:
    """After the end of every server: processes, claims and registry rows that should not be there."""
    problems = [f"process {pid} is left" for pid in ground.leftovers()]
    if claims and ground.storage.claims() and not _too_slow_to_settle(ground):
        problems.append(f"{len(ground.storage.claims())} claims are left; {_last_lines(ground)}")
    left = left_in_registry(ground.storage, _log(ground))
    if claims and left:
        problems.append(f"registry rows are left: {left}; {_last_lines(ground)}")
    return tuple(problems)


def _too_slow_to_settle(ground: Ground) -> bool:
    """Whether a server has said so: its stop has an end, and the next one finds what its workers held."""
    return "dead workers still held is left to the next server" in _log(ground)


def _last_lines(ground: Ground) -> str:
    """Of the log in which the servers of the ground write."""
    return _log(ground)[-1000:]


def _log(ground: Ground) -> str:
    return (ground.folder / "server.log").read_text(errors="replace")
