"""Worker: what the supervisor wants, read from the pipe by whoever asks first.

Three readers share it on the main thread: the loop between jobs, a job that checks `ctx.cancel`, and the
SIGTERM handler. The fourth are other threads of a job that check `ctx.cancel`, while its attempt lasts. State
here is written by whoever reads, under one lock, so that nobody takes in a message before an earlier one.
An exception is raised in a job only on the main thread, only while user code runs, and only by the rules of
`_raise_if_due`.
"""

from __future__ import annotations

import signal
import threading
import time
from functools import partial
from types import FrameType

from qml_mp.child.prologue import ForksUnderWay, pass_over_sigint
from qml_mp.core.job import ClaimKey
from qml_mp.errors import JobInterrupted, JobTimeout
from qml_mp.ipc.pipe import Kind, Message, PipeReader
from qml_mp.processing.cancel import CancelReason, CancelToken

_ORPHAN_SECOND_SIGNAL_S = 0.5
_LONGEST_WAIT_S = 3600.0
_LOOK_EVERY_S = 0.002  # between short jobs, which would each cost a system call more
_LOOK_BESIDE_EVERY_S = 0.05  # of a thread that waits, at what the main thread may have read
_SIGNAL_WITHIN_S = 1.0  # of the INTERRUPT that it follows, on whatever machine
_MOST_EARLY_CANCELS = 128
_LOOPS = ("asyncio.", "uvloop.")
"""What has an event loop's handlers of signals."""
_TEXT = {
    CancelReason.CANCELLED: "cancelled from outside",
    CancelReason.TIMEOUT: "the time limit of the job has passed",
    CancelReason.SHUTDOWN: "the server is stopping",
    CancelReason.ORPHANED: "the supervisor is gone",
}


class _Attempt:
    """One claim, and whether its job was asked to end. What its token knows once it is over."""

    __slots__ = ("cancel", "is_over", "key")

    def __init__(self, key: ClaimKey | None) -> None:
        self.key = key
        self.cancel: CancelReason | None = None
        self.is_over = key is None


class _Woken(BaseException):
    """A signal has come in between jobs, where nobody waits for anything else."""


class Commands:
    """The worker's end of the pipe, and the guard around user code. Made by the main thread."""

    def __init__(self, reader: PipeReader) -> None:
        self._reader = reader
        self._lock = threading.RLock()
        """Held by whoever reads. A signal handler may come in between on the thread that has it."""
        self._main_thread = threading.get_ident()
        self._main_waits = False
        """The main thread waits for a message: nobody takes it away. Written by it, read by the others."""
        self._attempt = _Attempt(None)
        self._interrupt: CancelReason | None = None
        self._in_user_code = False
        self._reading = False
        self._has_to_read_again = False
        self._is_signalled = False
        """A SIGTERM came in mid-read, and is not heeded yet."""
        self._signal_until = 0.0
        """The SIGTERM that follows an INTERRUPT comes by then; 0: none is due."""
        self._is_between_jobs = False
        self._has_news = False
        """A signal was heeded since the last wait between jobs."""
        self._orphaned_at: float | None = None
        self._is_descendant = False
        self._looked_at = 0.0
        self._early_cancels: dict[ClaimKey, CancelReason] = {}
        """Of claims that this worker holds and has not begun, and of some that have ended."""
        self.forks = ForksUnderWay()
        self.leaving = False
        """Claim no other job, then exit. Written here, read by the loop."""
        self.paused = False
        self.doubted = False
        """There may be a claim that nobody here knows of. Written here, read by `Claims`."""

    def take_doubt(self) -> bool:
        """Whether `doubted` was set; it is not any more."""
        was_doubted, self.doubted = self.doubted, False
        return was_doubted

    @property
    def orphaned(self) -> bool:
        """The supervisor is gone."""
        return self._reader.eof

    def install(self) -> None:
        """Take SIGTERM. Without a message in the pipe it only means: finish this job, then leave."""
        before = signal.signal(signal.SIGTERM, self._on_sigterm)
        if (getattr(before, "__module__", None) or "").startswith(_LOOPS):
            # An event loop of the app would hear of each SIGTERM all the same, by its wake-up descriptor.
            signal.set_wakeup_fd(-1)

    def detach(self) -> None:
        """For a process that a job has forked: it no longer reads the worker's pipe, and SIGTERM and SIGINT
        do what they do in any Python program, unless the job has handlers of its own."""
        self._is_descendant = True
        self._interrupt = None  # it is the job's, which goes on in the worker
        self._lock = threading.RLock()  # a thread that is not here may have held the other one
        if signal.getsignal(signal.SIGTERM) == self._on_sigterm:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if signal.getsignal(signal.SIGINT) is pass_over_sigint:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def wait(self, timeout_s: float) -> None:
        """Between jobs: return when a message or a signal comes, the supervisor goes, or the time is over."""
        # Python goes on waiting after a signal, unless its handler raises.
        try:
            self._is_between_jobs = True
            if not self._has_news:
                self._reader.wait(timeout_s)
            self._is_between_jobs = False
        except _Woken:
            pass
        self._has_news = False
        self.look()

    def look_now_and_then(self) -> None:
        """`look`, unless that was a moment ago."""
        if time.monotonic() - self._looked_at >= _LOOK_EVERY_S:
            self.look()

    def look(self) -> bool:
        """Take in what has come, without waiting; whether there was anything. On the main thread."""
        was_any = False
        if self._reading:  # it was interrupted in mid-read, by the handler that calls this
            self._has_to_read_again = True
            return was_any
        while True:
            self._reading, self._has_to_read_again = True, False
            try:
                was_any = self._take_in() or was_any
            finally:
                self._reading = False
            if not self._has_to_read_again:
                break
        if self._is_signalled:
            self._heed_signal(told=was_any)
        return was_any

    def take_early_cancel(self, key: ClaimKey) -> str | None:
        """Why somebody has asked for the end of a job that has not begun; None: nobody has."""
        reason = self._early_cancels.pop(key, None) if self._early_cancels else None
        return None if reason is None else _TEXT[reason]

    def attend_to(self, key: ClaimKey) -> CancelToken:
        """Messages about this claim count from here on, until `attend_to_nothing`; others are dropped."""
        self._attempt, self._interrupt = _Attempt(key), None
        self.forks.forget()
        return CancelToken(partial(self._poll, self._attempt))

    def attend_to_nothing(self) -> None:
        """Messages about any claim are dropped, and the token of the last one stays as it is: whoever still
        has it reads nothing more."""
        with self._lock:
            self._attempt.is_over = True
            self._attempt, self._interrupt = _Attempt(None), None

    def user_code(self) -> Commands:
        """`with` it: the span in which an exception may be raised from the signal handler."""
        return self

    # Not a generator: an exception can arrive at any bytecode.
    def __enter__(self) -> None:
        self._in_user_code = True
        self._raise_if_due()

    def __exit__(self, *_: object) -> None:
        self._in_user_code = False

    def _poll(self, attempt: _Attempt, timeout_s: float | None) -> tuple[CancelReason, str] | None:
        if self._is_descendant:
            CancelToken.never().wait(timeout_s)
            return None
        if attempt.is_over:
            _wait_out(attempt, timeout_s)
        elif threading.get_ident() != self._main_thread:
            self._wait_beside(attempt, timeout_s)
        else:
            if attempt.cancel is None:
                if timeout_s is None or timeout_s > 0:
                    self._wait_for_cancel(attempt, timeout_s)
                else:
                    self.look()
            self._raise_if_due()
        return None if attempt.cancel is None else (attempt.cancel, _TEXT[attempt.cancel])

    def _wait_for_cancel(self, attempt: _Attempt, timeout_s: float | None) -> None:
        deadline = _deadline(timeout_s)
        waited = self._main_waits
        try:
            with self._lock:  # from here on nobody else reads; what others have read is seen below
                self._main_waits = True
            while attempt.cancel is None:
                remaining_s = deadline - time.monotonic()
                self._reader.wait(min(remaining_s, _LONGEST_WAIT_S))
                self.look()
                if remaining_s <= 0:
                    return
        finally:
            self._main_waits = waited

    def _wait_beside(self, attempt: _Attempt, timeout_s: float | None) -> None:
        """On another thread than the main one. That may be in a call that returns long after, so what has
        come is read here; it may also read what this one waits for, so this one looks now and then."""
        deadline = _deadline(timeout_s)
        while True:
            with self._lock:
                main_waits = self._main_waits
                if not main_waits and not attempt.is_over:
                    self._take_in()
            remaining_s = deadline - time.monotonic()
            if attempt.cancel is not None or attempt.is_over or remaining_s <= 0:
                return
            pause_s = min(remaining_s, _LOOK_BESIDE_EVERY_S)
            if main_waits:
                time.sleep(pause_s)
            else:
                self._reader.wait(pause_s)

    def _take_in(self) -> bool:
        with self._lock:
            messages = self._reader.read()
            for message in messages:
                self._handle(message)
            self._looked_at = time.monotonic()
            if self._reader.eof:
                self._orphaned_at = self._orphaned_at or self._looked_at
                self.leaving = True
                # At each look: the end may have been seen when no job, or the one before, was in hand.
                self._attempt.cancel = self._attempt.cancel or CancelReason.ORPHANED
        return bool(messages)

    def _on_sigterm(self, _signal: int, _frame: FrameType | None) -> None:
        if self._reading:  # the reader that was interrupted in mid-read goes on
            self._has_to_read_again = self._is_signalled = True
            return
        self._heed_signal(told=self.look())
        if self._is_between_jobs:
            self._is_between_jobs = False
            raise _Woken
        self._raise_if_due()

    def _heed_signal(self, *, told: bool) -> None:
        """`told`: a message came with it."""
        self._is_signalled, self._has_news = False, True
        is_due = time.monotonic() < self._signal_until
        self._signal_until = 0.0
        if not told and not is_due and not self.orphaned and self._interrupt is None:
            self.leaving = True  # from a service manager that signals the whole group
        if self._orphaned_at is not None and time.monotonic() - self._orphaned_at > _ORPHAN_SECOND_SIGNAL_S:
            self._interrupt = CancelReason.ORPHANED  # the guardian's second signal: grace is over

    def _handle(self, message: Message) -> None:
        attempt = self._attempt
        ours = message.key is not None and message.key == attempt.key
        if message.kind is Kind.INTERRUPT:
            self._signal_until = time.monotonic() + _SIGNAL_WITHIN_S
        match message.kind:
            case Kind.WAKE:
                self.paused = False
            case Kind.PAUSE:
                self.paused = True
            case Kind.LEAVE:
                self.leaving = True
            case Kind.DOUBT:
                self.doubted = True
            case Kind.PROBE:
                pass  # that it was read is all
            case Kind.CANCEL if ours:
                attempt.cancel = attempt.cancel or message.reason
            case Kind.INTERRUPT if ours:
                # The newest reason decides what comes of the job: it is the one that ends it.
                attempt.cancel = self._interrupt = message.reason
            case Kind.CANCEL if message.key is not None and message.reason is not None:
                self._early_cancels[message.key] = message.reason
                if len(self._early_cancels) > _MOST_EARLY_CANCELS:  # claims that have ended
                    del self._early_cancels[next(iter(self._early_cancels))]
            case Kind.CANCEL | Kind.INTERRUPT:
                pass  # about a claim that has ended

    def _raise_if_due(self) -> None:
        if self._interrupt is None or not self._in_user_code:
            return
        if self.forks.put_off_sigterm():
            return  # it stays due, and is raised when the handler is called again
        reason, self._interrupt = self._interrupt, None
        # Once per interrupt, and nothing more while it unwinds into the processor's hands.
        self._in_user_code = False
        raise JobTimeout(_TEXT[reason]) if reason is CancelReason.TIMEOUT else JobInterrupted(_TEXT[reason])


def _wait_out(attempt: _Attempt, timeout_s: float | None) -> None:
    """A thread that outlives its job is not told any more that it should end. A loop around short waits goes
    on as it was, at its pace."""
    if timeout_s is not None and attempt.cancel is None:
        time.sleep(max(timeout_s, 0))


def _deadline(timeout_s: float | None) -> float:
    return float("inf") if timeout_s is None else time.monotonic() + timeout_s
