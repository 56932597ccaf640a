"""Supervisor: the start and the end of a run in storage: recover, register; settle, leave the registry."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from qml_mp.errors import SchemaMismatch, StorageError, StorageUnavailable, StorageUnreachable
from qml_mp.storage.memory_folder import remove_orphaned_folders
from qml_mp.storage.store import Storage
from qml_mp.storage.waiting import DEFAULT_PATIENCE
from qml_mp.supervisor.loops.acts import ActDesk
from qml_mp.supervisor.loops.declarations import DeclarationsLoop
from qml_mp.supervisor.loops.history import HistoryLoop
from qml_mp.supervisor.loops.settle import SettleLoop
from qml_mp.supervisor.recovery.judging import Silences
from qml_mp.supervisor.recovery.sweep import read_clock, reclaim_from_dead_neighbours, release_stranded_jobs
from qml_mp.supervisor.run import Run
from qml_mp.supervisor.urgent import UrgentFirst
from qml_mp.supervisor.wait import wait_for

logger = logging.getLogger(__name__)

_PROOF_AT_START_S = 2.0
_RECOVER_WITHIN_S = 2.0  # a worker that died a moment ago may have left the database something to commit
_PAUSE_AT_START_S = 0.05
_PAUSE_AT_END_S = 0.02


def join(storage: Storage, run: Run, *, declarations: DeclarationsLoop, urgent_first: UrgentFirst) -> None:
    """Give back what earlier runs left, register, and have storage follow what the code declares.

    Other writers are waited for a little: they are not worth a start that fails. Raises `StorageError`.
    """

    def beside_others(step: Callable[[], None], *, within_s: float) -> None:
        deadline = time.monotonic() + within_s
        while True:
            try:
                return step()
            except StorageUnreachable:
                raise
            except StorageUnavailable as error:
                if run.stop.has_begun or time.monotonic() >= deadline:
                    raise
                logger.debug("The start waits for storage: %s", error)
            urgent_first.between(until=time.monotonic() + _PAUSE_AT_START_S)

    def register() -> None:
        storage.check_rights()  # one who may register may yet have no right to what the loops write to
        run.registration.register(storage)
        declarations.tick(storage)

    for caveat in storage.caveats:
        logger.warning("Storage %s: %s", storage.display_url, caveat)
    try:
        beside_others(lambda: _recover(storage, run), within_s=_RECOVER_WITHIN_S)
    except (StorageUnreachable, SchemaMismatch):
        raise
    except StorageError as error:  # one job that is refused keeps no server from running the others
        logger.warning("Cannot give back what earlier runs left; a loop tries again: %s", error)
    beside_others(register, within_s=DEFAULT_PATIENCE.total_seconds())


def leave(storage: Storage, run: Run, *, settling: SettleLoop, desk: ActDesk, history: HistoryLoop) -> None:
    """Settle the last dead workers and leave the registry, as long as the stop has time for it. All workers
    are dead.

    With a slow storage there is time for one reply or none. So one statement removes everything when no
    claim is left, which is the rule, and what cannot be done in time is left as it is: the next server
    finds it.
    """
    run.stop.begin_leaving()
    run.stop.renew_leaving()
    trouble: StorageError | None = None
    while True:
        try:
            if _try_to_leave(storage, run, settling, desk):
                break
        except StorageError as error:
            trouble = error
        if time.monotonic() + _PAUSE_AT_END_S >= run.stop.give_up_at():
            _tell_of_rest(settling, trouble)
            return
        wait_for([], until=time.monotonic() + _PAUSE_AT_END_S)
    run.stop.renew_leaving()
    if time.monotonic() < run.stop.give_up_at():
        settling.count_rest(storage)
        history.write_rest(storage)


def stay(storage: Storage, *, settling: SettleLoop) -> None:
    """Settle the dead workers, and stay in the registry: a worker that cannot be killed has a claim, which
    nobody else may have before it has ended. The next server that proves it dead gives it back."""
    settling.settle_orderly_too()
    try:
        settling.tick(storage)
    except StorageError as error:
        logger.error("What dead workers still held is left to the next server: %s", error)


def _tell_of_rest(settling: SettleLoop, trouble: StorageError | None) -> None:
    if settling.count:
        logger.error("What %s dead workers still held is left to the next server", settling.count)
    logger.warning(
        "Could not leave the registry, where this server stands until the next one on this machine finds it "
        "dead: %s",
        trouble or "not all could be settled",
    )


def _recover(storage: Storage, run: Run) -> None:
    """Give back what the dead servers of this host left.

    Peers that are only silent are left to the loops: that of heartbeats judges them once this server has
    sent some for long enough itself, and without heartbeats it takes a second look. So are those of which
    only the age of their jobs can tell: nothing tells yet whether the clock was set ahead.
    """
    remove_orphaned_folders()
    reclaim_from_dead_neighbours(storage, run, storage.list_servers(), proof_s=_PROOF_AT_START_S)
    reading = read_clock(storage, run)
    release_stranded_jobs(storage, run, reading, Silences(), spare_registered=True)


def _try_to_leave(storage: Storage, run: Run, settling: SettleLoop, desk: ActDesk) -> bool:
    done = desk.done_by_leaving()
    if storage.deregister_server(run.registration.id, done=done):
        return True
    run.stop.renew_leaving()
    settling.settle_orderly_too()
    settling.tick(storage)
    if settling.count:
        return False
    storage.reclaim_server(run.registration.id, silent_for=None, done=done, retention=run.retention)
    return True
