"""Worker: boot (import the app, open storage, report ready), then the loop, then the exit code."""

from __future__ import annotations

import logging
import os
import random
from dataclasses import dataclass

from qml_mp import failpoints, host
from qml_mp.child.between_jobs import BetweenJobs
from qml_mp.child.claims import Claims
from qml_mp.child.commands import Commands
from qml_mp.child.exits import WorkerExit, end_group
from qml_mp.child.failure_calls import FailureCalls
from qml_mp.child.folder import CurrentFolder
from qml_mp.child.held import Held
from qml_mp.child.hygiene import Hygiene
from qml_mp.child.import_errors import import_error_text
from qml_mp.child.importing import importing
from qml_mp.child.loop import WorkerLoop
from qml_mp.child.lost_attempts import LostAttemptExport
from qml_mp.child.memory import TooLargeError, check_memory
from qml_mp.child.outcomes import Outcomes
from qml_mp.child.prologue import cut_off_descendants, unblock_signals
from qml_mp.child.reports import Display, StateChanges
from qml_mp.child.runner import Runner
from qml_mp.child.source import ProgramSource, cap_native_threads
from qml_mp.child.streams import StandardStreams
from qml_mp.clock import SystemClock
from qml_mp.core.server_info import WorkerInfo
from qml_mp.events.emitter import new_emitter
from qml_mp.ipc.bell import Bell
from qml_mp.ipc.ended import EndedOutcomes
from qml_mp.ipc.pipe import PipeReader
from qml_mp.ipc.slot import Activity, SlotView, SlotWriter
from qml_mp.ipc.stack import write_stacks_to
from qml_mp.ipc.tickets import TicketPipe
from qml_mp.ipc.troubles import WorkerTroubles
from qml_mp.ipc.turns import Turns
from qml_mp.processing.job_records import mark_records
from qml_mp.processing.processor import JobProcessor
from qml_mp.processing.program import Program
from qml_mp.settings import ServerConfig
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Fetch, Retention

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerArguments:
    """All that a supervisor tells a new worker. Handed over by the fork."""

    number: int
    worker_id: str
    server_id: str
    url: str
    config: ServerConfig
    source: ProgramSource
    pipe_fd: int
    stack_fd: int
    tickets: TicketPipe
    ended: EndedOutcomes
    troubles: WorkerTroubles
    bell: Bell
    turns: Turns
    slot: SlotWriter
    memory_limit: int | None
    """Bytes of memory; to use so many before the first job is a failure to boot."""

    @property
    def pipe_fds(self) -> frozenset[int]:
        """Those of the pipe from the supervisor, of the tickets, of the turns and of the bell."""
        return self.tickets.fds | self.turns.fds | {self.pipe_fd, self.bell.ringing_fd}


def worker_main(arguments: WorkerArguments) -> int:
    """The whole life of a worker, after the prologue; returns its exit code."""
    failpoints.hit("worker.begin")
    commands = Commands(PipeReader(arguments.pipe_fd))
    commands.install()
    write_stacks_to(arguments.stack_fd)
    own_fds = {*arguments.pipe_fds, arguments.stack_fd}  # it grows: looked at when a job forks
    cut_off_descendants(fds=own_fds, detach=commands.detach)
    unblock_signals()
    config = arguments.config
    title = f"qml-mp: worker {arguments.number}/{config.worker_count} [{arguments.source.label}]"
    display = Display(arguments.slot, bell=arguments.bell, title=title)
    cap_native_threads(config.worker_count)
    try:
        with importing():
            program = arguments.source.load()
        commands.install()  # the app may have put handlers of its own in the place of ours
        write_stacks_to(arguments.stack_fd)
        mark_records()  # once the app has set up its own handlers
        if program.attach is not None:
            program.attach(arguments.url)  # what jobs enqueue goes where this worker takes jobs from
        if program.tracing is not None:
            program.tracing.open()
        storage = open_storage(arguments.url, application_name=f"qml-mp: worker {arguments.number}")
        storage.expect_schema()
        storage.take_turns(arguments.turns)
        failpoints.hit("boot")
        hygiene = _hygiene(arguments, storage)
        own_fds |= hygiene.own_fds
        loop = _loop(arguments, program, storage, commands, display, hygiene)
        commands.forks.watch()  # after whatever else is called at forks: the app's, the storage's
        # Last: all that it uses is there, and it can claim nothing yet, as to kill it in a job is charged.
        check_memory(arguments.memory_limit, host.rss_bytes(os.getpid()))
    except BaseException as error:  # user code: even SystemExit at import is a failure to boot
        return _cannot_boot(arguments.slot, error)
    arguments.slot.show_ready()
    try:
        reason = loop.run()
        arguments.slot.show(SlotView(activity=Activity.LEAVING))
        return reason
    except Exception:
        # The slot stays as it is: it may name a job, whose crash this is.
        logger.exception("Worker %s is broken", arguments.worker_id, extra={"worker_id": arguments.worker_id})
        return WorkerExit.BROKEN
    finally:
        if program.tracing is not None:
            program.tracing.flush()
        storage.close()
        if commands.orphaned:
            end_group()


def _cannot_boot(slot: SlotWriter, error: BaseException) -> int:
    slot.used_up = isinstance(error, TooLargeError)
    slot.show_cannot_boot(str(error) if slot.used_up else import_error_text(error))
    return WorkerExit.CANNOT_BOOT


def _loop(
    arguments: WorkerArguments,
    program: Program,
    storage: Storage,
    commands: Commands,
    display: Display,
    hygiene: Hygiene,
) -> WorkerLoop:
    config, slot = arguments.config, arguments.slot
    events = new_emitter(arguments.troubles.count)
    held = Held(arguments.tickets, slot=slot, has_hook=program.on_state_change is not None)
    fetch = _fetch(arguments, program)
    claims = Claims(
        storage,
        fetch=fetch,
        info=_info(arguments),
        held=held,
        shared=arguments.ended,
        commands=commands,
        events=events,
    )
    processor = JobProcessor(
        program, default_timeout=config.job_timeout, user_code=commands.user_code, clock=SystemClock(),
        rng=random.Random(), progress=slot.progress,
    )  # fmt: skip
    on_change = hygiene.guarding(program.on_state_change, name="on_state_change")
    changes = StateChanges(on_change, display=display, events=events)
    on_failure = hygiene.guarding(program.on_failure, name="on_failure", before_storage=True)
    failure_calls = FailureCalls(
        storage, on_failure, fetch=fetch, resolve=processor.resolve, display=display, changes=changes,
        config=config,
    )  # fmt: skip
    lost_attempts = LostAttemptExport(storage, program.tracing, fetch=fetch, look=commands.look)
    return WorkerLoop(
        claims=claims,
        held=held,
        runner=Runner(
            processor, commands=commands, display=display, changes=changes, hygiene=hygiene,
            between=BetweenJobs(failure_calls, lost_attempts, commands=commands),
            config=config,
        ),
        outcomes=Outcomes(
            claims, shared=arguments.ended, changes=changes, commands=commands, hygiene=hygiene
        ),
        commands=commands,
        display=display,
        config=config,
    )  # fmt: skip


def _hygiene(arguments: WorkerArguments, storage: Storage) -> Hygiene:
    return Hygiene(
        storage,
        slot=arguments.slot,
        pipe_fds=arguments.pipe_fds,
        stack_fd=arguments.stack_fd,
        streams=StandardStreams(),
        folder=CurrentFolder(),
        max_memory_hard=arguments.config.max_memory_hard,
    )


def _fetch(arguments: WorkerArguments, program: Program) -> Fetch:
    return Fetch(
        worker_id=arguments.worker_id,
        server_id=arguments.server_id,
        queues=tuple(arguments.config.queues),
        registered=True,
        methods=program.registry.methods(),
        retention=Retention.of(arguments.config),
    )


def _info(arguments: WorkerArguments) -> WorkerInfo:
    process = host.identity()
    return WorkerInfo(
        id=arguments.worker_id,
        server_id=arguments.server_id,
        number=arguments.number,
        process=process,
        started_at=SystemClock().now(),
        rss_bytes=host.rss_bytes(process.pid),
    )
