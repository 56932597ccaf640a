"""Tests: the append-only log that jobs write, which is read afterwards to judge the system.

One `O_APPEND` write a line: `job claim_seq pid what monotonic_ns .`. The system never reads it.
A process that is killed in mid-write leaves the beginning of a line. Each line therefore begins with a
line break, so that it does not swallow the next one, and has an end by which a whole one is known.
"""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qml_mp import WorkerContext

JOURNAL = "QML_TEST_JOURNAL"
OVERLAP = "overlap"
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


@contextmanager
def sole_run(ctx: WorkerContext) -> Iterator[None]:
    """Note the run at both ends, and whether another process runs this job meanwhile.

    Each job has a lock, which the kernel holds until the process is dead, and not a moment longer. So two
    runs of one job at the same time are seen exactly, whatever any clock says.
    """
    path = Path(os.environ[JOURNAL]).with_name("locks")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, uuid.UUID(ctx.job.id).int % 2**62)
        except OSError:
            note(ctx, OVERLAP)
        note(ctx, "start")
        try:
            yield
        finally:
            note(ctx, "end")
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
