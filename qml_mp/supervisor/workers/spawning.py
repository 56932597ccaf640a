"""Supervisor: makes one worker: its pipe, its stack file and its slot, then the fork."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass

from qml_mp.child.main import WorkerArguments, worker_main
from qml_mp.child.source import ProgramSource
from qml_mp.ipc.pipe import open_pipe
from qml_mp.ipc.slot import SlotTable
from qml_mp.ipc.stack import open_stack_file
from qml_mp.settings import ServerConfig
from qml_mp.supervisor.workers.fork import fork_child
from qml_mp.supervisor.workers.worker_process import Channels, WorkerProcess


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """What all workers of a pool have in common; new ones are forked after the newest."""

    server_id: str
    config: ServerConfig
    url: str
    source: ProgramSource


def spawn_worker(
    spec: WorkerSpec,
    *,
    number: int,
    worker_id: str,
    slots: SlotTable,
    index: int,
    own_fds: Collection[int],
    now: float,
) -> WorkerProcess:
    """Fork worker `number` with slot `index`; `own_fds` are the supervisor's, which it must not keep. Raises
    `OSError` when the system has no room for it, and leaves nothing behind then."""
    slots.clear(index)
    reading, channels = open_channels()
    arguments = WorkerArguments(
        number=number,
        worker_id=worker_id,
        server_id=spec.server_id,
        url=spec.url,
        config=spec.config,
        source=spec.source,
        pipe_fd=reading,
        stack_fd=channels.stack_fd,
        slot=slots.writer(index),
    )
    try:
        child = fork_child(
            lambda: worker_main(arguments),
            own_fds={*own_fds, channels.pipe_fd},
            keep_fds={reading, channels.stack_fd},
            die_with_parent=True,
        )
    except BaseException:
        os.close(channels.pipe_fd)
        os.close(channels.stack_fd)
        raise
    finally:
        os.close(reading)
    slots.set_process(index, pid=child.pid, started_ticks=child.started_ticks)
    return WorkerProcess(
        number=number, worker_id=worker_id, child=child, channels=channels, slots=slots, index=index,
        forked_at=now,
    )  # fmt: skip


def open_channels() -> tuple[int, Channels]:
    """The worker's end of a new pipe, and what the supervisor keeps. Nothing stays open after an error."""
    reading, writing = open_pipe()
    try:
        return reading, Channels(pipe_fd=writing, stack_fd=open_stack_file())
    except BaseException:
        os.close(reading)
        os.close(writing)
        raise
