"""Tests: parts of a supervisor that need no process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest

from qml_mp.app import QmlApp
from qml_mp.child.source import AppFacts, LoadedProgram, NamedProgram
from qml_mp.settings import ServerConfig
from qml_mp.supervisor.loops.declarations import DeclarationsLoop
from qml_mp.supervisor.parts.reload import NewCode, Reload
from qml_mp.supervisor.run import Run

SOURCE = NamedProgram(spec="an:app")
MakeRun = Callable[[int], Run]


@pytest.fixture
def run_of() -> Iterator[MakeRun]:
    with ExitStack() as stack:

        def make(workers: int) -> Run:
            run = Run(ServerConfig(worker_count=workers), SOURCE, url="memory://", facts=AppFacts())
            stack.enter_context(closing(run.pool))
            return run

        yield make


@pytest.mark.parametrize(("workers", "wanted"), [(1, 2), (1023, 1024), (1024, 1024)])
def test_one_more_worker_is_never_more_than_the_setting_allows(
    run_of: MakeRun, workers: int, wanted: int
) -> None:
    pool = run_of(workers).pool

    pool.resize(pool.size + 1)

    assert pool.size == wanted


def test_no_look_at_new_code_begins_once_all_is_closed(
    run_of: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, looks = run_of(1), []
    monkeypatch.setattr("qml_mp.supervisor.parts.reload.Probe", lambda *_, **__: looks.append("a look"))
    reload = Reload(run, SOURCE, new_code=NewCode(), declarations=DeclarationsLoop(run))

    reload.close()
    reload.begin()

    assert looks == []


def test_a_reload_of_a_program_in_memory_declares_it_again(run_of: MakeRun) -> None:
    run, source = run_of(1), LoadedProgram(program=QmlApp("memory://").program)
    declarations = DeclarationsLoop(run)
    before = declarations.due_at()

    Reload(run, source, new_code=NewCode(), declarations=declarations).begin()

    assert (before, declarations.due_at()) == (float("inf"), 0)
