"""Supervisor: jobs whose change the database refuses, left out by whoever makes it and told once each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from qml_mp.events.facts import TryFailed, TryWorked
from qml_mp.storage.left_out import LeftOut
from qml_mp.supervisor.run import Run

_MOST_TOLD = 10  # until none is left out any more: one cause may refuse thousands


class RefusedJobs:
    """Of one kind of change. It goes on with all others, and does not count as failing."""

    def __init__(self, run: Run, *, failed: str, works: str, left_out: LeftOut | None = None) -> None:
        """`failed` and `works` are for people, as in `TryFailed` and `TryWorked`."""
        self._run = run
        self._failed = failed
        self._works = works
        self._told = 0
        self.left_out = left_out or LeftOut(run.clock)
        """For the storage."""

    @contextmanager
    def told(self) -> Iterator[LeftOut]:
        """Tell after the block, which is one transaction: where it fails, what is left out no longer may be
        undone, which is no word that all works again."""
        try:
            yield self.left_out
        except BaseException:
            self._tell_refusals()
            raise
        self.tell()

    def tell(self) -> bool:
        """Tell of what was refused since the last call, each job once; whether anything was."""
        is_any = self._tell_refusals()
        if self._told and not self.left_out.ids:
            self._told = 0
            self._run.events.emit(TryWorked(what=self._works))
        return is_any

    def _tell_refusals(self) -> bool:
        refusals = self.left_out.take_refusals()
        for refusal in refusals:
            is_news = refusal.is_first and self._told < _MOST_TOLD
            self._told += is_news
            self._run.events.emit(
                TryFailed(
                    what=f"{self._failed} at job {refusal.job_id}",
                    error=refusal.error,
                    retry_in=refusal.retry_in,
                    is_repeated=not is_news,
                )
            )
        return bool(refusals)
