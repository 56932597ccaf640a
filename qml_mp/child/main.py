"""Worker: boot (import the app, open storage, report ready), then the loop, then the exit code."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

import setproctitle

from qml_mp import failpoints, host
from qml_mp.child.descendants import cut_off_descendants
from qml_mp.child.exits import WorkerExit
from qml_mp.child.hygiene import Hygiene
from qml_mp.child.loop import LoopLimits, WorkerLoop
from qml_mp.child.native_threads import cap_native_threads
from qml_mp.child.prologue import unblock_signals
from qml_mp.child.source import ProgramSource
from qml_mp.child.streams import StandardStreams
from qml_mp.child.token import Commands
from qml_mp.clock import SystemClock
from qml_mp.core.server_info import WorkerInfo
from qml_mp.ipc.pipe import PipeReader
from qml_mp.ipc.slot import Activity, SlotWriter
from qml_mp.ipc.stack import write_stacks_to
from qml_mp.printable import printable
from qml_mp.processing.processor import JobProcessor
from qml_mp.processing.program import Program
from qml_mp.settings import ServerConfig
from qml_mp.storage.open import open_storage
from qml_mp.storage.protocol import Fetch, Retention, Storage

logger = logging.getLogger(__name__)

_FLUSHING_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOrder:
    """All that a supervisor tells a new worker. Handed over by the fork."""

    number: int
    worker_id: str
    server_id: str
    url: str
    config: ServerConfig
    source: ProgramSource
    pipe_fd: int
    stack_fd: int
    slot: SlotWriter


def worker_main(order: WorkerOrder) -> int:
    """The whole life of a worker, after the prologue; returns its exit code."""
    failpoints.hit("worker.begin")
    commands = Commands(PipeReader(order.pipe_fd))
    commands.install()
    write_stacks_to(order.stack_fd)
    own_fds = {order.pipe_fd, order.stack_fd}  # it grows: looked at when a job forks
    cut_off_descendants(fds=own_fds, let_go=commands.let_go)
    unblock_signals()
    show_title = _title(order)
    show_title("starting")
    cap_native_threads(order.config.worker_count)
    try:
        program = order.source.load()
        if program.attach is not None:
            program.attach(order.url)  # what jobs enqueue goes where this worker takes jobs from
        storage = open_storage(order.url, application_name=f"qml-mp: worker {order.number}")
        failpoints.hit("boot")
        streams = StandardStreams()
        own_fds |= streams.spares
        loop = _loop(order, program, storage, commands, show_title, streams)
    except BaseException:  # user code: even SystemExit at import is a failure to boot
        order.slot.show_cannot_boot(traceback.format_exc())
        return WorkerExit.CANNOT_BOOT
    order.slot.show_ready()
    try:
        reason = loop.run()
        order.slot.show(Activity.LEAVING)
        return reason
    except Exception:
        # The slot stays as it is: it may name a job, whose crash this is.
        logger.exception("Worker %s is broken", order.worker_id, extra={"worker_id": order.worker_id})
        return WorkerExit.BROKEN
    finally:
        storage.close()
        if commands.orphaned:
            _end_group()


def leave(code: int) -> None:
    """End the process now: what is buffered is flushed, unless nobody takes it within a moment, and
    nothing else of the parent's is run."""
    try:
        _flush()
    finally:
        os._exit(code)


def _end_group() -> None:
    """Nobody is left to kill what jobs have left in this worker's group, so it ends with the worker.

    By the group's own name: a job may have moved this process to another group, the supervisor's even.
    """
    if host.shares_its_group(os.getpid()) is not False:
        with contextlib.suppress(OSError):
            _flush()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(os.getpid(), signal.SIGKILL)


def _flush() -> None:
    try:
        signal.signal(signal.SIGALRM, _stop_flushing)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
        for stream in (sys.stdout, sys.stderr):
            signal.setitimer(signal.ITIMER_REAL, _FLUSHING_S)
            # Its reader is gone or does not read, or a job has closed or replaced it.
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _stop_flushing(_signal: int, _frame: FrameType | None) -> None:
    raise TimeoutError  # an OSError


def _info(order: WorkerOrder) -> WorkerInfo:
    process = host.identity()
    return WorkerInfo(
        id=order.worker_id,
        server_id=order.server_id,
        number=order.number,
        process=process,
        started_at=SystemClock().now(),
        rss_bytes=host.rss_bytes(process.pid),
    )


def _loop(
    order: WorkerOrder,
    program: Program,
    storage: Storage,
    commands: Commands,
    show_title: Callable[[str], None],
    streams: StandardStreams,
) -> WorkerLoop:
    config = order.config
    rng = random.Random()
    processor = JobProcessor(
        program,
        default_timeout=config.job_timeout,
        guard=commands,
        clock=SystemClock(),
        rng=rng,
    )
    limits = LoopLimits(
        polling_interval=config.polling_interval,
        retention=Retention.of(config),
        max_jobs=_with_jitter(config.max_jobs, rng),
        max_memory_bytes=config.max_memory,
    )
    return WorkerLoop(
        fetch=Fetch(
            worker_id=order.worker_id,
            server_id=order.server_id,
            queues=tuple(config.queues),
            registered=True,
            methods=program.registry.methods(),
        ),
        storage=storage,
        info=_info(order),
        processor=processor,
        commands=commands,
        slot=order.slot,
        limits=limits,
        on_state_change=program.on_state_change,
        show_title=show_title,
        hygiene=Hygiene(pipe_fd=order.pipe_fd, stack_fd=order.stack_fd, streams=streams),
        pid=os.getpid(),
    )


def _with_jitter(max_jobs: int | None, rng: random.Random) -> int | None:
    """Up to a tenth more, so that workers started together are not replaced together."""
    return None if max_jobs is None else max_jobs + rng.randint(0, max_jobs // 10)


def _title(order: WorkerOrder) -> Callable[[str], None]:
    """Process titles name the method, never arguments. Not on macOS: there it kills forked children."""
    if sys.platform == "darwin":
        return lambda _: None
    prefix = f"qml-mp: worker {order.number}/{order.config.worker_count} [{order.source.label}] "
    return lambda what: setproctitle.setproctitle(printable(prefix + what))
