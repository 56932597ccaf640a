"""Benchmark: the processor time of a run, which says more than its rate where the machine is shared."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from tests.nightly.ground import descendants

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s_of_programs(pids: Iterable[int]) -> float:
    """Of the programs, of all that they have started and of all that they have waited for."""
    return sum(_cpu_s(each) for pid in pids for each in (pid, *descendants(pid)))


def cpu_s_of_sessions(database: str) -> float:
    """Of the processes that serve the database's sessions. PostgreSQL names them in their titles."""
    title = f" {database} "
    return sum(_cpu_s(int(name)) for name in os.listdir("/proc") if name.isdigit() and title in _title(name))


def _title(pid: str) -> str:
    try:
        text = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""
    return text if text.startswith("postgres: ") else ""


def _cpu_s(pid: int) -> float:
    with contextlib.suppress(OSError):  # it has ended
        text = Path(f"/proc/{pid}/stat").read_text()
        fields = text[text.rindex(")") + 2 :].split()
        return sum(map(int, fields[11:15])) / _TICKS_PER_S
    return 0.0
