"""Supervisor: writes to storage how far the jobs of its workers have come, at most once a second.

A job says it in shared memory, where that costs nothing. Here it is read, and what has changed is written, in
one statement for all workers. So no job waits for storage because it tells of itself.
"""

from __future__ import annotations

from datetime import timedelta

from qml_mp.core.job import ClaimKey
from qml_mp.core.progress import Progress
from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.loop import Loop
from qml_mp.supervisor.run import Run


class ProgressLoop(Loop):
    """Asks storage for nothing while no job says anything."""

    name = "progress"
    interval = timedelta(seconds=1)

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._written: dict[str, int] = {}
        """By worker, the version of what was written of it last."""

    def tick(self, storage: Storage) -> None:
        said: dict[ClaimKey, Progress] = {}
        versions: dict[str, int] = {}
        for worker in self._run.pool:
            cell = self._run.pool.slots.progress(worker.index)
            before = self._written.get(worker.worker_id, 0)
            version = cell.version
            found = cell.read() if version != before else None
            is_of_its_job = found is not None and found[0] == worker.last.key
            versions[worker.worker_id] = version if is_of_its_job else before
            said.update([found] if found is not None and is_of_its_job else [])
        storage.note_progress(said)
        self._written = versions
