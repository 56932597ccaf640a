"""Supervisor: how the boots of new workers went: whether one was ever ready, and why the newest failed."""

from __future__ import annotations

from qml_mp.errors import WorkerBootError
from qml_mp.events.emitter import Emitter
from qml_mp.events.facts import WorkersCannotBoot
from qml_mp.ipc.slot import Activity
from qml_mp.supervisor.part import in_short
from qml_mp.supervisor.workers.backoff import BootBackoff
from qml_mp.supervisor.workers.death import Death
from qml_mp.supervisor.workers.worker_process import WorkerProcess

_SILENT_DEATHS = 5  # in a row, of workers that have no error to show, until that is the error


class Boots:
    """Told of each worker that is ready or dies before. The first boot's error is the caller's to show; of
    later ones each is told once, not at each try."""

    def __init__(self, events: Emitter) -> None:
        self._events = events
        self.was_ever_ready = False
        self.error: str | None = None
        """Of the newest worker that could not boot; None again once one is ready."""
        self.backoff = BootBackoff()
        self._silent_deaths = 0

    def failure(self) -> WorkerBootError | None:
        """Why no worker has ever been ready; None: one was, or nothing speaks against it."""
        return None if self.was_ever_ready or self.error is None else WorkerBootError(self.error)

    def trouble(self) -> str | None:
        """Why workers cannot be replaced, on one line."""
        return in_short("New workers cannot boot", self.error) if self.error and self.was_ever_ready else None

    def succeeded(self) -> None:
        """A worker is ready."""
        self.was_ever_ready = True
        self.error = None
        self.backoff.succeeded()
        self._silent_deaths = 0

    def begin_anew(self) -> None:
        """New code is about to be tried: should the error be the same again, it is told again."""
        if self.was_ever_ready:
            self.error = None

    def failed(self, worker: WorkerProcess, death: Death, *, old_works_on: bool) -> bool:
        """The worker died before it was ready. With `old_works_on` it was to replace one that still works.
        Whether it counts as a failure to boot: not when somebody killed it for another reason."""
        gave_reason = worker.last.activity is Activity.CANNOT_BOOT
        if not gave_reason and death.killed_for is not None and not worker.is_too_slow:
            return False
        text = worker.last.text if gave_reason else f"It {death.how}."
        if old_works_on:
            self._note(text, old_ones_stay=True)
            return True
        if not gave_reason:
            self._silent_deaths += 1
            if self._silent_deaths < _SILENT_DEATHS:
                return True
            text = f"{_SILENT_DEATHS} workers in a row died while booting, without a reason. {text}"
        self._note(text, old_ones_stay=False)
        return True

    def _note(self, text: str, *, old_ones_stay: bool) -> None:
        if self.was_ever_ready and text != self.error:
            self._events.emit(WorkersCannotBoot(error=text, old_ones_stay=old_ones_stay))
        self.error = text
