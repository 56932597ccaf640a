"""Supervisor: counts what came of the claims of a dead worker that it has not counted itself.

It died at any moment between the end of a job and the count. What had ended lies in shared memory with the
times, and storage tells whether it is written. So each claim is counted once, however often this is repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from qml_mp.core.history import Ending, ending_of, waited_us
from qml_mp.core.job import Claim, ClaimKey
from qml_mp.core.outcome import Outcome
from qml_mp.ipc.ended import Uncounted
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Finished
from qml_mp.supervisor.workers.death import Death
from qml_mp.supervisor.workers.totals import EndTotals


class Counting:
    """Of one dead worker, over all tries to settle it."""

    def __init__(self, death: Death, totals: EndTotals) -> None:
        self._death = death
        self._totals = totals
        self._in_hand: ClaimKey | None = None
        self._knows_in_hand = False
        self._left = dict(death.uncounted)
        """Of which it is not known whether they are written."""

    def in_hand(self, find: Callable[[], Claim | None]) -> ClaimKey | None:
        """The claim that the worker had in hand, found once: when only some of what it held could be written,
        one that it had not begun may be all that is left at the next try."""
        if not self._knows_in_hand:
            claim = find()
            self._in_hand, self._knows_in_hand = (None if claim is None else claim.key), True
        return self._in_hand

    def note_write(self, claim: Claim, outcome: Outcome) -> None:
        """It is about to be written, and it may be that nobody hears of the reply."""
        if claim.key not in self._left:
            self._left[claim.key] = Uncounted(
                method=claim.job.method,
                queue=claim.job.queue,
                waited_us=waited_us(claim.job),
                ran_us=self._death.ran_us(claim.key),
                outcome=outcome,
            )

    def note_written(self, claim: Claim, outcome: Outcome, finished: Finished) -> None:
        """This is the reply."""
        if finished.accepted:
            self._count(claim.key, ending_of(finished.state, outcome))

    def count_rest(self, storage: Storage, *, held: Collection[ClaimKey]) -> None:
        """Count those that are written, of which nobody has heard. What is still `held` is not."""
        keys = [key for key in self._left if key not in held]
        recorded = storage.recorded_claims(keys)
        for key in keys:
            self._count(key, recorded[key].ending if key in recorded else None)

    def _count(self, key: ClaimKey, ending: Ending | None) -> None:
        one = self._left.pop(key, None)
        if one is not None and ending is not None:
            self._totals.add(
                method=one.method,
                queue=one.queue,
                ending=ending,
                waited_us=one.waited_us,
                ran_us=one.ran_us,
            )
