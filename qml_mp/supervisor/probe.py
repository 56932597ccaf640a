"""Supervisor: asks a short-lived child what the app's code gives, instead of importing it itself."""

from __future__ import annotations

import os
import time
from datetime import timedelta

from qml_mp.child.probe import AppFacts, probe, read_facts
from qml_mp.child.prologue import unblock_signals
from qml_mp.child.source import ProgramSource
from qml_mp.core.outcome import ProcessFacts
from qml_mp.errors import AppImportError
from qml_mp.ipc.pipe import open_pipe
from qml_mp.supervisor.fork import Child, fork_child, reap
from qml_mp.supervisor.settle import how_it_died
from qml_mp.supervisor.wait import wait_for
from qml_mp.units import format_duration

_LOOK_EVERY_S = 0.05


def probe_app(source: ProgramSource, *, timeout: timedelta) -> AppFacts:
    """The app's URL, settings, recurring templates and methods.

    Raises `AppImportError` with the module's own traceback when it does not import, and when it
    takes longer than a worker would have.
    """
    reading, writing = open_pipe()

    def answer() -> int:
        unblock_signals()
        os.set_blocking(writing, True)
        with os.fdopen(writing, "w") as stream:
            stream.write(probe(source))
        return 0

    try:
        child = fork_child(answer, own_fds={reading}, keep_fds={writing}, die_with_parent=True)
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    text, process = _listen(child, reading, deadline=time.monotonic() + timeout.total_seconds())
    if process is None:
        raise AppImportError(
            f"The app {source.label!r} was not imported within {format_duration(timeout)} (boot_timeout)."
        )
    if not text:
        raise AppImportError(
            f"The process that imported {source.label!r} {how_it_died(process)} before it was done."
        )
    facts = read_facts(text)
    if facts.error is not None:
        raise AppImportError(f"The app {source.label!r} cannot be imported:\n{facts.error.rstrip()}")
    return facts


def _listen(child: Child, reading: int, *, deadline: float) -> tuple[str, ProcessFacts | None]:
    """What the child says and how it ends; None: it did not in time, and was killed.

    The end of the pipe is not waited for: a process that the app has started may hold it open.
    """
    said = bytearray()
    watched = [reading, *([] if child.pidfd is None else [child.pidfd])]
    try:
        while (process := reap(child)) is None:
            if time.monotonic() > deadline:
                child.kill_group()
                while reap(child) is None:
                    wait_for(watched[1:], until=time.monotonic() + _LOOK_EVERY_S)
                return "", None
            wait_for(watched, until=min(deadline, time.monotonic() + _LOOK_EVERY_S))
            if not _drain(reading, said):
                watched = watched[1:]
        _drain(reading, said)
    finally:
        os.close(reading)
    return said.decode(), process


def _drain(reading: int, said: bytearray) -> bool:
    """Take in what has come; False at the end of the pipe."""
    try:
        while data := os.read(reading, 65536):
            said += data
    except BlockingIOError:
        return True
    return False
