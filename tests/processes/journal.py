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
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qml_mp import WorkerContext
from qml_mp.core.job import ClaimKey

JOURNAL = "QML_TEST_JOURNAL"
OVERLAP = "overlap"
RECORDED = "recorded"
"""The worker has put the run's outcome where its death takes nothing away."""
_END = "."


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One note of one run of a job."""

    job_id: str
    claim_seq: int
    pid: int
    what: str
    at_ns: int


_newest_end: deque[ClaimKey] = deque(maxlen=1)
"""The run in this process that has come to its end and of which nobody has noted that it is recorded."""


def note(ctx: WorkerContext, what: str) -> None:
    """Write one line."""
    _write(_run(ctx), what)


def note_recorded() -> None:
    """Write that the outcome of the newest run that came to its end in this process is recorded."""
    if _newest_end:
        _write(_newest_end.pop(), RECORDED)


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
        _newest_end.clear()
        try:
            yield
            _newest_end.append(_run(ctx))
        except Exception:  # and no `BaseException`: an interrupted run may begin anew
            _newest_end.append(_run(ctx))
            raise
        finally:
            note(ctx, "end")
    finally:
        os.close(fd)


def _run(ctx: WorkerContext) -> ClaimKey:
    return ClaimKey(job_id=ctx.job.id, claim_seq=ctx.job.claim_seq)


def _write(run: ClaimKey, what: str) -> None:
    fields = (run.job_id, run.claim_seq, os.getpid(), what, time.monotonic_ns(), _END)
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
