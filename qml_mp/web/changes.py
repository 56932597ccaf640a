"""Web process: tells all browsers that something was committed. One thread listens, while anybody looks.

Where a storage tells of every commit it is listened to; else it is asked for its mark of commits, which costs
one small statement. The browsers are told at once after a quiet time, and at most every half a second; while
commits have no end, only when there may be something newer to get.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import select
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress

from qml_mp.errors import StorageError
from qml_mp.ipc.pipe import open_pipe
from qml_mp.storage.store import Storage
from qml_mp.storage.waiting import Waker

logger = logging.getLogger(__name__)

_TELL_EVERY_S = 0.5
"""The shortest time between two tellings, each of which has every browser ask for all of its parts. Shorter
than the shortest interval of a read."""
_LOOK_EVERY_S = 0.24
"""Between two looks for commits: a storage under load has them without an end, and each look is a
statement."""
_COMMIT_S = 0.1
"""After something was written that is not committed yet: a commit takes about so long on a slow disk."""
STATEMENTS_PER_S = 4.4
"""What one web process sends at most, over some seconds: looks, and the reads that follow."""
_LOOKS_PER_S = 1.3
"""What is left for looks whatever is read."""
_SPENT_OVER_S = 5.0
_TELL_ANYHOW_S = 10.0
"""What changes without a commit: a process that died, a heartbeat that did not come."""
_TRY_AGAIN_S = 1.0
_FAILS = "The page is not told of commits; it asks again every %g s"
_BEAT_S = 15.0
"""A word to each browser at least so often, by which it knows that the stream passes."""
_STREAM_S = 60.0
"""After so long a browser is asked to come again: a server that stops waits for its streams."""


class Changes:
    """For all threads and event loops of a web process."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._lock = threading.Lock()
        self._watchers: set[_Watcher] = set()
        self._thread: threading.Thread | None = None
        self._bell: _Bell | None = None
        self._tell_at = float("inf")
        """Written by requests and the listener under the lock."""
        self._closed = False
        self._spent = _Spent()
        self.is_listening = False
        """Whether a commit makes the version grow. Written by the listener, read by everybody."""
        self.version = 0
        """Grows with what was committed. Written by the listener, read by everybody."""
        self.new_at: Callable[[], float] = lambda: float("-inf")
        """The monotonic instant from which an answer may be newer, now that something was committed. Who is
        told earlier asks for what he has. Set by `Reads`, called by the listener."""

    def tell_at(self, instant: float) -> None:
        """Tell the browsers once more at this monotonic instant: some got an answer that was not new."""
        with self._lock:
            if instant >= self._tell_at:
                return  # as most of fifty browsers want it, each for each of its parts
            self._tell_at = instant
            if self._bell is not None:
                self._bell.ring()

    def spent(self, statements: int) -> None:
        """So many were sent for reads. There are fewer looks for it."""
        with self._lock:
            self._spent.add(statements)

    def close(self) -> None:
        """End all streams, and begin no more: the server stops. Safe in a signal handler's loop callback."""
        with self._lock:
            self._closed = True
            watchers = list(self._watchers)
        for watcher in watchers:
            watcher.wake()

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The events of one browser, as server-sent events: `hello`, `changed`, `beat`, and `end`."""
        watcher = _Watcher(asyncio.get_running_loop())
        self._add(watcher)
        ends_at = time.monotonic() + _STREAM_S
        try:
            yield _event("hello")
            yield _event("changed")  # by what was committed since its page was made, others were told
            while not self._closed and time.monotonic() < ends_at:
                yield _event("changed" if await watcher.changed(within_s=_BEAT_S) else "beat")
            yield _event("end")
        finally:
            self._remove(watcher)

    def _add(self, watcher: _Watcher) -> None:
        """Raises what the system does while it has no thread or descriptor for the listener."""
        with self._lock:
            if self._thread is None and not self._closed:
                self._start_listener()
            self._watchers.add(watcher)  # the listener looks for it once it has the lock

    def _start_listener(self) -> None:
        """Noted when it runs, and not before: the next browser would take it for one that does."""
        bell = _Bell()
        thread = threading.Thread(target=self._listen, name="qml-mp-changes", daemon=True)
        try:
            thread.start()
        except BaseException:
            bell.close()
            raise
        self._bell, self._thread = bell, thread

    def _remove(self, watcher: _Watcher) -> None:
        with self._lock:
            self._watchers.discard(watcher)
            if self._bell is not None:
                self._bell.ring()  # the listener leaves with the last one

    def _listen(self) -> None:
        """Until nobody looks any more."""
        source = _Source(self._storage, pause_s=self._pause_s, spent=self.spent)
        told_at = float("-inf")
        wait_s = 0.0
        try:
            while (bell := self._bell_if_wanted()) is not None:
                has_news = source.wait(bell, wait_s)
                self.is_listening = source.is_open
                now = time.monotonic()
                if has_news:
                    self.version += 1
                    self.tell_at(max(now, self.new_at()))
                if now >= self._tells_at(told_at):
                    told_at = now
                    self._tell()
                wait_s = max(0.0, self._tells_at(told_at) - now)
        finally:
            source.close()

    def _tells_at(self, told_at: float) -> float:
        """When the browsers are told next."""
        return min(max(self._tell_at, told_at + _TELL_EVERY_S), told_at + _TELL_ANYHOW_S)

    def _pause_s(self) -> float:
        """Between two looks: what the reads leave of the price."""
        with self._lock:
            left_per_s = max(_LOOKS_PER_S, STATEMENTS_PER_S - self._spent.per_s())
        return max(_LOOK_EVERY_S, 1 / left_per_s)

    def _bell_if_wanted(self) -> _Bell | None:
        with self._lock:
            if self._watchers and not self._closed:
                return self._bell
            self.is_listening = False
            self._thread = None
            if self._bell is not None:
                self._bell.close()
                self._bell = None
            return None

    def _tell(self) -> None:
        with self._lock:
            self._tell_at = float("inf")
            watchers = list(self._watchers)
        for watcher in watchers:
            watcher.wake()


class _Watcher:
    """One stream. Woken from any thread, waits in its own event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._woken = asyncio.Event()

    def wake(self) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._woken.set)

    async def changed(self, *, within_s: float) -> bool:
        try:
            await asyncio.wait_for(self._woken.wait(), within_s)
        except TimeoutError:
            return False
        self._woken.clear()
        return True


class _Bell:
    """Wakes the listener."""

    def __init__(self) -> None:
        self._read_fd, self._write_fd = open_pipe()

    def fileno(self) -> int:
        return self._read_fd

    def ring(self) -> None:
        with suppress(BlockingIOError):  # it rings already
            os.write(self._write_fd, b"!")

    def silence(self) -> None:
        with suppress(BlockingIOError):
            while os.read(self._read_fd, 4096):
                pass

    def close(self) -> None:
        os.close(self._read_fd)
        os.close(self._write_fd)


class _Source:
    """Commits of the storage, told or asked for. For the listener alone."""

    def __init__(
        self, storage: Storage, *, pause_s: Callable[[], float], spent: Callable[[int], None]
    ) -> None:
        """`pause_s` says how long it rests after a look, `spent` is told of looks that were in vain."""
        self._storage = storage
        self._spent = spent
        self._pause_s = pause_s
        self._waker: Waker | None = None
        self._mark: str | None = None
        self._look_at = 0.0
        self._is_told = False
        """Whether an error has been logged that is not over yet."""
        self.is_open = False
        """Whether nothing that is committed is missed."""

    def wait(self, bell: _Bell, seconds: float) -> bool:
        """Until something was committed, the bell rings or the time is over; whether anything was
        committed. An error is logged, and the storage asked again: a listener that ended would leave all
        browsers with what they have, for as long as the process lives."""
        was_open = self.is_open
        try:
            self._wait_for_any(bell, seconds)
            return self._look()
        except StorageError as error:
            logger.debug("The page is not told of commits: %s", error)
        except Exception as error:
            told = None if self._is_told else error
            logger.log(logging.DEBUG if self._is_told else logging.ERROR, _FAILS, _TRY_AGAIN_S, exc_info=told)
            self._is_told = True
        with suppress(Exception):  # it may be what has failed
            self.close()
        self._look_at = time.monotonic() + _TRY_AGAIN_S
        return was_open  # so that the browsers see that there is no storage

    def _wait_for_any(self, bell: _Bell, seconds: float) -> None:
        poller = select.poll()
        poller.register(bell, select.POLLIN)
        rest_s = self._look_at - time.monotonic()
        if self._waker is not None and rest_s <= 0:
            poller.register(self._waker, select.POLLIN)
        else:
            seconds = min(seconds, max(0.0, rest_s))
        poller.poll(int(seconds * 1000) + 1)
        bell.silence()

    def close(self) -> None:
        self.is_open = False
        self._mark = None
        waker, self._waker = self._waker, None
        if waker is not None:
            waker.close()

    def _look(self) -> bool:
        if time.monotonic() < self._look_at:
            return False
        was_open = self.is_open
        if not was_open and self._storage.is_on_one_machine:  # elsewhere it does not tell of each commit
            self._waker = self._storage.open_waker()
        if self._waker is not None:
            has_news = self._waker.drain(soon=False) is not None
        else:
            before, self._mark = self._mark, self._storage.commit_mark()
            has_news = before != self._mark
        self.is_open, self._is_told = True, False
        pause_s = self._pause_s()
        if self._waker is not None and not has_news:
            self._spent(1)  # one too many: it does not count as those that find something
            pause_s = _COMMIT_S
        self._look_at = time.monotonic() + pause_s
        return has_news or not was_open


class _Spent:
    """Statements of the last seconds, the older ones counting less."""

    def __init__(self) -> None:
        self._statements = 0.0
        self._at = time.monotonic()

    def add(self, statements: int) -> None:
        self._fade()
        self._statements += statements

    def per_s(self) -> float:
        self._fade()
        return self._statements / _SPENT_OVER_S

    def _fade(self) -> None:
        now = time.monotonic()
        self._statements *= math.exp((self._at - now) / _SPENT_OVER_S)
        self._at = now


def _event(name: str) -> bytes:
    return f"event: {name}\ndata: .\n\n".encode()
