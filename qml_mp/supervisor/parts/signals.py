"""Supervisor: signals become bytes in a pipe, handled later in the loop, never in the handler."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import threading
import time
from types import FrameType, TracebackType

from qml_mp.core.answers import StacksAnswer, WorkerStack
from qml_mp.ipc.pipe import open_pipe
from qml_mp.supervisor.part import Part
from qml_mp.supervisor.parts.reload import Reload
from qml_mp.supervisor.run import Run
from qml_mp.supervisor.workers.worker_process import WorkerProcess

logger = logging.getLogger(__name__)

HANDLED = (
    signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU,
    signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD,
)  # fmt: skip
_STOPS = (signal.SIGTERM, signal.SIGINT)
_ONE_WISH_S = 0.5
"""Of these, what comes so soon after the first was taken is one with it: a terminal signals its whole group,
and a wrapper passes on what it got. A handler may run late, where a process waits for a processor."""
_TERMINAL = "/dev/tty"
_LOOK_FOR_TERMINAL_EVERY_S = 5.0
_DOUBT_S = 10.0
_LOOK_FOR_STACKS_EVERY_S = 0.1
_TOLD_FOR_S = 30.0  # in the registry, where every server reads it at each heartbeat
_WRITING_A_STACK_S = 5.0  # at most, from the first look: on a busy machine processors are waited for


class SignalInbox:
    """`with`: the supervisor's signals are queued here; afterwards the handlers are as they were.

    SIGPIPE, which says no more than the error of the write, is ignored meanwhile, where a host has it end its
    process: the pipe of a worker that has died a moment ago must not do that.

    With `ends_process` nothing comes afterwards: what is signalled then is ignored, so that the
    last of many signals does not end the process with another status than its own.
    In a thread that is not the main one (or where handlers cannot be set) nothing is installed.
    """

    def __init__(self, *, ends_process: bool = False) -> None:
        self._ends_process = ends_process
        self._reading, self._writing = -1, -1
        self._before: dict[int, object] = {}
        self._has_stop = False
        """The first has come. Written by the signal handler, read by the loop."""
        self._stop_taken_at: float | None = None
        """When the loop took it. Written by the loop, read by the signal handler."""

    def __enter__(self) -> SignalInbox:
        self._reading, self._writing = open_pipe()
        if threading.current_thread() is threading.main_thread():
            for number in HANDLED:
                self._before[number] = signal.signal(number, self._put)
            if signal.getsignal(signal.SIGPIPE) is signal.SIG_DFL:
                self._before[signal.SIGPIPE] = signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for number, handler in self._before.items():
            if self._ends_process and number != signal.SIGCHLD:
                signal.signal(number, signal.SIG_IGN)
                continue
            # None: a handler that was not set from Python, which cannot be set back.
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)  # type: ignore[arg-type]
        os.close(self._reading)
        os.close(self._writing)

    @property
    def fds(self) -> tuple[int, int]:
        """Both ends; the first is readable when a signal has come."""
        return self._reading, self._writing

    def take(self) -> list[signal.Signals]:
        """The signals since the last call, in order."""
        had_stop = self._has_stop  # one that comes during the read may not be among what is read
        try:
            taken = [signal.Signals(number) for number in os.read(self._reading, 4096)]
        except BlockingIOError:
            return []
        if had_stop and self._stop_taken_at is None:
            self._stop_taken_at = time.monotonic()
        return taken

    def _put(self, number: int, _frame: FrameType | None) -> None:
        if number in _STOPS:
            taken_at = self._stop_taken_at
            if self._has_stop and (taken_at is None or time.monotonic() - taken_at < _ONE_WISH_S):
                return
            self._has_stop = True
        with contextlib.suppress(BlockingIOError):  # 64 KiB of unhandled signals: one more says nothing new
            os.write(self._writing, bytes([number]))


class StackDump(Part):
    """SIGUSR1: has every worker write its Python stack, and prints them once all are whole. At most one dump
    is under way."""

    def __init__(self, run: Run) -> None:
        self._pool = run.pool
        self._clock = run.clock
        self._registration = run.registration
        self._asked_at = 0.0
        self._look_at = self._give_up_at = self._forget_at = float("inf")
        self._seen: list[str | None] = []

    def ask(self) -> None:
        for worker in self._pool:
            if worker.is_ready:
                worker.ask_for_stack()
        now = self._asked_at = self._clock.monotonic()
        self._look_at, self._give_up_at = now + _LOOK_FOR_STACKS_EVERY_S, float("inf")

    def next_at(self) -> float:
        return min(self._look_at, self._forget_at)

    def turn(self) -> None:
        now = self._clock.monotonic()
        if now >= self._forget_at:
            self._forget_at = float("inf")
            self._registration.answer_stacks(None)
        if now < self._look_at:
            return
        before, self._seen = self._seen, [worker.stack() for worker in self._pool if worker.is_ready]
        self._give_up_at = min(self._give_up_at, now + _WRITING_A_STACK_S)
        # A stack is written line by line, so it is whole when two looks find the same.
        if now < self._give_up_at and (None in self._seen or self._seen != before):
            self._look_at = now + _LOOK_FOR_STACKS_EVERY_S
            return
        self._look_at, self._forget_at = float("inf"), now + _TOLD_FOR_S
        stacks = tuple(map(_stack_of, self._pool))
        for worker in self._pool:
            worker.forget_stack()
        self._registration.answer_stacks(StacksAnswer(began_at=self._asked_at, workers=stacks))
        for each in stacks:
            logger.info(
                "Worker %s (pid %s, %s):\n%s", each.number, each.pid, each.method or "idle", each.in_words
            )


def _stack_of(worker: WorkerProcess) -> WorkerStack:
    return WorkerStack(
        number=worker.number,
        pid=worker.child.pid,
        method=worker.last.method if worker.is_busy else None,
        stack=worker.stack(),
    )


class SignalHandling(Part):
    """What each signal asks for. Made before the inbox is opened, as `Terminal` has to be."""

    def __init__(self, run: Run, *, inbox: SignalInbox, reload: Reload, stacks: StackDump) -> None:
        self._run = run
        self._inbox = inbox
        self._reload = reload
        self._stacks = stacks
        self._terminal = Terminal()
        self._was_told_to_stop = False
        """By a signal. The stop may have begun without one, and that leaves the jobs their time."""

    def fds(self) -> tuple[int, ...]:
        return self._inbox.fds[:1]

    def own_fds(self) -> tuple[int, ...]:
        return self._inbox.fds

    def turn(self) -> None:
        for number in self._inbox.take():
            self._handle(number)
        self._terminal.look(self._run.clock.monotonic())
        if self._terminal.is_gone and not self._run.stop.has_begun:
            self._run.stop.begin(now=False, why="its terminal is gone")

    def _handle(self, number: signal.Signals) -> None:
        match number:
            case signal.SIGTERM | signal.SIGINT:
                self._run.stop.begin(now=self._was_told_to_stop, why=number.name)
                self._was_told_to_stop = True
            case signal.SIGQUIT:
                self._run.stop.begin(now=True, why=number.name)
            case signal.SIGHUP:
                self._terminal.suspect(self._run.clock.monotonic())
                self._reload.begin()
            case signal.SIGTTIN:
                self._run.pool.resize(self._run.pool.size + 1)
            case signal.SIGTTOU:
                self._run.pool.resize(self._run.pool.size - 1)
            case signal.SIGUSR1:
                self._stacks.ask()
            case signal.SIGUSR2:
                self._run.pause_claims(not self._run.pool.paused)
            case _:
                pass  # SIGCHLD: it woke us, and dead workers are looked for at every turn


class Terminal:
    """The terminal that the server was started from, if it has one and should end with it: it tells a hangup
    from a SIGHUP that asks for new workers.

    Made before handlers are set: a server whose SIGHUP was ignored then (as by `nohup`) was meant
    to outlive its terminal.
    """

    def __init__(self) -> None:
        self._is_bound_to_it = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and _has_terminal()
        self._doubted_until: float | None = None
        """When the hangup that a SIGHUP may have been would have taken it; None: there is no doubt."""
        self._look_at = 0.0
        self._was_there = True

    def look(self, now: float) -> None:
        """Whether it has gone without a SIGHUP, as a shell may leave its background jobs behind: then the
        server has outlived it. Seen twice, as a shell passes a hangup on after the terminal went."""
        if not self._is_bound_to_it:
            return
        if self._doubted_until is not None:
            if now >= self._doubted_until and _has_terminal():  # however late this look comes
                self._doubted_until = None
            return
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_FOR_TERMINAL_EVERY_S
        was_there, self._was_there = self._was_there, _has_terminal()
        if not was_there and not self._was_there:
            self._is_bound_to_it = False
            logger.info("The terminal is gone without a hangup: the server works on, and SIGHUP is a reload")

    def suspect(self, now: float) -> None:
        """A SIGHUP came: it may be gone in a moment, as the kernel sends that before it takes it away. One
        that is still there then was asked for new workers, and may go later without a hangup."""
        self._doubted_until = now + _DOUBT_S

    @property
    def is_gone(self) -> bool:
        """Whether the server had a terminal, and has lost it by a hangup."""
        return self._is_bound_to_it and self._doubted_until is not None and not _has_terminal()


def _has_terminal() -> bool:
    try:
        os.close(os.open(_TERMINAL, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno in (errno.EMFILE, errno.ENFILE)  # nothing is known then
    return True
