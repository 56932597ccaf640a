"""Supervisor: the claims in replies that its workers have not read.

A worker that runs a short job may have asked for the next ones, and not have read the reply. Storage alone
knows then which claims these are. Who has taken the ticket of the reply may give them back: the worker begins
none of them, and gives back itself those that it finds. It says in its slot which reply it has not taken in,
and which claim it has in hand.
"""

from __future__ import annotations

from collections.abc import Collection

from qml_mp.core.job import ClaimKey
from qml_mp.ipc.slot import mark_of
from qml_mp.ipc.tickets import reply_ticket
from qml_mp.supervisor.workers.worker_process import WorkerProcess


def note_taken_reply(worker: WorkerProcess) -> None:
    """Tell the ticket of a reply from those of claims that were taken from the worker."""
    unread = worker.slots.unread(worker.index)
    if reply_ticket(unread) in worker.taken:
        worker.taken_reply = unread


def claims_not_read(worker: WorkerProcess, held: Collection[ClaimKey]) -> frozenset[ClaimKey]:
    """Those that came with a reply whose ticket was taken. `held` is what storage has said that it holds.

    From the moment at which the worker asked until it takes the reply in, it holds no more than the job in
    its hands, what has ended, and what the reply brings. It has said what is in its hands before it asked,
    and the reply must be the same still when all of this is read.
    """
    in_hand = worker.slots.in_hand(worker.index)
    ended = worker.channels.ended.keys()
    unread = worker.slots.unread(worker.index)
    if not unread or unread != worker.taken_reply:
        return frozenset()
    return frozenset(key for key in held if mark_of(key) != in_hand and key not in ended)
