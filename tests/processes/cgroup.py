"""Tests: a control group with little memory, so that the kernel's OOM killer strikes only in there."""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.processes.harness import wait_until

_VERSION_1 = Path("/sys/fs/cgroup/memory")
_VERSION_2 = Path("/sys/fs/cgroup")
_COUNT = "/proc/vmstat"


@contextmanager
def no_strikes(*, but_own: bool = False) -> Iterator[None]:
    """No test on this machine, of whatever run, has the OOM killer strike meanwhile: the kernel has one count
    for all, and a server lays a SIGKILL to it that comes a moment after. Decorates a test, too."""
    fd = os.open(_COUNT, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX if but_own else fcntl.LOCK_SH)
        yield
    finally:
        os.close(fd)


@contextmanager
def small_memory(limit_bytes: int) -> Iterator[Path]:
    """The file into which a process of the group writes its pid to get in. The test is skipped, and
    says why, where this user may make no such group."""
    is_first = (_VERSION_1 / "memory.limit_in_bytes").exists()
    group = (_VERSION_1 if is_first else _VERSION_2) / f"qml-mp-{uuid.uuid4().hex[:8]}"
    limits = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes") if is_first else ("memory.max",)
    try:
        group.mkdir()
    except OSError as error:
        # Nothing else ends a job for its memory as the kernel does.
        pytest.skip(f"no memory control group can be made here ({error}); root on Linux can")
    try:
        if not (group / limits[0]).exists():
            # Version 2 without the controller: nobody but root of the whole machine can switch it on.
            pytest.skip("control groups do not limit memory here")
        for name in limits:
            if (group / name).exists():  # the second one only where swap is counted
                (group / name).write_text(str(limit_bytes))
        with no_strikes(but_own=True):
            yield group / "cgroup.procs"
    finally:
        wait_until(lambda: _remove(group), what=f"the end of {group}")


def _remove(group: Path) -> bool:
    """Whether that could be done: the kernel has let go of the last process in it."""
    try:
        group.rmdir()
    except OSError:
        return False
    return True
