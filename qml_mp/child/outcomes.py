"""Worker: what came of its jobs and is not written yet, and the one place that writes it.

Outcomes of short jobs wait a moment for company. Meanwhile they lie in shared memory too, where the
supervisor finds them when this worker dies, or is in a job that takes longer than expected.
"""

from __future__ import annotations

import time
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace

from qml_mp import failpoints
from qml_mp.child.claims import Claims
from qml_mp.child.commands import Commands
from qml_mp.child.estimate import WAIT_S
from qml_mp.child.hygiene import Hygiene
from qml_mp.child.reports import StateChanges
from qml_mp.child.runner import NOT_BEGUN
from qml_mp.core.history import Ending, ending_of, microseconds_of, waited_us
from qml_mp.core.job import ClaimKey
from qml_mp.core.outcome import Outcome, Success, not_storable
from qml_mp.errors import InvalidJob, OutcomeRefused, StorageError, StorageUnavailable, StorageUnreachable
from qml_mp.ipc.counts import Times
from qml_mp.ipc.ended import EndedOutcomes
from qml_mp.processing.program import Execution
from qml_mp.storage.values import Finished

_MOST_UNAVAILABLE = 2
"""In a row, of outcomes that are written each by itself."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Unwritten:
    """Never changed. Every job has one, and a frozen one takes thrice as long to make."""

    execution: Execution
    outcome: Outcome
    times: Times
    is_as_it_came: bool = True
    """Whether storage has not refused it yet."""

    @property
    def key(self) -> ClaimKey:
        return self.execution.claim.key

    @property
    def can_be_sent(self) -> bool:
        """Whether nothing but the loss of its claim is to be expected of its write."""
        return self.is_as_it_came and isinstance(self.outcome, Success) and self.outcome.extras is None


class Outcomes:
    """Those of one worker, oldest first."""

    def __init__(
        self,
        claims: Claims,
        *,
        shared: EndedOutcomes,
        changes: StateChanges,
        commands: Commands,
        hygiene: Hygiene,
    ) -> None:
        """`shared` is where the supervisor finds them."""
        self._claims = claims
        self._shared = shared
        self._changes = changes
        self._commands = commands
        self._hygiene = hygiene
        self._unwritten: list[_Unwritten] = []
        self._sent: Sequence[_Unwritten] | None = None
        """Of these, what was sent without waiting for the reply; None: nothing was."""
        self._sent_end = 0
        """Where they end in `shared`."""
        self._oldest_at = 0.0
        self._is_urgent = False
        self._may_be_written = False
        """Whether some were sent before, and what became of that is not known."""

    def __len__(self) -> int:
        return len(self._unwritten)

    def add(self, execution: Execution, outcome: Outcome, *, ran_s: float) -> None:
        """This came of it. Until it is written, nobody runs the job again."""
        if not self._unwritten:
            self._oldest_at = time.monotonic()
        job = execution.claim.job
        ran_us = microseconds_of(outcome.duration) if isinstance(outcome, Success) else round(ran_s * 1e6)
        times = self._shared.counts.pair(job.method, job.queue), waited_us(job), ran_us
        self._unwritten.append(_Unwritten(execution=execution, outcome=outcome, times=times))
        is_recorded = self._shared.append(execution.claim.key, outcome, times)
        if is_recorded and outcome is NOT_BEGUN:
            failpoints.hit("giveback.recorded")
        elif is_recorded:
            failpoints.hit("outcome.recorded")
        self._is_urgent = self._is_urgent or not is_recorded or not isinstance(outcome, Success)

    def must_go(self, *, within_s: float | None = 0.0) -> bool:
        """Whether they cannot wait until so many seconds have passed (None: for a time that nobody knows),
        or until the next job has ended: what comes of it must find room in shared memory."""
        if not self._unwritten:
            return False
        if self._is_urgent or not self._shared.has_room or within_s is None:
            return True
        return time.monotonic() + within_s - self._oldest_at >= WAIT_S

    @property
    def are_told_slowly(self) -> bool:
        """Whether the next jobs are better claimed once the hook was told of these."""
        return self._changes.takes_long

    @property
    def can_be_sent(self) -> bool:
        """Whether `send` can be called once nothing is held."""
        is_calm = self._claims.can_send and not self._is_urgent and self._shared.has_room
        return is_calm and all(each.can_be_sent for each in self._unwritten)

    def send(self, *, in_hand: ClaimKey, limit: int, patience_s: float) -> None:
        """Send them, together with a claim of up to `limit` jobs, and do not wait: it is `receive` that reads
        the reply, once this claim has ended, for whose job `patience_s` is the longest that others wait. What
        could not be sent stays unwritten."""
        some = tuple(self._unwritten)
        try:
            finished = [(each.execution.claim, each.outcome) for each in some]
            if self._claims.send(finished, in_hand=in_hand, limit=limit, patience_s=patience_s):
                self._sent, self._sent_end = some, self._shared.end
        except (InvalidJob, StorageError):  # told when they are written, which is next
            self._may_be_written = True

    @property
    def are_sent(self) -> bool:
        """Whether there is a reply to `receive`."""
        return self._sent is not None

    def receive(self) -> None:
        """Take in the reply to what was sent. After an error all of it stays unwritten."""
        sent, self._sent = self._sent or (), None
        try:
            finished = self._claims.receive()
        except StorageError as error:
            self._may_be_written = True
            self._take_refusal(error)
            return
        self._claims.tries.worked()
        self._take_in(sent, finished, left=self._unwritten[len(sent) :], end=self._sent_end)
        if self._unwritten:  # what came of the job in between
            self._oldest_at, self._may_be_written = time.monotonic(), False

    def write(self, *, limit: int) -> bool:
        """Write them, as often as it takes; False when the worker must leave before it could.

        Together with a claim of up to `limit` jobs at first, then without: an error of the claim must not
        keep the outcomes. What storage refuses about one of them does not keep the others either.
        """
        while self._unwritten:
            try:
                self._write(self._unwritten, limit=limit)
                self._claims.tries.worked()
            except StorageError as error:
                self._may_be_written = True
                was_alone, limit = limit == 0, 0
                if self._take_refusal(error):
                    continue
                if isinstance(error, StorageUnavailable):
                    # What jobs have done in it is undone, so none of them has succeeded.
                    self._hygiene.check_transaction(before_exit=self._shared.take_back)
                elif not was_alone:
                    continue
                can_be_parted = was_alone and not isinstance(error, StorageUnreachable)
                if can_be_parted and len(self._unwritten) > 1 and self._write_each():
                    continue
                self._commands.wait(self._claims.tries.failed("Cannot write an outcome", error))
                if self._commands.orphaned:
                    return False  # nobody is left to wait for; the claims are recovered by whoever finds them
        return True

    def _write(self, some: Sequence[_Unwritten], *, limit: int) -> None:
        finished = self._claims.exchange([(each.execution.claim, each.outcome) for each in some], limit=limit)
        left = [] if some is self._unwritten else [one for one in self._unwritten if one not in some]
        self._take_in(some, finished, left=left)

    def _take_in(
        self,
        some: Sequence[_Unwritten],
        finished: Sequence[Finished],
        *,
        left: list[_Unwritten],
        end: int | None = None,
    ) -> None:
        """These are written, and `left` are not. `end`: where the former end in shared memory; None: they do
        not lie there together."""
        told, may_be_written = self._shared.written_by_supervisor(), self._may_be_written
        self._unwritten = left
        self._count(some, finished, told=told)
        if not left:
            self._shared.empty()
            self._is_urgent = self._may_be_written = False
        elif end is not None:
            self._shared.drop_until(end)
        for each, done in zip(some, finished, strict=True):
            # Who has written it tells it. What the supervisor has noted may be what it found written by us.
            is_ours = done.accepted and not done.was_written
            is_told = not is_ours and (each.key in told or (done.was_written and not may_be_written))
            if not done.accepted:
                # That a success was lost nobody else tells: had the supervisor written it, it would be found.
                # What else it has written may be history by now, and a claim that both have given back is.
                is_told = each.outcome is NOT_BEGUN or (is_told and not isinstance(each.outcome, Success))
            self._changes.finished(each.execution, done, is_told=is_told)
        self._hygiene.before_storage()  # the hook of the app was told

    def _count(
        self, some: Sequence[_Unwritten], finished: Sequence[Finished], *, told: Container[ClaimKey]
    ) -> None:
        """Whoever has written them, and when: while this worker lives, it alone counts what came of its
        claims. What was written is history when the job has been claimed anew since."""
        successes, unheard = [], []
        for each, done in zip(some, finished, strict=True):
            if not done.accepted:
                if self._may_be_written or each.key in told:
                    unheard.append(each)
            elif type(each.outcome) is Success:
                # What every job that is worth the speed comes to is told without a look at its state.
                successes.append(each.times)
            else:
                self._count_one(each, ending_of(done.state, each.outcome))
        self._shared.counts.count(successes, Ending.SUCCEEDED)
        if unheard:
            recorded = self._claims.recorded_endings([each.key for each in unheard])
            for each in unheard:
                self._count_one(each, recorded.get(each.key))

    def _count_one(self, each: _Unwritten, ending: Ending | None) -> None:
        if ending is not None:
            self._shared.counts.count((each.times,), ending)

    def _write_each(self) -> bool:
        """Each by itself, since they are refused together, or somebody has locked the row of one; whether any
        was written. No more, once storage does not answer: each try may take as long as it is patient."""
        count, unavailable = len(self._unwritten), 0
        for one in tuple(self._unwritten):
            try:
                self._write((one,), limit=0)
                unavailable = 0
            except StorageUnreachable:
                break
            except StorageError as error:
                self._take_refusal(error)
                unavailable = unavailable + 1 if isinstance(error, StorageUnavailable) else 0
                if unavailable == _MOST_UNAVAILABLE:
                    break
        return len(self._unwritten) < count

    def _take_refusal(self, error: StorageError) -> bool:
        """Put something in the place of an outcome that storage always refuses, so that the job does not run
        for ever. False when it was refused before: a second refusal would be of that something."""
        if not isinstance(error, OutcomeRefused):
            return False
        for position, each in enumerate(self._unwritten):
            if each.key == ClaimKey(job_id=error.job_id, claim_seq=error.claim_seq) and each.is_as_it_came:
                instead = not_storable(error)
                self._unwritten[position] = replace(each, outcome=instead, is_as_it_came=False)
                self._shared.append(each.key, instead, each.times)  # the last word about a claim counts
                return True
        return False
