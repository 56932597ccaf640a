"""Worker: claim, run, write what came of it, and the next one, until told to leave.

Storage that does not answer is waited for with growing pauses, and the worker keeps reading
its pipe meanwhile. An outcome in hand is written as soon as storage answers; only a lost claim ends that.
"""

from __future__ import annotations

import logging
import time

from qml_mp.child.claims import Claims
from qml_mp.child.commands import Commands
from qml_mp.child.estimate import AHEAD_S, WAIT_S, Estimates
from qml_mp.child.exits import WorkerExit
from qml_mp.child.held import Held
from qml_mp.child.outcomes import Outcomes
from qml_mp.child.own_time import OwnTime
from qml_mp.child.reports import Display
from qml_mp.child.runner import Runner
from qml_mp.errors import StorageError
from qml_mp.ipc.tickets import MOST_HELD
from qml_mp.processing.program import Execution
from qml_mp.settings import ServerConfig
from qml_mp.storage.values import UNREAD_BYTES

logger = logging.getLogger(__name__)

_WORTH_S = 0.004
"""A job has to take so long that something is gained if the next ones are claimed meanwhile."""
_WORTH_A_COMMIT_S = WAIT_S / 3
"""The same where no outcome is written with them: of shorter jobs several are claimed at a time."""
_FEW, _FEW_PART = 2, 4
"""When outcomes cannot wait any longer, and only so many or this part of a batch are left, the next one is
claimed."""
_UNREAD_CHARS = UNREAD_BYTES // 3  # of letters that take the most
"""Of payloads in a reply that is not read at once, by what payloads were of late: where they turn out to be
longer, storage claims nothing."""
_OWN_LOOK = 60  # times the interval: the supervisor looks for all its idle workers, as long as it can


class WorkerLoop:
    """The life of a booted worker."""

    def __init__(
        self,
        *,
        claims: Claims,
        held: Held,
        runner: Runner,
        outcomes: Outcomes,
        commands: Commands,
        display: Display,
        config: ServerConfig,
    ) -> None:
        self._claims = claims
        self._held = held
        self._runner = runner
        self._outcomes = outcomes
        self._commands = commands
        self._display = display
        self._polling_s = _OWN_LOOK * config.polling_interval.total_seconds()
        self._own_time = OwnTime()
        self._estimates = Estimates(most=min(config.fetch_batch_size, MOST_HELD))
        self._is_in_a_row = False
        """Whether what is held came with the outcomes of what was before."""
        self._claims_ahead = False
        """Whether the next ones are claimed while the last that is held runs."""

    def run(self) -> WorkerExit:
        """Work until told to leave, orphaned, or used up."""
        self._commands.look()  # it may have been forked while claims are paused
        while True:
            if self._held and (self._has_to_stop() or self._held.is_stale):
                self._give_back()
            if self._held and self._make_ready():
                continue  # there may be news
            claim = self._held.next()
            if claim is not None:
                self._work_on(self._runner.resolve(claim))
                if self._held:
                    self._commands.look_now_and_then()
            elif self._outcomes:
                self._commands.look()
                self._runner.catch_up()
                if not self._outcomes.write(limit=self._next_limit()):
                    return WorkerExit.LEFT
                self._is_in_a_row = bool(self._held)
                self._own_time.begin()
                self._commands.look()
            else:
                reason = self._reason_to_leave()
                if reason is not None:
                    return reason
                if self._runner.wants_to_call and not self._has_to_stop():
                    self._runner.call()
                    self._commands.look()
                    continue
                self._is_in_a_row = False
                self._claim()
                self._commands.look()

    def _reason_to_leave(self) -> WorkerExit | None:
        if self._commands.leaving:
            return WorkerExit.LEFT
        if self._runner.spoiled is not None:
            logger.warning("Worker %s leaves: %s", self._claims.worker_id, self._runner.spoiled)
            return WorkerExit.RECYCLED
        return None

    def _has_to_stop(self) -> bool:
        return self._commands.leaving or self._commands.paused or self._runner.spoiled is not None

    def _claim(self) -> None:
        """Ask for jobs; when there are none, wait until woken or the poll is due."""
        try:
            self._claims.register()
            self._display.fetching()
            limit = self._estimates.next_limit(payload_chars=self._held.payload_chars)
            self._claims.fetch(limit=limit, trust_s=self._polling_s)
            self._own_time.begin()
        except StorageError as error:
            self._estimates.claim_failed()
            self._commands.wait(self._claims.tries.failed("Cannot claim a job", error))
            return
        self._claims.tries.worked()
        if not self._held:
            self._display.idle()
            self._commands.wait(min(self._polling_s, self._runner.calls_in_s))

    def _make_ready(self) -> bool:
        """Before the next of the jobs that are held: what has ended does not wait for one that may be long,
        and nobody else's work does. Whether anything had to be done."""
        expected_s = self._estimates.of(self._held.next_method)
        is_last = len(self._held) == 1
        self._claims_ahead = is_last and expected_s is not None and self._can_claim_ahead(expected_s)
        if self._claims_ahead:
            self._runner.catch_up()
            self._commands.look()
            return self._has_to_stop()
        if expected_s is not None and expected_s > WAIT_S:
            count = 1
        elif self._outcomes.must_go(within_s=expected_s):
            count = max(1, self._estimates.fitting(self._held.methods))
        else:
            return False
        limit = 0
        if count < len(self._held):
            self._give_back(keep=count)
        elif expected_s is not None and expected_s <= WAIT_S:
            limit = self._limit_beside_few()
        if not self._outcomes:
            return False
        self._runner.catch_up()
        self._outcomes.write(limit=limit)
        if limit and self._claims.has_question:
            self._give_back()  # what storage may have handed out besides is asked for now, and not after them
        self._own_time.begin()
        return True

    def _limit_beside_few(self) -> int:
        """How many to claim with outcomes that cannot wait for the last of what is held, so that these are no
        write of their own; 0: more are left than a few."""
        left, limit = len(self._held), self._next_limit()
        return max(0, limit - left) if left <= max(_FEW, limit // _FEW_PART) else 0

    def _can_claim_ahead(self, expected_s: float) -> bool:
        """Whether it pays and hurts nobody during the last job, which is expected to take so long."""
        has_company = bool(self._outcomes) or (self._is_in_a_row and expected_s >= _WORTH_A_COMMIT_S)
        is_of_use = has_company and _WORTH_S <= expected_s <= AHEAD_S
        return is_of_use and self._held.payload_chars <= _UNREAD_CHARS and self._outcomes.can_be_sent

    def _work_on(self, execution: Execution) -> None:
        limit = 0
        if self._claims_ahead:
            limit = min(self._next_limit(), int(_UNREAD_CHARS / max(self._held.payload_chars, 1)))
        if limit:
            patience_s = self._estimates.patience_s(execution.job.method)
            self._outcomes.send(in_hand=execution.claim.key, limit=limit, patience_s=patience_s)
            self._own_time.begin()
        began_at = time.monotonic()
        outcome = self._runner.run(execution)
        ran_s = time.monotonic() - began_at
        self._estimates.note(execution.job.method, self._own_time.of(ran_s))
        self._outcomes.add(execution, outcome, ran_s=ran_s)
        self._runner.end_attempt(execution, outcome)
        self._display.finishing()
        if self._outcomes.are_sent:
            self._runner.catch_up()
            self._outcomes.receive()
            self._own_time.begin()

    def _give_back(self, *, keep: int = 0) -> None:
        """All that is held but the first ones. First it is this worker's alone: what the supervisor has taken
        may be in other hands by now, and nobody here tells of that. Should this worker die over it, its slot
        says that it has begun none."""
        claims = self._held.take_back()
        if keep:
            self._held.hold(claims[:keep], begins=False)
        for claim in claims[keep:]:
            execution = self._runner.resolve(claim)
            self._outcomes.add(execution, self._runner.give_back(execution), ran_s=0.0)

    def _next_limit(self) -> int:
        """How many to claim with the outcomes; 0: none."""
        if self._claims.has_question or self._has_to_stop() or self._runner.wants_to_call:
            return 0
        if self._outcomes.are_told_slowly:
            return 0
        return self._estimates.next_limit(payload_chars=self._held.payload_chars)
