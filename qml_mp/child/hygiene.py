"""Worker: what a job may have left behind in its process, put back before anything is written.

Reset: standard streams, process group, current directory, umask, environment, signal handlers, mask and
timers, faulthandler's too, time zone, and what is set for the process (`child/process_settings.py`). What
cannot be put back makes the worker leave, with the reason. Other descriptors are only checked: when one of
ours is not the file it was, nothing may be written through any of them.

To look at all of it takes some 70 system calls, half of what an empty job cost and 4 % of a job of a
millisecond. So after a job of less than ten milliseconds only what the next one would soonest be hurt by is
looked at, and the rest before storage is used: at the end of the batch, and before a job that may be long.
All of it is looked at after the first job of a method, after one that did not succeed, and after every job
once something was found that late.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _thread
import faulthandler
import os
import resource
import signal
import time
from collections.abc import Callable, Collection
from operator import is_
from typing import Any, NoReturn, ParamSpec

from qml_mp import host
from qml_mp.child.descriptors import PLENTY_OF_FDS, SPARE_FDS, Descriptors, descriptors_left
from qml_mp.child.exits import WorkerExit, end_copy
from qml_mp.child.folder import CurrentFolder
from qml_mp.child.process_settings import ProcessSettings
from qml_mp.child.streams import StandardStreams
from qml_mp.child.wake_up import LoopOfThread, WakeUpDescriptor, close_watcher_of
from qml_mp.core.outcome import AttemptKind, Cancelled, Failure, Outcome, Release, Retry, Success
from qml_mp.ipc.slot import SlotWriter
from qml_mp.ipc.stack import write_stacks_to
from qml_mp.storage.store import Storage

_P = ParamSpec("_P")
_Handler = Any  # what signal.getsignal returns: a callable, a number or None
_SIGNALS = tuple(sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}))
# As the interpreter has them: what `signal` makes an enum of, for 62 signals after every job, takes 50 µs.
_handler_of: Callable[[int], _Handler] = _signal.getsignal
_set_mask: Callable[[int, tuple[int, ...]], set[int]] = _signal.pthread_sigmask
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_NO_TIMER = (0.0, 0.0)
_SHORT_NS = 10_000_000


class Hygiene:
    """Made when the worker is ready; asked before and after each job."""

    def __init__(
        self,
        storage: Storage,
        *,
        slot: SlotWriter,
        pipe_fds: Collection[int],
        stack_fd: int,
        streams: StandardStreams,
        folder: CurrentFolder,
        max_memory_hard: int | None = None,
    ) -> None:
        """`pipe_fds` and `stack_fd` are the worker's ends: nobody but a job closes those. `max_memory_hard`:
        the resident bytes with which no other job may begin."""
        self._storage = storage
        self._slot = slot
        self.own_fds = streams.spares | folder.fds
        """Descriptors that were made for this. Nobody but a job closes them."""
        self._descriptors = Descriptors(storage, vital=self.own_fds | {*pipe_fds, stack_fd})
        self._stack_fd = stack_fd
        self._streams = streams
        self._folder = folder
        self._max_memory_hard = max_memory_hard
        self._threads = 0
        """Of Python, before the job."""
        # Where nobody knows whether the process that forked this one had other threads, one may have ordered
        # a dump, and to call that off here would wait for the thread for ever.
        self._dumps_are_its_own = host.thread_count() is not None
        self._pid = os.getpid()
        # What the process looked like when the worker was ready.
        self._umask = _umask()
        self._environment = dict(os.environ)
        self._environ, self._raw_environment = os.environ, dict(_raw_environment())
        self._handlers = {number: _handler_of(number) for number in _SIGNALS}
        self._wake_up = WakeUpDescriptor()
        self._loop = LoopOfThread()
        self._settings = ProcessSettings()
        self._time_zone = time.tzname
        self._who = "The job"
        self._began_ns = 0
        self._is_behind = False
        """Whether a job has run after which not everything was looked at."""
        self._known: set[str] | None = set()
        """The methods after whose jobs that may be; None: none any more."""
        self._is_copy = False
        os.register_at_fork(after_in_child=self._note_copy)
        self.spoiled: str | None = None
        """Why no other job may run in this process. Written here, read by the loop."""

    def before_job(self) -> None:
        """Note which file each descriptor is that is ours; those of the app and its jobs are theirs."""
        if not self._is_behind:
            self._descriptors.note()
        self._who = "The job"
        self._threads = _thread._count()
        self._began_ns = time.monotonic_ns()

    def after_job(self, method: str, outcome: Outcome) -> None:
        """Put back what the next job must not find. Does not return in a copy of the worker, which the job
        has forked, nor in a worker that must leave at once."""
        self._end_if_copy(outcome)
        self._look_after(method, is_well=isinstance(outcome, Success))
        if self.spoiled is None and _was_ended(outcome):
            left = self._left_running()
            self.spoiled = left and f"a job that was ended has left {left}"

    def _left_running(self) -> str | None:
        """What goes on with the work of a job that was ended, soon beside its next attempt. Threads end with
        the worker, and the supervisor kills its group."""
        if host.shares_its_group(self._pid) is not False:
            return "processes"
        return "threads" if _thread._count() > self._threads else None

    def guarding(
        self, hook: Callable[_P, None] | None, *, name: str, before_storage: bool = False
    ) -> Callable[_P, None] | None:
        """The same for a function of the app that is told of jobs. `before_storage`: storage is used next."""
        if hook is None:
            return None

        def guarded(*args: _P.args, **kwargs: _P.kwargs) -> None:
            self.before_job()
            self._who = f"The hook {name}"
            try:
                hook(*args, **kwargs)
            finally:
                self._end_if_copy(None)
                self._look_after(name, is_well=True)
                if before_storage:
                    self.before_storage()

        return guarded

    def _end_if_copy(self, outcome: Outcome | None) -> None:
        if self._is_copy or os.getpid() != self._pid:
            end_copy(outcome)

    def _look_after(self, name: str, *, is_well: bool) -> None:
        if self._max_memory_hard is not None and self._has_left_more_than(self._max_memory_hard):
            # The supervisor looks now and then, and would take it for what the next job uses.
            self.spoiled = "a job or a hook has left more memory in use than max_memory_hard"
        is_short = time.monotonic_ns() - self._began_ns < _SHORT_NS
        may_wait = self._known is not None and name in self._known and is_well
        if may_wait and is_short and self._looks_unchanged():
            self._is_behind = True
            return
        self._put_back()
        if self._known is not None:
            self._known.add(name)

    def before_storage(self) -> None:
        """To be called before storage is used after jobs: catch up on what was not looked at."""
        if self._is_behind:
            self._put_back()

    def check_transaction(self, *, before_exit: Callable[[], None]) -> None:
        """When writing fails: does not return if a job has left a transaction open that keeps all from it,
        or has taken from this process the right to write, or the files."""
        if self._storage.is_locked_by_this_process():
            before_exit()
            self._leave("A job has left a transaction open, in which nobody else can write.")
        if not self._settings.has_its_ids():
            self._leave("A job has made the process another user's, who cannot write to storage.")
        if not self._settings.has_its_root():
            self._leave("A job has changed the root directory, below which storage is not found.")

    def _put_back(self) -> None:
        """Look at everything."""
        self._check_descriptors()
        was_behind, self._is_behind = self._is_behind, False
        try:
            rest_is_unchanged = self._rest_is_unchanged()
            if was_behind and not rest_is_unchanged:
                self._known = None
            if not (rest_is_unchanged and self._looks_unchanged()):
                self._restore()
            # Nothing above sees handlers that are not Python's, as C code has put them in the place of ours.
            signal.signal(signal.SIGTERM, self._handlers[signal.SIGTERM])
            write_stacks_to(self._stack_fd)
        except Exception as error:  # what is called here, a job may have replaced by code of its own
            self.spoiled = f"a job changed its surroundings and they cannot be put back: {error}"
            return
        limit, free = descriptors_left()
        if free < PLENTY_OF_FDS:
            self._known = None
        if free < SPARE_FDS:
            self.spoiled = f"jobs have left nearly all of its {limit} descriptors open"

    def _note_copy(self) -> None:
        self._is_copy = True

    def _looks_unchanged(self) -> bool:
        """Whether nothing is changed of what can be told without a system call, or is worth one.

        A descriptor that was closed is found here. One that is another file now is found before a byte is
        written through it.
        """
        try:
            self._call_off_dumps()
            self._loop.put_back()
            return (
                all(map(is_, map(_handler_of, _SIGNALS), self._handlers.values()))
                and faulthandler.is_enabled()
                and self._environment_is_unchanged()
                and self._settings.look_unchanged()
                and time.tzname == self._time_zone
                and self._streams.look_unchanged()
                and self._wake_up.put_back()
                and _signal.setitimer(signal.ITIMER_REAL, 0) == _NO_TIMER
                and not _set_mask(signal.SIG_SETMASK, ())
                and os.umask(self._umask) == self._umask
                and os.getpgrp() == self._pid
                and self._folder.is_current()
                and not self._descriptors.one_is_closed()
            )
        except Exception:  # a job may have taken away what is looked at
            return False

    def _has_left_more_than(self, size: int) -> bool:
        try:
            peak_kib = resource.getrusage(
                resource.RUSAGE_SELF
            ).ru_maxrss  # told ten times as soon as what is now
            return peak_kib * 1024 > size and (host.rss_bytes(self._pid) or 0) > size
        except Exception:  # what is called here, a job may have replaced
            return False

    def _call_off_dumps(self) -> None:
        """Those that a job has ordered of faulthandler, which does not tell whether there are any: one with
        exit=True would kill the next job."""
        if self._dumps_are_its_own:
            faulthandler.cancel_dump_traceback_later()

    def _environment_is_unchanged(self) -> bool:
        return os.environ is self._environ and _raw_environment() == self._raw_environment

    def _rest_is_unchanged(self) -> bool:
        return (
            self._streams.are_unchanged()
            and all(_signal.setitimer(timer, 0) == _NO_TIMER for timer in _TIMERS)
            and self._settings.are_unchanged()
        )

    def _check_descriptors(self) -> None:
        if self._descriptors.are_lost():
            who = f"{self._who} or a job right before it" if self._is_behind else self._who
            self._leave(f"{who} closed or replaced descriptors of the worker.")

    def _leave(self, why: str) -> NoReturn:
        """At once, which ends any transaction. What is not written yet the supervisor can write."""
        self._slot.say(why)
        os._exit(WorkerExit.BROKEN)

    def _restore(self) -> None:
        try:
            self._settings.put_back()  # first: another user may not do all of the rest
        finally:
            self._restore_rest()

    def _restore_rest(self) -> None:
        self._streams.put_back()
        if os.getpgrp() != os.getpid():
            os.setpgid(0, 0)  # or what the next job starts could not be found by the group
        if not self._folder.is_current():
            self._folder.go_back()
        os.umask(self._umask)
        if not self._environment_is_unchanged():
            os.environ = self._environ  # noqa: B003  # a job may have put another in its place
            os.environ.clear()
            os.environ.update(self._environment)
        time.tzset()  # by the environment
        for timer in _TIMERS:
            signal.setitimer(timer, 0)  # before its handler goes, or it would kill the next job
        self._call_off_dumps()
        self._loop.put_back()
        self._wake_up.put_back()
        for number, handler in self._handlers.items():
            if handler is not None and _handler_of(number) is not handler:
                close_watcher_of(_handler_of(number))
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _was_ended(outcome: Outcome) -> bool:
    """Whether the job was ended from outside, and may not have cleaned up."""
    match outcome:
        case Cancelled() | Release():
            return True
        case Retry(kind=kind) | Failure(kind=kind):
            return kind is AttemptKind.TIMEOUT
        case _:
            return False


def _umask() -> int:
    now = os.umask(0o022)
    os.umask(now)
    return now


def _raw_environment() -> dict[Any, Any]:
    """Everything in `os.environ`, to be compared. As it is kept there: to decode it all takes 10 µs."""
    return vars(os.environ).get("_data") or dict(os.environ)
