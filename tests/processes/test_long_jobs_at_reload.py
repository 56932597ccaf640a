"""Tests: a job that goes on for long keeps its own worker from being replaced, and no other."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from qml_mp.core.acts import ActKind, ActRequest
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.harness import Server, enqueue, is_gone, result_of, wait_for_state, wait_until
from tests.processes.ready_workers import counts_since_all_were, most_processes
from tests.processes.test_acts import ANNA

MakeServer = Callable[..., Server]
CODE = """import os, time
from qml_mp import QmlApp
app = QmlApp()

@app.job()
def version():
    return {}

@app.job()
def gated(begun, gate):
    open(begun, 'w').close()
    while not os.path.exists(gate):
        time.sleep(0.01)  # looks again
    return os.getpid()
"""


class Scene:
    """A server whose first worker is in a job that ends when the gate is opened; the others are idle."""

    def __init__(self, server: MakeServer, storage: Storage, folder: Path) -> None:
        self._storage = storage
        self._code = folder / "living_app.py"
        self.deploy(1)
        path = {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        self.one = server("-w", "1", app="living_app:app", **path).start()
        self._gate = folder / "gate"
        begun = folder / "begun"
        self.long_id = enqueue(storage, "gated", begun=str(begun), gate=str(self._gate))
        wait_until(begun.exists, what=self.one.log)
        self.busy = self.one.worker_pids()[1]
        for count in (2, 3):
            self.one.signal(signal.SIGTTIN)
            self.ready(count)
        wait_until(lambda: len(self.one.worker_pids()) == 3, what=self.one.log)  # registers once it is ready
        self.idle = [pid for number, pid in self.one.worker_pids().items() if number > 1]

    def deploy(self, version: int | None) -> None:
        """The code of that version; None: such as does not import."""
        fresh = self._code.with_suffix(".new")
        fresh.write_text("import no_such_library\n" if version is None else CODE.format(version))
        fresh.replace(self._code)

    def ready(self, count: int) -> None:
        """Wait until so many have become ready since the start."""
        wait_until(lambda: self.one.log().count("is ready (pid") >= count, what=self.one.log)

    def replace(self, number: int) -> ActRequest:
        """Ask for the replacement of the worker of that number."""
        (worker,) = (each for each in self._storage.list_workers() if each.number == number)
        request = ActRequest(kind=ActKind.REPLACE, server_id=worker.server_id, worker_id=worker.id, by=ANNA)
        self._storage.ask(request)
        return request

    def reload(self, version: int) -> None:
        self.deploy(version)
        self.one.signal(signal.SIGHUP)

    def versions(self) -> set[object]:
        """Which code answers, while the long job goes on."""
        found = {result_of(self._storage, "version") for _ in range(6)}
        assert not is_gone(self.busy)
        return found

    def end(self) -> None:
        """Open the gate: the long job has run once, and its worker leaves after it."""
        self._gate.touch()
        job = wait_for_state(self._storage, self.long_id, StateName.SUCCEEDED)
        assert (job.result, job.claim_seq) == (self.busy, 1)
        wait_until(lambda: is_gone(self.busy), what=self.one.log)
        wait_until(lambda: sorted(self.one.worker_pids()) == [1, 2, 3], what=self.one.log)
        assert most_processes(self.one.log()) == 4, self.one.log()
        assert min(counts_since_all_were(self.one.log(), 3)) >= 3, self.one.log()
        assert self.one.stop() == 0


@pytest.fixture
def scene(server: MakeServer, storage: Storage, tmp_path: Path) -> Scene:
    return Scene(server, storage, tmp_path)


def test_a_long_job_keeps_no_idle_worker_from_new_code(scene: Scene) -> None:
    scene.reload(2)

    wait_until(lambda: all(map(is_gone, scene.idle)), what=scene.one.log)
    scene.ready(6)
    assert scene.versions() == {2}
    scene.end()


@pytest.mark.nightly
def test_newer_code_is_not_kept_waiting_by_a_worker_that_is_to_leave_after_its_long_job(scene: Scene) -> None:
    scene.reload(2)
    scene.ready(6)  # the two that were idle are replaced, and the place of the busy one is taken

    scene.reload(3)

    wait_until(lambda: scene.one.log().count("left as told") == 5, what=scene.one.log)
    scene.ready(9)
    assert scene.versions() == {3}
    scene.end()
