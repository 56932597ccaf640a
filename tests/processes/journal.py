"""Tests: the append-only log that jobs write, and the checker that reads it: the judge of the system.

One `O_APPEND` write a line: `job claim_seq pid what monotonic_ns .`. The system never reads it.
A process that is killed in mid-write leaves the beginning of a line. Each line therefore begins with a
line break, so that it does not swallow the next one, and has an end by which a whole one is known.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from qml_mp import WorkerContext

JOURNAL = "QML_TEST_JOURNAL"
_END = "."


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One note of one run of a job."""

    job_id: str
    claim_seq: int
    pid: int
    what: str
    at_ns: int


def note(ctx: WorkerContext, what: str) -> None:
    """Write one line."""
    fields = (ctx.job.id, ctx.job.claim_seq, os.getpid(), what, time.monotonic_ns(), _END)
    line = "\n" + "\t".join(map(str, fields)) + "\n"
    fd = os.open(os.environ[JOURNAL], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


def read_journal(path: Path) -> list[Line]:
    """All lines in the order in which they were written."""
    return parse_journal(path.read_text()) if path.exists() else []


def parse_journal(text: str) -> list[Line]:
    """The whole lines of it."""
    rows = (line.split("\t") for line in text.splitlines())
    return [
        Line(job_id=row[0], claim_seq=int(row[1]), pid=int(row[2]), what=row[3], at_ns=int(row[4]))
        for row in rows
        if row[5:] == [_END]
    ]


def overlapping_runs(lines: list[Line], deaths_ns: dict[int, int]) -> list[tuple[Line, Line]]:
    """Pairs of runs of one job of which the second began before the first was over.

    A run is over at its "end" line, or when its process was seen dead (`deaths_ns`: pid to the
    instant right after the kill). A run of which neither is known counts as still running.
    """
    ends = {(line.job_id, line.claim_seq): line.at_ns for line in lines if line.what == "end"}
    overlaps = []
    last: dict[str, Line] = {}
    for line in sorted((line for line in lines if line.what == "start"), key=lambda line: line.at_ns):
        before = last.get(line.job_id)
        last[line.job_id] = line
        if before is None:
            continue
        over_ns = ends.get((before.job_id, before.claim_seq), deaths_ns.get(before.pid))
        if over_ns is None or over_ns > line.at_ns:
            overlaps.append((before, line))
    return overlaps
