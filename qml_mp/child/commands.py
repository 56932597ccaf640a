"""Worker: what the supervisor wants, read from the pipe by whoever asks first.

Three readers share it, all on the main thread: the loop between jobs, a job that checks
`ctx.cancel`, and the SIGTERM handler. State here is written by `look` and read by all three.
An exception is raised in a job only while user code runs and only by the rules of `_raise_if_due`.
"""

from __future__ import annotations

import signal
import time
from types import FrameType

from qml_mp.core.job import ClaimKey
from qml_mp.errors import JobInterrupted, JobTimeout
from qml_mp.ipc.pipe import Kind, Message, PipeReader
from qml_mp.processing.cancel import CancelReason, CancelToken

_ORPHAN_SECOND_SIGNAL_S = 0.5
_LONGEST_WAIT_S = 3600.0
_LOOK_EVERY_S = 0.002  # between short jobs, which would each cost a system call more
_MOST_EARLY_CANCELS = 128
_TEXT = {
    CancelReason.CANCELLED: "cancelled from outside",
    CancelReason.TIMEOUT: "the time limit of the job has passed",
    CancelReason.SHUTDOWN: "the server is stopping",
    CancelReason.ORPHANED: "the supervisor is gone",
}


class Commands:
    """The worker's end of the pipe, and the guard around user code."""

    def __init__(self, reader: PipeReader) -> None:
        self._reader = reader
        self._key: ClaimKey | None = None
        self._cancel: CancelReason | None = None
        self._interrupt: CancelReason | None = None
        self._in_user_code = False
        self._reading = False
        self._signalled = False
        self._orphaned_at: float | None = None
        self._is_descendant = False
        self._looked_at = 0.0
        self._early_cancels: dict[ClaimKey, CancelReason] = {}
        """Of claims that this worker holds and has not begun, and of some that have ended."""
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
        signal.signal(signal.SIGTERM, self._on_sigterm)

    def detach(self) -> None:
        """For a process that a job has forked: it no longer reads the worker's pipe, and SIGTERM ends it,
        unless the job has a handler of its own."""
        self._is_descendant = True
        if signal.getsignal(signal.SIGTERM) == self._on_sigterm:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def wait(self, timeout_s: float) -> None:
        """Between jobs: return when a message came, the supervisor is gone, or the time is over."""
        self._reader.wait(timeout_s)
        self.look()

    def look_now_and_then(self) -> None:
        """`look`, unless that was a moment ago."""
        if time.monotonic() - self._looked_at >= _LOOK_EVERY_S:
            self.look()

    def look(self) -> bool:
        """Take in what has come, without waiting; whether there was anything."""
        was_any = False
        while True:
            self._reading, self._signalled = True, False
            messages = self._reader.read()
            for message in messages:
                self._handle(message)
            was_any = was_any or bool(messages)
            self._reading = False
            if not self._signalled:
                break
        self._looked_at = time.monotonic()
        if self._reader.eof and self._orphaned_at is None:
            self._orphaned_at = self._looked_at
            self.leaving = True
            self._cancel = self._cancel or CancelReason.ORPHANED
        return was_any

    def take_early_cancel(self, key: ClaimKey) -> str | None:
        """Why somebody has asked for the end of a job that has not begun; None: nobody has."""
        reason = self._early_cancels.pop(key, None) if self._early_cancels else None
        return None if reason is None else _TEXT[reason]

    def attend_to(self, key: ClaimKey) -> CancelToken:
        """Messages about this claim count from here on, until `attend_to_nothing`; others are dropped."""
        self._key, self._cancel, self._interrupt = key, None, None
        return CancelToken(self._poll)

    def attend_to_nothing(self) -> None:
        """Messages about any claim are dropped."""
        self._key = None

    def user_code(self) -> Commands:
        """`with` it: the span in which an exception may be raised from the signal handler."""
        return self

    # Not a generator: an exception can arrive at any bytecode.
    def __enter__(self) -> None:
        self._in_user_code = True
        self._raise_if_due()

    def __exit__(self, *_: object) -> None:
        self._in_user_code = False

    def _poll(self, timeout_s: float | None) -> tuple[CancelReason, str] | None:
        if self._is_descendant:
            CancelToken.never().wait(timeout_s)
            return None
        if self._cancel is None:
            if timeout_s is None or timeout_s > 0:
                self._wait_for_cancel(timeout_s)
            else:
                self.look()
        self._raise_if_due()
        return None if self._cancel is None else (self._cancel, _TEXT[self._cancel])

    def _wait_for_cancel(self, timeout_s: float | None) -> None:
        deadline = float("inf") if timeout_s is None else time.monotonic() + timeout_s
        while self._cancel is None:
            remaining_s = deadline - time.monotonic()
            self._reader.wait(min(remaining_s, _LONGEST_WAIT_S))
            self.look()
            if remaining_s <= 0:
                return

    def _on_sigterm(self, _signal: int, _frame: FrameType | None) -> None:
        if self._reading:
            self._signalled = True  # the reader that was interrupted in mid-read looks again
            return
        told = self.look()
        if not told and not self.orphaned and self._interrupt is None:
            self.leaving = True  # from a service manager that signals the whole group
        if self._orphaned_at is not None and time.monotonic() - self._orphaned_at > _ORPHAN_SECOND_SIGNAL_S:
            self._interrupt = CancelReason.ORPHANED  # the guardian's second signal: grace is over
        self._raise_if_due()

    def _handle(self, message: Message) -> None:
        ours = message.key is not None and message.key == self._key
        match message.kind:
            case Kind.WAKE:
                self.paused = False
            case Kind.PAUSE:
                self.paused = True
            case Kind.LEAVE:
                self.leaving = True
            case Kind.DOUBT:
                self.doubted = True
            case Kind.CANCEL if ours:
                self._cancel = self._cancel or message.reason
            case Kind.INTERRUPT if ours:
                # The newest reason decides what comes of the job: it is the one that ends it.
                self._cancel = self._interrupt = message.reason
            case Kind.CANCEL if message.key is not None and message.reason is not None:
                self._early_cancels[message.key] = message.reason
                if len(self._early_cancels) > _MOST_EARLY_CANCELS:  # claims that have ended
                    del self._early_cancels[next(iter(self._early_cancels))]
            case Kind.CANCEL | Kind.INTERRUPT:
                pass  # about a claim that has ended

    def _raise_if_due(self) -> None:
        if self._interrupt is None or not self._in_user_code:
            return
        reason, self._interrupt = self._interrupt, None
        # Once per interrupt, and nothing more while it unwinds into the processor's hands.
        self._in_user_code = False
        raise JobTimeout(_TEXT[reason]) if reason is CancelReason.TIMEOUT else JobInterrupted(_TEXT[reason])
