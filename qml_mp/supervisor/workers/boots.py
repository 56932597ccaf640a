"""Supervisor: how the boots of new workers went: whether one was ever ready, why the newest failed, and how
fast others may follow."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from qml_mp.child.memory import lowest_limit
from qml_mp.errors import ConfigurationError, WorkerBootError
from qml_mp.events.emitter import Emitter
from qml_mp.events.facts import WorkersCannotBoot
from qml_mp.ipc.slot import Activity
from qml_mp.settings import ServerConfig
from qml_mp.supervisor.part import in_short
from qml_mp.supervisor.workers.death import Death
from qml_mp.supervisor.workers.worker_process import WorkerProcess
from qml_mp.units import doubled

logger = logging.getLogger(__name__)

_SILENT_DEATHS = 5  # in a row, of workers that have no error to show, until that is the error
_BARRED_TRIES = 5  # in a row, until what bars them is taken to last
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 4.5  # so that a fixed app is noticed within five seconds


class Boots:
    """Told of each worker that is ready or dies before. The first boot's error is the caller's to show; of
    later ones each is told once, not at each try.

    After a worker that died without having been of use, one worker at a time is tried, after a pause that
    doubles; the first one that is ready ends it. Where the one before has died soon after that, it has to be
    of use first: to have had a job, or to have lived on.
    """

    def __init__(self, events: Emitter) -> None:
        self._events = events
        self.was_ever_ready = False
        """Or none was wanted for a while."""
        self._may_lack_all = False
        """The server has worked without workers, and does so again where none can follow."""
        self.error: str | None = None
        """Of the newest worker that could not boot; None again once one is ready, or none is wanted."""
        self.useless = 0
        """Workers in a row that died before they were ready, or idle soon after."""
        self.is_over = False
        """The server stops: no other worker follows."""
        self._is_of_memory = False
        """What `error` says is that a limit of memory is too low."""
        self._is_anew = True
        """No worker of the newest code was ready yet."""
        self._of_code_before = set[str]()
        """Ids of workers that were on their way when newer code came to be tried: they tell nothing of it."""
        self._not_before = 0.0
        self._died_ready_at: float | None = None
        """When the last of the useless ones died, if it had been ready."""
        self._silent_deaths = 0
        self._bars = 0
        """The tries in a row, up to the last, that threads have barred."""

    def failure(self) -> WorkerBootError | ConfigurationError | None:
        """Why no worker has ever been ready; None: one was, or nothing speaks against it."""
        if self.was_ever_ready or self.error is None:
            return None
        return ConfigurationError(self.error) if self._is_of_memory else WorkerBootError(self.error)

    def trouble(self) -> str | None:
        """Why workers cannot be replaced, on one line."""
        if self.error and self.was_ever_ready:
            return in_short("New workers cannot boot", self.error)
        if self.useless >= _SILENT_DEATHS and self._died_ready_at is not None:
            return "Workers die soon after they are ready, without a job; the log says how"
        return None

    def succeeded(self, worker_id: str = "") -> None:
        self.was_ever_ready = True
        if self._died_ready_at is None:
            self.useless = 0
        self._silent_deaths = self._bars = 0
        if not self._was_of_code_before(worker_id):
            self._is_anew = False
            self.error = None

    def was_of_use(self, *, ready_at: float) -> None:
        """A worker that is ready since then has had a job, or has not died soon after."""
        if self._died_ready_at is not None and ready_at > self._died_ready_at:
            self.end_row()

    def end_row(self) -> None:
        """Nobody misses the useless ones any more."""
        self.useless, self._died_ready_at = 0, None

    def begin_anew(self, booting: Iterable[str] = ()) -> None:
        """New code is about to be tried: should the error be the same again, it is told again. `booting` are
        the ids of workers that have read the code before."""
        self._of_code_before.update(booting)
        self._is_anew = True
        if self.was_ever_ready:
            self.error = None

    def none_is_wanted(self) -> None:
        """The server works without workers."""
        self.was_ever_ready = self._may_lack_all = True
        self.error = None

    def memory_limit(self, config: ServerConfig) -> int | None:
        """Bytes that a worker which is forked now must not use before its first job, or it does not boot. Of
        code that has booted before, one above the soft limit works, one job at a time; above the hard one
        every job would be killed and charged."""
        return lowest_limit(config) if self._is_anew else config.max_memory_hard

    def failed(self, worker: WorkerProcess, death: Death, *, old_works_on: bool) -> bool:
        """The worker died before it was ready. With `old_works_on` it was to replace one that still works.
        Whether it counts as a failure to boot: not when somebody killed it for another reason, or when newer
        code is tried by now."""
        if self._was_of_code_before(worker.worker_id):
            return False
        gave_reason = worker.last.activity is Activity.CANNOT_BOOT
        if not gave_reason and death.killed_for is not None and not worker.is_too_slow:
            return False
        text = worker.last.text if gave_reason else _how_it_ended(worker, death)
        is_of_memory = gave_reason and worker.last.used_up
        if old_works_on:
            self._note(text, old_ones_stay=True, is_of_memory=is_of_memory)
            return True
        if not gave_reason:
            self._silent_deaths += 1
            if self._silent_deaths < _SILENT_DEATHS:
                return True
            reason = "" if worker.is_too_slow else ", without a reason"
            text = f"{_SILENT_DEATHS} workers in a row died while booting{reason}. {text}"
        self._note(text, old_ones_stay=False, is_of_memory=is_of_memory)
        return True

    def was_useless(self, now: float, *, was_ready: bool = False, bars: int = 0) -> None:
        """A worker died before it was ready, or idle soon after; or it could not be forked."""
        self._died_ready_at = now if was_ready else None
        self._bars = bars
        self._not_before = now + doubled(_FIRST_PAUSE_S, self.useless, longest=_LONGEST_PAUSE_S)
        self.useless += 1

    def was_refused(self, error: OSError, *, number: int, now: float) -> None:
        """The system did not fork a worker, or not make what it needs."""
        self.was_useless(now)
        logger.error("Cannot fork worker %s: %s; will try again", number, error)

    def was_barred(self, error: str, now: float) -> bool:
        """A worker could not be forked because of threads of this process. Whether a server without workers
        has to end of that: such a thread may end again, unless it was there before the first worker."""
        self.was_useless(now, bars=self._bars + 1)
        if self.was_ever_ready and self._bars < _BARRED_TRIES:
            return False
        self._note(self.error or error, old_ones_stay=False)  # once, whatever threads are named now
        return not self._may_lack_all

    def allow_another(self, now: float, *, booting: int) -> bool:
        """Whether one more may be forked now, while `booting` are on their way."""
        return self.useless == 0 or (booting == 0 and now >= self._not_before)

    def next_at(self) -> float:
        """When the next try may be, after a failure."""
        return self._not_before if self.useless and not self.is_over else float("inf")

    def _was_of_code_before(self, worker_id: str) -> bool:
        """Asked once, at the end of its boot."""
        was = worker_id in self._of_code_before
        self._of_code_before.discard(worker_id)
        return was

    def _note(self, text: str, *, old_ones_stay: bool, is_of_memory: bool = False) -> None:
        if self.was_ever_ready and text != self.error:
            self._events.emit(WorkersCannotBoot(error=text, old_ones_stay=old_ones_stay))
        self.error = text
        self._is_of_memory = is_of_memory


def _how_it_ended(worker: WorkerProcess, death: Death) -> str:
    """Of one that gave no reason itself: a kill of ours has one."""
    if worker.is_too_slow:
        return "It was not ready in time (boot_timeout) and was killed."
    return f"It {death.how}."
