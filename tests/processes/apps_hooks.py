"""Tests: an app whose hooks do to their process what no job may leave behind either."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from qml_mp import ErrorInfo, Job, QmlApp, RetryPolicy, StateChange, WorkerContext
from qml_mp.core.state import StateName
from tests.processes.journal import note

OWN_HANDLERS = "QML_TEST_OWN_HANDLERS"
"""Set: the import puts handlers of its own in the place of those of the worker."""

if os.environ.get(OWN_HANDLERS):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    faulthandler.enable()


def _unsettle() -> None:
    os.chdir("/usr")
    os.umask(0o007)
    os.environ["QML_TEST_LEFT"] = "by a hook"
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _close_all() -> None:
    os.closerange(3, 256)


def _die() -> None:
    os._exit(1)


_ACTS: dict[str, Callable[[], None]] = {
    "unsettle": _unsettle,
    "close": _close_all,
    "die": _die,
}


def _write(line: str) -> None:
    with (Path(os.environ["QML_TEST_JOURNAL"]).parent / "hooks").open("a") as file:
        file.write(f"{line}\n")


def _act(hook: str, job: Job) -> None:
    assert isinstance(job.payload, dict)
    _write(hook)
    _ACTS[str(job.payload["act"])]()


def _on_state_change(change: StateChange) -> None:
    if (change.job.method, change.new) in (
        ("succeeds", StateName.SUCCEEDED),
        ("begins", StateName.PROCESSING),
    ):
        _act("on_state_change", change.job)


app = QmlApp(retry_policy=RetryPolicy.none(), on_state_change=_on_state_change)


@app.on_failure
def tell(job: Job, error: ErrorInfo) -> None:
    """Called for `fails` alone."""
    if job.method == "fails":
        _act("on_failure", job)


@app.job()
def succeeds(act: str) -> None:
    """The hook acts when it has succeeded."""


@app.job()
def begins(act: str) -> None:
    """The hook acts when it is claimed."""


@app.job()
def fails(act: str) -> None:
    """The function for failed jobs acts."""
    raise ValueError(act)


@app.job()
def look() -> list[object]:
    """What a job finds."""
    umask = os.umask(0o022)
    os.umask(umask)
    handler = getattr(signal.getsignal(signal.SIGTERM), "__qualname__", None)
    return [os.getcwd(), umask, os.environ.get("QML_TEST_LEFT"), handler]


@app.job()
def nap(ctx: WorkerContext) -> None:
    """Sleep for a minute, and say what ends that."""
    try:
        note(ctx, "start")
        time.sleep(60)
    except BaseException as error:
        note(ctx, type(error).__name__)
        raise


@app.job(max_crashes=1)
def segfault() -> None:
    """Die in C."""
    faulthandler._sigsegv()  # type: ignore[attr-defined]
