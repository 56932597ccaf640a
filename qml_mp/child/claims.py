"""Worker: what it asks storage for, the one reply that it may read later, and the one question that may be
open after a lost reply."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial

from qml_mp import failpoints
from qml_mp.child.commands import Commands
from qml_mp.child.held import Held
from qml_mp.core.history import Ending, waited_us
from qml_mp.core.job import Claim, ClaimKey
from qml_mp.core.outcome import Outcome, Release
from qml_mp.core.server_info import WorkerInfo
from qml_mp.core.state import StateName
from qml_mp.errors import StorageError, StorageUnavailable, StorageUnreachable
from qml_mp.events.claims import ended
from qml_mp.events.emitter import Emitter
from qml_mp.events.facts import ClaimFacts, ClaimFound, StorageBack, StorageLost
from qml_mp.events.retrying import Retrying
from qml_mp.ipc.ended import EndedOutcomes
from qml_mp.processing.job_records import about
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Exchanged, Fetch, Finished

logger = logging.getLogger(__name__)

_TAKEN = Release(reason="it was taken from its worker before it began", not_begun=True)


class Claims:
    """One worker's. Every method may raise a `StorageError`, after which it may be called again."""

    def __init__(
        self,
        storage: Storage,
        *,
        fetch: Fetch,
        info: WorkerInfo,
        held: Held,
        shared: EndedOutcomes,
        commands: Commands,
        events: Emitter,
    ) -> None:
        """What is claimed is held in `held`, which the loop empties. `shared` has the counts of what comes of
        claims; `fetch` also says how long ended jobs are kept."""
        self._storage = storage
        self._fetch = fetch
        self._info = info
        self._held = held
        self._shared = shared
        self._commands = commands
        self._events = events
        self.tries = Retrying(
            events,
            fails=partial(StorageLost, worker_id=self._info.id),
            works=StorageBack(worker_id=self._info.id),
            rng=random.Random(),
        )
        """Of the methods here; the loop says whether one failed or worked."""
        self._is_registered = False
        self._read_reply: Callable[[], Exchanged] | None = None
        """Of the exchange that was sent and not taken in."""
        self._in_doubt = False
        """Whether this worker may hold a claim of which it does not know. No length of time ends it."""
        self._known_at = time.monotonic()
        """When storage has last shown that it has this worker's row and newest epoch."""

    @property
    def worker_id(self) -> str:
        """The worker whose claims these are."""
        return self._info.id

    @property
    def has_question(self) -> bool:
        """Whether this worker may hold claims of which it does not know: no others are claimed before `fetch`
        has asked for them, which needs that none is held."""
        return self._in_doubt or self._commands.doubted or self._held.has_taken_many

    @property
    def can_send(self) -> bool:
        """Whether `send` can be called once nothing is held."""
        return self._storage.can_send_exchange and not self.has_question

    def register(self) -> None:
        """Before the first claim: whoever finds it after our death must know whom to kill first."""
        if not self._is_registered:
            self._is_registered = self._storage.register_worker(self._info)
        if not self._is_registered:
            raise StorageUnavailable("A peer declared this server dead; its supervisor will see to it.")

    def fetch(self, *, limit: int, trust_s: float) -> None:
        """Claim up to `limit` jobs, unless claims are paused; they are held then. All outcomes are written:
        what storage still knows of this worker's claims has not begun. After `trust_s` without a claim it
        is seen to that storage knows this worker."""
        if not self.has_question and time.monotonic() - self._known_at > trust_s:
            self._in_doubt = not self._is_known()
        self._end_doubt()
        if not (self._commands.paused or self._held):
            self.exchange((), limit=limit)

    def exchange(self, finished: Sequence[tuple[Claim, Outcome]], *, limit: int) -> tuple[Finished, ...]:
        """Write the outcomes and claim up to `limit` jobs in the same commit; they are held then."""
        _note_begin(len(finished))
        self._in_doubt = self._in_doubt or limit > 0  # until the reply is here
        done = self._storage.exchange(
            finished, fetch=self._fetch if limit else None, limit=limit, retention=self._fetch.retention
        )
        _note_commit(len(finished))
        if limit:
            self._in_doubt = False
            self._hold(done.claims, with_outcomes=bool(finished))
        return done.finished

    def send(
        self,
        finished: Sequence[tuple[Claim, Outcome]],
        *,
        in_hand: ClaimKey,
        limit: int,
        patience_s: float,
    ) -> bool:
        """As `exchange`, but it is `receive` that waits, once this claim has ended. Others get the new ones
        when its job takes longer than `patience_s`. The outcomes are successes without jobs that follow.
        False: it was not sent. After an error it may have been."""
        if not self._held.expect(in_hand, patience_s=patience_s):
            return False
        _note_begin(len(finished))
        self._in_doubt = True
        try:
            read_reply = self._storage.send_exchange(
                finished, fetch=self._fetch, limit=limit, retention=self._fetch.retention
            )
            failpoints.hit("exchange.sent")
        except BaseException:
            self._held.arrived()
            raise
        self._read_reply = read_reply
        return True

    def receive(self) -> tuple[Finished, ...]:
        """Read the reply to what was sent, and hold the claims that it brings."""
        assert self._read_reply is not None  # `send` has sent it
        read_reply, self._read_reply = self._read_reply, None
        try:
            done = read_reply()
            failpoints.hit("exchange.received")
        finally:
            self._held.arrived()
        self._in_doubt = False
        self._hold(done.claims, with_outcomes=bool(done.finished))
        _note_commit(len(done.finished))
        return done.finished

    def recorded_endings(self, keys: Collection[ClaimKey]) -> Mapping[ClaimKey, Ending | None]:
        """What is stored of what came of claims that are this worker's no more; nothing where storage does
        not answer."""
        try:
            return {key: each.ending for key, each in self._storage.recorded_claims(keys).items()}
        except StorageError:
            return {}

    def _hold(self, claims: Sequence[Claim], *, with_outcomes: bool) -> None:
        if claims:
            self._known_at = time.monotonic()
        self._held.hold(claims, with_outcomes=with_outcomes)

    def _is_known(self) -> bool:
        """Whether storage has the row and the newest epoch of this worker. Without them a claim finds
        nothing, as in an empty queue: a crash or a failover of storage may have lost its newest commits."""
        epochs = {info.id: info.epoch for info in self._storage.list_workers()}
        is_known = epochs.get(self.worker_id) == self._fetch.epoch
        if is_known:
            self._known_at = time.monotonic()
        else:
            logger.warning(
                "Storage has lost the row or the newest epoch of worker %s, which claims nothing without "
                "them; they are written again",
                self.worker_id,
                extra={"worker_id": self.worker_id},
            )
        return is_known

    def _end_doubt(self) -> None:
        """Have what was sent before claim nothing any more, and take over what it has claimed."""
        self._in_doubt = self._commands.take_doubt() or self._in_doubt or self._held.has_taken_many
        if not self._in_doubt:
            return
        renewed = self._storage.renew_epoch(self._fetch.worker_id)
        if renewed is None:  # registered anew, it must not have the epoch of what was sent before
            self._is_registered = False
            self._info = replace(self._info, epoch=self._fetch.epoch + 1)
            raise StorageUnavailable("The row of this worker is gone from the registry.")
        self._fetch = replace(self._fetch, epoch=renewed.epoch)
        self._held.taken &= {claim.key for claim in renewed.claims}
        found = [claim for claim in renewed.claims if claim.key not in self._held.taken]
        self._give_back([claim for claim in renewed.claims if claim.key in self._held.taken])
        self._in_doubt, self._known_at = False, time.monotonic()
        self._held.hold(found)
        for claim in found:
            self._events.emit(ClaimFound(claim=ClaimFacts.of(claim)))

    def _give_back(self, claims: Sequence[Claim]) -> None:
        """Those that the supervisor has taken, and that are this worker's all the same: it is about to give
        them back, or a failover of storage has lost that it has, and it does so once. Nobody can begin them,
        and that both give one back is harmless. One that storage refuses, or whose row somebody has locked,
        keeps this worker from nothing: its supervisor has it look again."""
        for claim in claims:
            try:
                finished = self._storage.finish(claim, _TAKEN, retention=self._fetch.retention)
            except StorageUnreachable:
                raise
            except StorageError as error:
                logger.warning(
                    "Job %s cannot be given back, which was taken from worker %s before it began: %s",
                    claim.job.id,
                    self.worker_id,
                    error,
                    extra=about(claim),
                )
                if isinstance(error, StorageUnavailable):
                    break  # it has waited for a lock, say, as it may for each of the others
                continue
            # Of what the supervisor has written, it tells, and counts it.
            is_ours = finished.accepted and not finished.was_written
            if is_ours and finished.state is StateName.DELETED:
                pair = self._shared.counts.pair(claim.job.method, claim.job.queue)
                self._shared.count((pair, waited_us(claim.job), 0), Ending.CANCELLED)
            event = ended(claim, finished.job) if is_ours else None
            if event is not None:
                self._events.emit(event)


def _note_begin(outcomes: int) -> None:
    if outcomes:
        failpoints.hit("finish.before")


def _note_commit(outcomes: int) -> None:
    if outcomes:
        failpoints.hit("finish.committed")
