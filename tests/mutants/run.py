"""Mutants: one run of pytest in a copy of the project, within a time limit, of which no process is left."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryFile

from tests.mutants.mutant import DoesNotApplyError, Mutant, project_copy

_FAILED = re.compile(r"^FAILED (\S.*?)(?: - .*)?$", re.MULTILINE)
_TESTS_FAILED = 1
"""pytest's exit code when tests have failed. The others tell of its own trouble, and kill nothing."""
_TO_UNWIND_S = 10.0
"""How long an interrupted run of pytest may take to end its servers."""
_PR_SET_CHILD_SUBREAPER = 36


class Verdict(StrEnum):
    """What a run has shown."""

    KILLED = "killed"
    PASSED = "passed"
    LATE = "not killed in time"
    BROKEN = "broken"
    """The change does not apply, or pytest had trouble other than a test that failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a run has ended."""

    name: str
    verdict: Verdict
    seconds: float
    test: str = ""
    """The test that failed."""
    output: str = ""
    """What pytest printed."""


def adopt_orphans() -> None:
    """Have this process become the parent of all below it whose own parent dies, so that it can end them."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def run_mutant(mutant: Mutant, url: str, limit_s: float, *, is_check: bool) -> Ended:
    """Run the tests of a mutant in a copy with its changes; with `is_check`, in a copy without them."""
    try:
        with project_copy(() if is_check else mutant.changes) as folder:
            return _run_tests(mutant, folder, url, limit_s)
    except DoesNotApplyError as error:
        return Ended(name=mutant.name, verdict=Verdict.BROKEN, seconds=0.0, output=str(error))


def _run_tests(mutant: Mutant, folder: Path, url: str, limit_s: float) -> Ended:
    command = [
        sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider",
        "-m", "not nightly and not soak", "-rfE", "--tb=short", *mutant.tests,
    ]  # fmt: skip
    began = time.monotonic()
    with TemporaryFile() as printed:
        process = subprocess.Popen(
            command, cwd=folder, env=_environment(folder, url), stdin=subprocess.DEVNULL, stdout=printed,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        is_late = False
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            is_late = True
        seconds = time.monotonic() - began
        _end(process)
        printed.seek(0)
        output = printed.read().decode(errors="replace")
    failed = _FAILED.findall(output)
    if is_late:
        verdict = Verdict.LATE
    elif process.returncode == _TESTS_FAILED and failed:
        verdict = Verdict.KILLED
    else:
        verdict = Verdict.BROKEN if process.returncode else Verdict.PASSED
    test = failed[0] if verdict is Verdict.KILLED else ""
    return Ended(name=mutant.name, verdict=verdict, seconds=seconds, test=test, output=output)


def _environment(folder: Path, url: str) -> dict[str, str]:
    """Programs that tests start elsewhere import the copy too: it comes before what is installed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("QML_MP_")}
    return {**kept, "PYTHONPATH": str(folder), "QML_MP_TEST_URL": url}


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the run, and all that it has left. Interrupted, it ends its servers itself."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_TO_UNWIND_S)
        process.kill()
        process.wait()
    while children := _children():
        for pid in children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in children:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)  # its own children are ours then


def _children() -> list[int]:
    """The processes that this one is the parent of, where the system tells."""
    with suppress(OSError):
        return [int(pid) for pid in Path("/proc/thread-self/children").read_text().split()]
    return []
