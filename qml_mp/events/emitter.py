"""Every process: the one place from which its facts go to whoever is told of them."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType

from qml_mp.events.facts import Event
from qml_mp.events.log import WITHOUT_A_LINE, log_event

Subscriber = Callable[[Event], None]
"""Is told of each fact once, in the order in which they happen, by the one thread of its process and before
that goes on: a worker between two jobs, a supervisor between two steps of its loop.

So it must not wait: it keeps what it is told in memory, or writes it to a descriptor that does not block.
Whoever has to wait (for a network, say) reads the other end of such a pipe, in a process of its own. It must
not use the storage, fork or emit. What it raises is logged once, and the others are told all the same. A call
that takes long is broken off by an exception, and who has held up its process for half a second in all is
told nothing any more. (C code that never returns is beyond help in a process with one thread.)"""

logger = logging.getLogger(__name__)

_MOMENT_S = 0.01
_LONGEST_CALL_S = 0.05  # the supervisor answers within 100 ms whatever happens
_PATIENCE_S = 0.5
_FORGIVEN = 0.01  # of the time that passes: a busy machine makes anybody slow now and then


class Emitter:
    """That of one process, made after the fork."""

    def __init__(self, log: Subscriber, *others: Subscriber, unlogged: Collection[type[Event]] = ()) -> None:
        """The log comes first, and is never given up: how its handlers write is the program's own choice, and
        a line of it that is lost helps nobody. It does nothing about the facts that are `unlogged`."""
        self._untold = () if others else unlogged
        told = [_Told(other, patience_s=_PATIENCE_S) for other in others]
        self._told = [_Told(log, patience_s=float("inf")), *told]

    def is_told_of(self, kind: type[Event]) -> bool:
        """Whether anybody listens to such facts. False: who would make one for every job need not."""
        return kind not in self._untold

    def emit(self, event: Event) -> None:
        """Tell everybody. Raises nothing."""
        for one in self._told:
            one.tell(event)


def new_emitter(count: Subscriber | None = None) -> Emitter:
    """An emitter with everybody who is told of the facts of this process. `count` is this system's own: it is
    quick, raises nothing, and asks for no fact that the log does without."""

    def log_and_count(event: Event) -> None:
        log_event(event)
        if count is not None:
            count(event)

    return Emitter(log_event if count is None else log_and_count, unlogged=WITHOUT_A_LINE)


class _Told:
    """One subscriber, kept from doing harm."""

    def __init__(self, subscriber: Subscriber, *, patience_s: float) -> None:
        self._subscriber = subscriber
        self._patience_s = patience_s
        self._has_raised = False
        self._was_slow_at = 0.0
        self._held_up_s = 0.0

    def tell(self, event: Event) -> None:
        if self._held_up_s > self._patience_s:
            return
        began_at = time.monotonic()
        try:
            with _broken_off() if self._patience_s < float("inf") else nullcontext():
                self._subscriber(event)
        except _TookTooLong:
            pass  # counted below
        except Exception:
            if not self._has_raised:
                name = type(event).__name__
                logger.exception("A subscriber failed at %s; its next failures are not told", name)
            self._has_raised = True
        took_s = time.monotonic() - began_at
        if took_s > _MOMENT_S:
            forgiven_s = _FORGIVEN * (began_at - self._was_slow_at)
            self._held_up_s = max(0.0, self._held_up_s - forgiven_s) + took_s
            self._was_slow_at = began_at
            if self._held_up_s > self._patience_s:
                logger.error("A subscriber holds up this process, and is told no more facts")


class _TookTooLong(BaseException):
    """Raised inside of a subscriber; a BaseException, so that it does not take it for one of its own."""


@contextmanager
def _broken_off() -> Iterator[None]:
    """Raise `_TookTooLong` in the block once it has taken long. Signals come to the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    is_over = False

    def raise_unless_over(_signal: int, _frame: FrameType | None) -> None:
        if not is_over:
            raise _TookTooLong

    handler = signal.signal(signal.SIGALRM, raise_unless_over)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, _LONGEST_CALL_S)
            yield
        finally:
            is_over = True
    finally:  # of its own: the signal may come as the one above begins, and raises there
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
