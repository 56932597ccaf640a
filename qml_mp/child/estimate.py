"""Worker and supervisor, pure: how long a worker's jobs take, and how many claims are worth holding then."""

from __future__ import annotations

from collections.abc import Iterable

WAIT_S = 0.05
"""How long an outcome waits for company, and how long other workers wait for what this one holds."""
LONG_S = 0.6 * WAIT_S
"""What is held goes to others when the job in hand takes longer. Less, because the way to them takes time: a
write, and the rest of what they hold themselves."""
AHEAD_S = 1.6 * WAIT_S
"""How long a job may be expected to take during which the next ones are claimed."""
_PATIENCE_S = 2 * WAIT_S
"""How long others wait for these when such a job takes longer than was expected."""
_HELD_S = 0.9 * WAIT_S
"""Work that is claimed at a time. Less, so that a batch which takes a little longer is still one write."""
_HELD_BESIDE_LONG_S = 0.4 * WAIT_S
"""The same where long jobs come between: what is given back when one takes long waits for this work first."""
_WARY_JOBS = 10_000
"""For so many jobs after a long one, another is expected."""
_HELD_CHARS = 4 * 1024 * 1024
"""Of payloads that are claimed at a time: a value takes some five times as much memory as its text."""
_WEIGHT = 0.25  # of the newest job
_LONGEST_S = 2 * WAIT_S  # that one job counts for, so that it is forgotten after some ten short ones


class Estimates:
    """Of one worker, which begins with one claim at a time."""

    def __init__(self, *, most: int) -> None:
        """`most` claims are held at a time, however short the jobs are."""
        self._most = most
        self._most_now = 1
        self._has_news = False
        self._wary_jobs = 0
        self._by_method: dict[str, float] = {}
        self._of_all: float | None = None

    def note(self, method: str, took_s: float) -> None:
        """A job of this method took so long, with all that the worker does for it."""
        counted_s = min(took_s, _LONGEST_S)
        self._by_method[method] = _moved(self._by_method.get(method), counted_s)
        self._of_all = _moved(self._of_all, counted_s)
        self._has_news = took_s <= WAIT_S
        self._wary_jobs -= 1
        if took_s > WAIT_S:
            self._most_now, self._wary_jobs = 1, _WARY_JOBS

    def of(self, method: str) -> float | None:
        """How many seconds the next job of this method will take (not more than twice `WAIT_S`); None: none
        has run here."""
        return self._by_method.get(method)

    def patience_s(self, method: str) -> float:
        """How long a job may take during which the next ones are claimed, before others get these."""
        return _PATIENCE_S if self._by_method.get(method, 0.0) > LONG_S / 2 else LONG_S

    def next_limit(self, *, payload_chars: float = 0.0) -> int:
        """How many to claim now: what fits, one after a long job, and at most twice as many as the last time
        (as many, when no job has ended since). `payload_chars` is how long a payload was of late."""
        if self._has_news:
            self._most_now, self._has_news = 2 * self._most_now, False
        fitting = 1 if self._of_all is None else int(self._held_s / max(self._of_all, 1e-9))
        room = int(_HELD_CHARS / max(payload_chars, 1))
        self._most_now = max(1, min(self._most_now, fitting, room, self._most))
        return self._most_now

    def claim_failed(self) -> None:
        """Begin with one again: what waits may be more than comes within the time that storage has to answer,
        as when large payloads follow small ones, and as many would fail for ever."""
        self._most_now, self._has_news = 1, False

    @property
    def _held_s(self) -> float:
        return _HELD_BESIDE_LONG_S if self._wary_jobs > 0 else _HELD_S

    def fitting(self, methods: Iterable[str]) -> int:
        """How many of the next jobs, which have these methods, are as much work as may be held."""
        count, sum_s = 0, 0.0
        for method in methods:
            sum_s += self._by_method.get(method, self._of_all or 0.0)
            if sum_s > self._held_s:
                break
            count += 1
        return count


def _moved(estimate_s: float | None, took_s: float) -> float:
    return took_s if estimate_s is None else estimate_s + _WEIGHT * (took_s - estimate_s)
