"""Supervisor: asks a short-lived child what the app's code gives, instead of importing it itself."""

from __future__ import annotations

import os
import select

from qml_mp.child.probe import AppFacts, probe, read_facts
from qml_mp.child.prologue import unblock_signals
from qml_mp.child.source import ProgramSource
from qml_mp.errors import AppImportError
from qml_mp.supervisor.fork import fork_child, reap
from qml_mp.supervisor.settle import how_it_died


def probe_app(source: ProgramSource) -> AppFacts:
    """The app's URL, settings, recurring templates and methods.

    Raises `AppImportError` with the module's own traceback when it does not import.
    """
    reading, writing = os.pipe()

    def answer() -> int:
        unblock_signals()
        with os.fdopen(writing, "w") as stream:
            stream.write(probe(source))
        return 0

    try:
        child = fork_child(answer, own_fds={reading}, keep_fds={writing}, die_with_parent=True)
    finally:
        os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        text = stream.read().decode()
    while (process := reap(child)) is None:
        select.select([] if child.pidfd is None else [child.pidfd], [], [], 0.01)
    if not text:
        raise AppImportError(
            f"The process that imported {source.label!r} {how_it_died(process)} before it was done."
        )
    facts = read_facts(text)
    if facts.error is not None:
        raise AppImportError(f"The app {source.label!r} cannot be imported:\n{facts.error.rstrip()}")
    return facts
