"""Client: when jobs end. One statement looks for all of them, and who ends one of them says so.

A job that takes some milliseconds is looked for a few times; only then this listens, which takes a connection
of its own on PostgreSQL. Where nothing can be listened to (behind a pooler) it goes on looking, with growing
pauses. It looks now and then in any case: an end that was not told is seen late, and not never.
"""

from __future__ import annotations

import logging
import select
import time
import uuid
from collections import deque
from collections.abc import Collection, Iterable
from contextlib import suppress
from datetime import timedelta

from qml_mp.core.job import Job
from qml_mp.errors import StorageError, StorageUnavailable
from qml_mp.storage.store import Storage
from qml_mp.storage.waiting import EndedWaker

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.005
_YOUNG_S = 0.03
"""For so long a job is only looked for."""
_LOOK_EVERY_S = 1.0
"""While it listens."""
_WORK_PER_REST = 9
"""After a look at all jobs it rests so many times as long as that took, where any commit wakes it."""
_LONGEST_REST_S = 2.0
"""Not for ever: what took long may have been another thread's use of the connection, or the network."""
_TOLD_FOR = timedelta(seconds=60)
"""How long a killed waiter is told of ends."""
_RENEW_S = 20.0
_LONGEST_PAUSE_TO_LISTEN_S = 30.0


class Watch:
    """Waits for the ends of some jobs. For one thread; close it, most simply by `with`."""

    def __init__(self, storage: Storage, *, polling: timedelta, bell_fd: int | None = None) -> None:
        """`polling`: the longest pause where nothing can be listened to. `bell_fd`: whoever makes it readable
        ends the waiting."""
        self._storage = storage
        self._polling_s = polling.total_seconds()
        self._bell_fd = bell_fd
        self._name = str(uuid.uuid4())
        self._open: set[str] = set()
        self._at_once: set[str] = set()
        """Those looked for next: they have just come or been announced, or are said to have ended."""
        self._fresh: set[str] = set()
        """Those that are not announced yet. They are looked for at growing pauses of their own, without the
        others, which may be thousands."""
        self._listening = _Listening(storage, self._name)
        self.is_behind = False
        """Whether more have ended than the last look has brought. The next one brings some of them."""
        self._has_looked = False
        self._is_in_trouble = False
        self._look_at = self._rested_at = time.monotonic()
        self._fresh_at = self._look_at
        self._pause_s = self._fresh_pause_s = _FIRST_PAUSE_S

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, job_ids: Iterable[str]) -> None:
        """Wait for these too."""
        given = set(job_ids)
        new = given - self._open
        self._open |= new
        self._at_once |= given
        self._fresh |= new
        self._listening.wants(new)
        self._fresh_at, self._fresh_pause_s = time.monotonic(), _FIRST_PAUSE_S

    def remove(self, job_ids: Iterable[str]) -> None:
        """Wait for these no more."""
        gone = self._open.intersection(job_ids)
        self._open -= gone
        self._at_once -= gone
        self._fresh -= gone
        self._listening.forget(gone)

    def next_ended(self, *, deadline: float) -> dict[str, Job | None]:
        """Those that have ended next, with their rows; None: there is no such job (any more). It waits for
        them no more. Looks once at least; empty when the monotonic `deadline` has come, or the bell.

        Raises `StorageUnavailable` only for the first look of all; later it looks again until the storage
        can be asked. It may be late by as long as one statement can take, when the network is silent.
        """
        while True:
            now = time.monotonic()
            if now >= self._listening.due_at:
                begun = self._listening.begin(now, self._open)
                self._at_once |= begun  # for what ended before that was known
                self._fresh -= begun
            looks_for_fresh = bool(self._fresh) and now >= self._fresh_at
            if looks_for_fresh:
                self._at_once |= self._fresh
            ended: dict[str, Job | None] = {}
            if now >= self._look_at or self.is_behind:
                ended = self._look(self._open)
                self._look_at = self._rested_at + self._pause_s
                self._pause_s = min(2 * self._pause_s, self._longest_pause_s)
            elif self._at_once:
                ended = self._look(set(self._at_once))
            if looks_for_fresh:
                self._plan_next_look_for_fresh()
            # Each time anew: with a silent network each step takes long, and none follows that need not.
            if ended or time.monotonic() >= deadline:
                return ended
            fresh_at = self._fresh_at if self._fresh else float("inf")
            is_rung = self._rings(until=min(deadline, self._look_at, fresh_at, self._listening.due_at))
            if is_rung or time.monotonic() >= deadline:
                return {}

    def close(self) -> None:
        """Harmless when closed already."""
        self._listening.end(is_asked=not self._is_in_trouble)

    @property
    def _longest_pause_s(self) -> float:
        return _LOOK_EVERY_S if self._listening.waker is not None else self._polling_s

    def _look(self, job_ids: Collection[str]) -> dict[str, Job | None]:
        began = time.monotonic()
        self._at_once.clear()
        self.is_behind = False
        ended: dict[str, Job | None] = {}
        try:
            found = self._storage.ended_jobs(job_ids)
            ended, self.is_behind = found.jobs, not found.is_all
            self._has_looked, self._is_in_trouble = True, False
        except StorageUnavailable as problem:
            if not self._has_looked:
                raise
            if not self._is_in_trouble:
                logger.warning("While waiting for jobs: %s It is asked again and again.", problem)
            self._is_in_trouble = True
        now = time.monotonic()
        if job_ids is self._open:
            worked_s = 0.0 if self._is_in_trouble else now - began
            self._rested_at = now + min(_WORK_PER_REST * worked_s, _LONGEST_REST_S)
        self.remove(ended)
        return ended

    def _plan_next_look_for_fresh(self) -> None:
        self._fresh_at = time.monotonic() + self._fresh_pause_s
        self._fresh_pause_s *= 2
        if self._fresh_pause_s > self._pause_s:  # all are looked for as often
            self._fresh.clear()

    def _rings(self, *, until: float) -> bool:
        """Wait until then, or until something is told; whether the bell was rung."""
        poller = select.poll()
        for fd in (self._bell_fd, self._listening.fileno()):
            if fd is not None:
                poller.register(fd, select.POLLIN)
        # Rounded up: a poll that is too short by a part of a millisecond would be followed by another one.
        ready = {fd for fd, _ in poller.poll(max(0, int((until - time.monotonic()) * 1000) + 1))}
        waker = self._listening.waker
        if waker is not None and waker.fileno() in ready:
            self._take(waker)
        return self._bell_fd in ready

    def _take(self, waker: EndedWaker) -> None:
        try:
            told = waker.drain()
        except StorageError as problem:
            logger.debug("While waiting for jobs: %s", problem)
            self._listening.lose()
            self._look_at = time.monotonic()
            return
        if told is None:  # any may have
            self._look_at = min(self._look_at, self._rested_at)
        else:
            self._at_once |= self._open.intersection(told)


class _Listening:
    """Has the ends of jobs be told to one `Watch`, and listens."""

    def __init__(self, storage: Storage, name: str) -> None:
        self.waker: EndedWaker | None = None
        self._storage = storage
        self._name = name
        self._young: deque[tuple[float, set[str]]] = deque()
        """From which instant on so many are to be told of, in this order."""
        self._announced: set[str] = set()
        """Those that are, for some time from now on."""
        self._over: set[str] = set()
        """Those that are and need not be, until it is renewed: a statement for each would cost more."""
        self._try_at, self._renew_at = 0.0, float("inf")
        self._pause_s = _LOOK_EVERY_S
        """Before it tries again."""

    def fileno(self) -> int | None:
        """Readable when something was told; None: nothing is listened to."""
        try:
            return None if self.waker is None else self.waker.fileno()
        except StorageError:  # it is the parent's, of which this process was forked meanwhile
            self.lose()
            return None

    def wants(self, job_ids: set[str]) -> None:
        """To be told of these too, when they are no longer young."""
        if self._try_at < float("inf"):
            self._young.append((time.monotonic() + _YOUNG_S, job_ids))

    def forget(self, job_ids: set[str]) -> None:
        """To be told of these no more."""
        self._over |= self._announced & job_ids
        self._announced -= job_ids

    @property
    def due_at(self) -> float:
        """From when on there is something to do."""
        is_lost = self.waker is None and bool(self._announced)
        grown_up_at = self._young[0][0] if self._young else float("inf")
        return max(self._try_at, 0.0 if is_lost else min(grown_up_at, self._renew_at))

    def begin(self, now: float, job_ids: set[str]) -> set[str]:
        """Listen, and be told of these, unless they are young; those for which that has begun now."""
        wanted: set[str] = set()
        while self._young and now >= self._young[0][0]:
            wanted |= self._young.popleft()[1] & job_ids
        self._announced |= wanted  # also when only the reply is lost
        try:
            if self.waker is None:
                self.waker = self._storage.open_ended_waker()
                self._renew_at = now
            if self.waker is None:  # there is nothing to listen to
                self._try_at = float("inf")
                return set()
            if now >= self._renew_at:
                wanted, self._renew_at = self._announced, now + _RENEW_S
                self._storage.end_wait(self._name, self._over - wanted)
                self._over.clear()
            self._storage.begin_wait(self._name, wanted, ttl=_TOLD_FOR)
        except StorageError as problem:  # a lost connection, or a role that may not write
            logger.debug("Who waits for jobs is not told of their ends, and looks for them: %s", problem)
            self.lose()
            self._try_at = now + self._pause_s
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_TO_LISTEN_S)
            return set()
        self._pause_s = _LOOK_EVERY_S
        return wanted

    def lose(self) -> None:
        """The connection is lost; another one is opened next."""
        waker, self.waker, self._renew_at = self.waker, None, float("inf")
        if waker is not None:
            waker.close()

    def end(self, *, is_asked: bool) -> None:
        """Listen no more, and have nothing be told. Not `is_asked`: it is forgotten when its time is over,
        and the storage would only take long to reply."""
        is_asked = is_asked and self.waker is not None
        self._young.clear()
        self.lose()
        told = self._announced | self._over
        self._announced, self._over = set(), set()
        if is_asked:
            with suppress(StorageError):
                self._storage.end_wait(self._name, told)
