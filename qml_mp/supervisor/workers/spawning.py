"""Supervisor: a worker is forked, with all that it and its supervisor share."""

from __future__ import annotations

from collections.abc import Collection

from qml_mp.child.main import WorkerArguments, worker_main
from qml_mp.ipc.bell import Bell
from qml_mp.ipc.ended import EndedTable
from qml_mp.ipc.pipe import Kind, Message, send
from qml_mp.ipc.slot import SlotTable
from qml_mp.ipc.turns import Turns
from qml_mp.supervisor.workers.channels import open_channels
from qml_mp.supervisor.workers.fork import fork_child
from qml_mp.supervisor.workers.worker_process import WorkerProcess, WorkerSpec


def spawn_worker(
    spec: WorkerSpec,
    *,
    number: int,
    worker_id: str,
    slots: SlotTable,
    ended: EndedTable,
    bell: Bell,
    turns: Turns,
    index: int,
    own_fds: Collection[int],
    now: float,
    paused: bool,
    memory_limit: int | None,
) -> WorkerProcess:
    """Fork worker `number` with slot and region `index`; `own_fds` are the supervisor's, which it must not
    keep. One that is `paused` claims nothing until it is woken; one that uses `memory_limit` bytes before its
    first job does not boot. Raises `OSError` when the system has no room for it, and leaves nothing behind
    then."""
    slots.clear(index)
    reading, channels = open_channels(ended.region(index, worker_id=worker_id))
    if paused:  # before it lives: it may be at its first claim when this process comes to anything else
        send(channels.pipe_fd, Message(kind=Kind.PAUSE))
    arguments = WorkerArguments(
        number=number, worker_id=worker_id, server_id=spec.server_id, url=spec.url, config=spec.config,
        source=spec.source, pipe_fd=reading, stack_fd=channels.stack_fd, tickets=channels.tickets,
        ended=channels.ended, troubles=spec.troubles.of(index), bell=bell, turns=turns,
        slot=slots.writer(index), memory_limit=memory_limit,
    )  # fmt: skip
    child = fork_child(
        lambda: worker_main(arguments),
        ours=channels.fds,
        theirs=channels.fds - {channels.pipe_fd} | {reading},
        shared=turns.fds | {bell.ringing_fd},
        own_fds=own_fds,
        die_with_parent=True,
    )
    slots.set_process(index, pid=child.pid, started_ticks=child.started_ticks)
    return WorkerProcess(
        number=number, worker_id=worker_id, child=child, channels=channels, slots=slots, index=index,
        forked_at=now,
    )  # fmt: skip
