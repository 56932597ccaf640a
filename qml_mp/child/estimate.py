"""Worker, pure: how long its jobs take, and how many claims that makes it worth holding at a time."""

from __future__ import annotations

from collections.abc import Iterable

WAIT_S = 0.05
"""How long an outcome waits for company, and how long other workers wait for what this one holds."""
_HELD_S = 0.9 * WAIT_S
"""Work that is claimed at a time. Less, so that a batch which takes a little longer is still one write."""
_WEIGHT = 0.25  # of the newest job
_LONGEST_S = 2 * WAIT_S  # that one job counts for, so that it is forgotten after some ten short ones


class Estimates:
    """Of one worker, which begins with one claim at a time."""

    def __init__(self, *, most: int) -> None:
        """`most` claims are held at a time, however short the jobs are."""
        self._most = most
        self._most_now = 1
        self._has_news = False
        self._by_method: dict[str, float] = {}
        self._of_all: float | None = None

    def note(self, method: str, took_s: float) -> None:
        """A job of this method took so long, with all that the worker does for it."""
        counted_s = min(took_s, _LONGEST_S)
        self._by_method[method] = _moved(self._by_method.get(method), counted_s)
        self._of_all = _moved(self._of_all, counted_s)
        self._has_news = took_s <= WAIT_S
        if took_s > WAIT_S:
            self._most_now = 1

    def of(self, method: str) -> float | None:
        """How many seconds the next job of this method will take (not more than twice `WAIT_S`); None: none
        has run here."""
        return self._by_method.get(method)

    def next_limit(self) -> int:
        """How many to claim now: what fits, one after a long job, and at most twice as many as the last time
        (as many, when no job has ended since)."""
        if self._has_news:
            self._most_now, self._has_news = 2 * self._most_now, False
        fitting = 1 if self._of_all is None else int(_HELD_S / max(self._of_all, 1e-9))
        self._most_now = max(1, min(self._most_now, fitting, self._most))
        return self._most_now

    def fitting(self, methods: Iterable[str]) -> int:
        """How many of the next jobs, which have these methods, are as much work as may be held."""
        count, sum_s = 0, 0.0
        for method in methods:
            sum_s += self._by_method.get(method, self._of_all or 0.0)
            if sum_s > _HELD_S:
                break
            count += 1
        return count


def _moved(estimate_s: float | None, took_s: float) -> float:
    return took_s if estimate_s is None else estimate_s + _WEIGHT * (took_s - estimate_s)
