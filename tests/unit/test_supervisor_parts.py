"""Tests: parts of a supervisor that need no process."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qml_mp.app import QmlApp
from qml_mp.child.reports import Display, StateChanges
from qml_mp.child.source import AppFacts, LoadedProgram, NamedProgram, probe, read_facts
from qml_mp.clock import Clock
from qml_mp.core.answers import ReloadAnswer, ReloadedCode, ReloadState
from qml_mp.core.history import MOST_NAMES, OTHER, Ending
from qml_mp.core.job import ClaimKey, Job, new_job_id
from qml_mp.core.outcome import Release
from qml_mp.core.state import StateName
from qml_mp.embedding.log_format import JsonFormatter
from qml_mp.embedding.remote import READY, RemoteSupervisor
from qml_mp.errors import ConfigurationError, StorageUnavailable, WorkerBootError
from qml_mp.events.emitter import new_emitter
from qml_mp.ipc.bell import Bell
from qml_mp.ipc.pipe import Kind, Message, send
from qml_mp.ipc.slot import _BODY_AT, Activity, SlotView
from qml_mp.metrics.ends import ToldEnds, families_of_ends
from qml_mp.otel import OpenTelemetry
from qml_mp.processing.cancel import CancelReason
from qml_mp.processing.middleware import StateChange
from qml_mp.settings import ServerConfig
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Finished
from qml_mp.supervisor.loops.burst import BurstLoop
from qml_mp.supervisor.loops.declarations import DeclarationsLoop
from qml_mp.supervisor.loops.failure_calls import FailureCallLoop
from qml_mp.supervisor.loops.loop import NEVER
from qml_mp.supervisor.loops.settle import Reaper, SettleLoop
from qml_mp.supervisor.part import Part, Parts
from qml_mp.supervisor.parts.guardian import Guardian
from qml_mp.supervisor.parts.job_limits import MemoryWatch, Pusher
from qml_mp.supervisor.parts.reload import NewCode, Reload
from qml_mp.supervisor.parts.server_report import ServerReports
from qml_mp.supervisor.parts.signals import SignalHandling, SignalInbox, StackDump
from qml_mp.supervisor.run import Run
from qml_mp.supervisor.urgent import STORAGE_PATIENCE, UrgentFirst
from qml_mp.supervisor.wait import poll_until
from qml_mp.supervisor.workers.fork import Child
from qml_mp.supervisor.workers.ladder import Rung
from qml_mp.supervisor.workers.pool import WorkerPool
from qml_mp.supervisor.workers.worker_process import WorkerProcess
from tests.storage_rows import hooks_of
from tests.unit.hand_clock import HandClock
from tests.unit.processor_case import claim_of, keys_of, processor_of
from tests.unit.stand_ins import stand_in, stand_in_of
from tests.until import PATIENCE_S

SOURCE = NamedProgram(spec="an:app")
MakeRun = Callable[..., Run]


@pytest.fixture
def run_of() -> Iterator[MakeRun]:
    with ExitStack() as stack:

        def make(workers: int, clock: Clock | None = None, **settings: Any) -> Run:
            config = ServerConfig(worker_count=workers, **settings)
            run = Run(config, SOURCE, url="memory://", facts=AppFacts(), clock=clock)
            stack.enter_context(closing(run.pool))
            return run

        yield make


@pytest.fixture
def sleeping() -> Iterator[Child]:
    """A process that may be sent signals."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield Child(pid=process.pid, pidfd=None, started_ticks=0)
        process.kill()


@pytest.fixture
def one_more_thread() -> Iterator[threading.Thread]:
    """Of this process, as a handler of logging starts one at its first record."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait, name="a handler's thread")
    thread.start()
    yield thread
    done.set()
    thread.join()


def a_worker(pool: WorkerPool, *, number: int) -> tuple[int, WorkerProcess]:
    """One of the pool, that this process stands for, and the reading end of its pipe."""
    reading, worker = stand_in(
        number=number, slots=pool.slots, ended=pool.ended.region(0), forked_at=pool._clock.monotonic()
    )
    pool._workers["w"] = worker
    return reading, worker


def waiting_of(
    run: Run,
    storage: Storage,
    *,
    urgent: Part | None = None,
    manage_workers: Callable[[], None] = lambda: None,
) -> UrgentFirst:
    return UrgentFirst(
        urgent or Parts(),
        all_parts=run.all_parts,
        storage=storage,
        stop=run.stop,
        manage_workers=manage_workers,
    )


@pytest.mark.parametrize(("workers", "wanted"), [(1, 2), (1023, 1024), (1024, 1024)])
def test_one_more_worker_is_never_more_than_the_setting_allows(
    run_of: MakeRun, workers: int, wanted: int
) -> None:
    pool = run_of(workers).pool

    pool.resize(pool.size + 1)

    assert pool.size == wanted


def test_no_look_at_new_code_begins_once_all_is_closed(
    run_of: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, looks = run_of(1), []
    monkeypatch.setattr("qml_mp.supervisor.parts.reload.Probe", lambda *_, **__: looks.append("a look"))
    reload = Reload(run, SOURCE, new_code=NewCode(), declarations=DeclarationsLoop(run))

    reload.close()
    reload.begin()
    reload.start_if_asked()

    assert looks == []


def test_no_look_at_new_code_begins_while_the_file_of_the_storage_is_in_use(
    run_of: MakeRun, tmp_path: Path
) -> None:
    class AsksAgain(Part):
        def next_at(self) -> float:
            return 0.0

        def turn(self) -> None:
            reload.begin()

    run, place = run_of(0), tmp_path / "jobs.db"
    reload = Reload(run, SOURCE, new_code=NewCode(), declarations=DeclarationsLoop(run))
    with (
        closing(open_storage(f"sqlite:///{place}", patience=STORAGE_PATIENCE)) as storage,
        closing(sqlite3.connect(place, isolation_level=None)) as other,
        closing(reload),
    ):
        storage.migrate()
        other.execute("BEGIN IMMEDIATE")
        waiting = waiting_of(run, storage, urgent=AsksAgain(), manage_workers=reload.start_if_asked)
        with waiting, pytest.raises(StorageUnavailable):
            storage.acquire_lock("one", "me", timedelta(seconds=60))
        meanwhile = reload.fds()
        reload.start_if_asked()

        assert meanwhile == []
        assert reload.is_under_way
        assert reload.fds() != []


@pytest.mark.fault(56)
def test_the_first_signal_to_stop_leaves_jobs_their_time_whatever_has_begun_the_stop(
    run_of: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a terminal that is gone, of which a wrapper hears, too, and passes it on as a SIGTERM."""
    monkeypatch.setattr("qml_mp.supervisor.parts.signals._ONE_WISH_S", 0.0)
    run, plans = run_of(1), []
    run.stop.begin(now=False, why="its terminal is gone")

    with SignalInbox() as inbox:
        reload = Reload(run, SOURCE, new_code=NewCode(), declarations=DeclarationsLoop(run))
        signals = SignalHandling(run, inbox=inbox, reload=reload, stacks=StackDump(run))
        for _ in range(3):
            plans.append(run.stop.plan)
            os.kill(os.getpid(), signal.SIGTERM)
            signals.turn()

    first, after_one, after_two = plans
    assert first is after_one
    assert after_two is not None
    assert after_two.kill_at == after_two.ask_at


def test_leaving_takes_longer_while_storage_answers_but_not_for_ever(
    run_of: MakeRun, clock: HandClock
) -> None:
    run = run_of(1, clock)
    run.stop.begin(now=True, why="a test")
    first = run.stop.give_up_at()

    def later(seconds: float) -> float:
        clock.seconds = seconds
        run.stop.renew_leaving()
        return run.stop.give_up_at()

    renewed = [later(at) for at in (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)]

    assert first == pytest.approx(0.8)
    assert renewed == pytest.approx([0.8, 1.3, 1.8, 2.3, 2.8, 3.0, 3.0])


def test_leaving_takes_no_longer_where_storage_cannot_be_reached(run_of: MakeRun, clock: HandClock) -> None:
    run = run_of(1, clock)
    run.reaching.failed("Storage cannot be reached", StorageUnavailable("gone"), now=0.0)
    run.stop.begin(now=True, why="a test")
    first = run.stop.give_up_at()

    clock.seconds = 0.3
    run.stop.renew_leaving()

    assert run.stop.give_up_at() == first == pytest.approx(0.4)


def test_a_run_that_nobody_has_told_to_stop_and_an_error_ends_has_a_moment_for_storage(
    run_of: MakeRun, clock: HandClock
) -> None:
    run = run_of(1, clock)
    before = run.stop.give_up_at()

    run.stop.begin_leaving()
    clock.seconds = 0.3
    run.stop.begin_leaving()

    assert before == float("inf")
    assert run.stop.give_up_at() == pytest.approx(0.4)


def test_a_supervisor_that_stood_still_when_its_time_to_leave_ended_looks_for_the_reply_once_more(
    run_of: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qml_mp.supervisor.stopping._MOST_LEAVING_S", PATIENCE_S)
    run = run_of(1)
    client, server = socket.socketpair()
    last_looks: list[dict[int, int]] = []

    def look(events: Mapping[int, int], *, until: float) -> dict[int, int]:
        came = poll_until(events, until=until)
        if until == run.stop.give_up_at() and not last_looks:
            last_looks.append(came)
            time.sleep(0.2)
            server.send(b"the reply")
        return came

    monkeypatch.setattr("qml_mp.supervisor.urgent.poll_until", look)
    with client, server, closing(open_storage("memory://")) as storage:
        waiting = waiting_of(run, storage)
        run.stop.begin(now=True, why="a test")
        came = waiting.wait(client.fileno(), reading=True, writing=False, until=float("inf"))

    assert (last_looks, came) == ([{}], (True, False))


def test_the_time_of_storage_does_not_end_while_the_supervisor_stands_still_between_two_waits(
    run_of: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qml_mp.supervisor.stopping._BUSY_LEAVING_S", 0.1)
    monkeypatch.setattr("qml_mp.supervisor.stopping._MOST_LEAVING_S", PATIENCE_S)
    run = run_of(1)
    with closing(open_storage("memory://")) as storage:
        waiting = waiting_of(run, storage)
        run.stop.begin(now=True, why="a test")
        ends_at = run.stop.give_up_at()
        time.sleep(max(0.0, ends_at - time.monotonic()) + 0.1)  # a standstill
        goes_on_at = time.monotonic()

        assert waiting.give_up_at > goes_on_at


def test_a_call_that_blocks_is_made_by_a_child_and_one_that_dies_of_it_has_said_nothing(
    run_of: MakeRun,
) -> None:
    def die() -> str:
        return "here" if os.getpid() == here else os._exit(1)

    run, here = run_of(1), os.getpid()
    with closing(open_storage("memory://")) as storage:
        waiting = waiting_of(run, storage)

        said = waiting.call_blocking(lambda: str(os.getppid()), until=time.monotonic() + PATIENCE_S)
        nothing = waiting.call_blocking(die, until=time.monotonic() + PATIENCE_S)

    assert (said, nothing) == (str(here), "")


def test_a_call_that_blocks_is_given_up_with_the_end_of_the_run_and_leaves_no_child(
    run_of: MakeRun, tmp_path: Path
) -> None:
    class StopsMeanwhile(Part):
        def next_at(self) -> float:
            return 0.0

        def turn(self) -> None:
            if told.exists() and told.read_text():
                run.stop.begin(now=True, why="a test")

    def say_nothing() -> str:
        told.write_text(str(os.getpid()))
        if os.getpid() != here:
            signal.pause()
        return "awake"

    run, here, told = run_of(1), os.getpid(), tmp_path / "pid"
    with closing(open_storage("memory://")) as storage:
        waiting = waiting_of(run, storage, urgent=StopsMeanwhile())

        said = waiting.call_blocking(say_nothing, until=time.monotonic() + PATIENCE_S)

    assert said == ""
    with pytest.raises(ProcessLookupError):
        os.kill(int(told.read_text()), 0)
    assert run.stop.has_begun


def test_a_call_that_blocks_is_made_here_where_no_child_can_be_forked(
    run_of: MakeRun, one_more_thread: threading.Thread
) -> None:
    run = run_of(1)
    with closing(open_storage("memory://")) as storage:
        waiting = waiting_of(run, storage)
        said = waiting.call_blocking(lambda: str(os.getpid()), until=time.monotonic() + PATIENCE_S)

    assert said == str(os.getpid())


@pytest.mark.fault(55)
def test_signals_to_stop_are_one_until_the_first_was_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """However late the handler of another one runs."""
    monkeypatch.setattr("qml_mp.supervisor.parts.signals._ONE_WISH_S", 0.0)
    taken = []

    with SignalInbox() as inbox:
        for numbers in ((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), (signal.SIGTERM,)):
            for number in numbers:
                os.kill(os.getpid(), number)
            taken.append(inbox.take())

    assert taken == [[signal.SIGINT, signal.SIGHUP], [signal.SIGTERM]]


def test_a_reload_of_a_program_in_memory_declares_it_again_and_is_told_as_none_of_new_code(
    run_of: MakeRun,
) -> None:
    run, source = run_of(1), LoadedProgram(program=QmlApp("memory://").program)
    declarations = DeclarationsLoop(run)
    before = declarations.due_at()

    Reload(run, source, new_code=NewCode(), declarations=declarations).begin()

    assert (before, declarations.due_at()) == (float("inf"), 0)
    answer = run.registration.says.answers.reload
    assert answer is not None
    assert (answer.state, answer.code) == (ReloadState.REPLACING, ReloadedCode.OF_START)


@pytest.mark.parametrize("wants", [{"wants_failures": True}, {"traces": True}], ids=str)
def test_while_new_workers_cannot_boot_those_of_the_code_before_are_woken_for_the_calls_that_it_wants(
    run_of: MakeRun, wants: dict[str, Any]
) -> None:
    run = run_of(1)
    run.registration.serve(("default",), AppFacts(methods=("old",), **wants))
    reload = Reload(run, SOURCE, new_code=NewCode(), declarations=DeclarationsLoop(run))
    calls, due = FailureCallLoop(run), []

    with stand_in_of(run):
        reload._answer_with(ReloadAnswer(began_at=0.0, state=ReloadState.LOOKING))
        reload._take_over(AppFacts(methods=("new",)))
        due.append(calls.due_at() < NEVER)
        run.pool.boots.error = "MemoryError"
        reload.turn()
        due.append(calls.due_at() < NEVER)
    reload.turn()
    due.append(calls.due_at() < NEVER)

    assert due == [False, True, False]


@pytest.mark.parametrize("wants", [{"wants_failures": True}, {"traces": True}], ids=str)
def test_what_the_code_before_wants_to_hear_of_its_jobs_is_stored_until_workers_of_new_code_do_them(
    run_of: MakeRun, storage: Storage, wants: dict[str, Any]
) -> None:
    run, hooked = run_of(1), []
    old, new = AppFacts(methods=("work", "old"), **wants), AppFacts(methods=("work", "new"))
    declarations = DeclarationsLoop(run)
    reload = reload_from(old, run, storage, declarations)

    def look() -> None:
        reload.turn()
        declarations.tick(storage)
        hooked.append(hooked_methods(storage))

    with stand_in_of(run):
        reload._take_over(new)
        look()  # new workers are on their way
        storage.declare_hooks(["work"], calls=False, traces=False)  # by another server with the new code
        run.pool.boots.error = "MemoryError"
        look()
        reload._take_over(new)  # it is mended
        look()
    look()  # the last one has died, and storage may not know it yet
    with stand_in_of(run) as worker:
        worker.worker_id = "one of the new code"
        look()
        worker.ready_at = 0.0
        look()

    assert hooked == [*4 * [{"work", "old"}], {"work", "old"}, {"old"}]


def test_hooks_of_new_code_stand_alone_once_a_worker_of_it_is_ready_and_not_where_another_cannot_boot(
    run_of: MakeRun, storage: Storage
) -> None:
    run, hooked = run_of(2), []
    declarations = DeclarationsLoop(run)
    reload = reload_from(TELLING, run, storage, declarations)

    def look() -> None:
        reload.turn()
        declarations.tick(storage)
        hooked.append(hooked_methods(storage))

    with stand_in_of(run):
        reload._take_over(AppFacts(methods=("work",)))
        look()
        reading, newer = stand_in(number=2)
        newer.worker_id, newer.ready_at = "one of the new code", 0.0
        run.pool._workers[newer.worker_id] = newer
        look()
        run.pool.boots.error = "MemoryError"
        look()
    newer.channels.close()
    os.close(reading)

    assert hooked == [{"work"}, set(), {"work"}]


def test_a_worker_that_is_told_to_leave_brings_the_hooks_of_its_code_back_at_no_later_reload(
    run_of: MakeRun, storage: Storage
) -> None:
    run, newer_code = run_of(2), AppFacts(methods=("work",))
    declarations = DeclarationsLoop(run)
    reload = reload_from(TELLING, run, storage, declarations)
    hooked = []

    def look() -> None:
        reload.turn()
        declarations.tick(storage)
        hooked.append((hooked_methods(storage), run.registration.wants_failures))

    with stand_in_of(run) as worker:
        reload._take_over(newer_code)
        reading, newer = stand_in(number=2)
        newer.worker_id, newer.ready_at = "one of the new code", 0.0
        run.pool._workers[newer.worker_id] = newer
        worker.leaving = True  # after its job, which is long
        look()
        reload._take_over(newer_code)
        look()
        run.pool.boots.error = "MemoryError"
        look()
        del run.pool._workers[worker.worker_id]
        look()
    newer.channels.close()
    os.close(reading)

    assert hooked == 4 * [(set(), False)]


def test_a_reload_of_a_server_without_workers_leaves_no_hooks_of_the_code_before(
    run_of: MakeRun, storage: Storage
) -> None:
    run = run_of(0)
    declarations = DeclarationsLoop(run)
    reload = reload_from(TELLING, run, storage, declarations)

    reload._take_over(AppFacts(methods=("work",)))
    reload.turn()
    declarations.tick(storage)

    assert hooked_methods(storage) == set()


def test_the_methods_of_workers_that_stay_are_known_although_the_next_reload_is_refused(
    run_of: MakeRun, storage: Storage
) -> None:
    run = run_of(1)
    reload = reload_from(TELLING, run, storage, DeclarationsLoop(run))

    with stand_in_of(run):
        reload._take_over(AppFacts(methods=("new",)))
        reload._answer_with(state=ReloadState.LOOKING)  # while a worker of that code boots, and cannot
        reload.turn()
        run.pool.boots.error = "MemoryError"
        reload._refuse("The newest code cannot be imported", "SyntaxError")
        reload.turn()

        assert set(run.registration.says.methods or ()) == {"work", "new"}


TELLING = AppFacts(methods=("work",), wants_failures=True)


def reload_from(facts: AppFacts, run: Run, storage: Storage, declarations: DeclarationsLoop) -> Reload:
    """The reload, which has begun, of a server whose code so far storage has followed."""
    run.registration.serve(("default",), facts)
    declarations.declare(facts)
    declarations.tick(storage)
    reload = Reload(run, SOURCE, new_code=NewCode(), declarations=declarations)
    reload._answer_with(ReloadAnswer(began_at=0.0, state=ReloadState.LOOKING))
    return reload


@pytest.mark.parametrize(("wants", "hooked"), [(True, {"work", "old"}), (False, {"new"})], ids=str)
def test_a_return_to_the_old_code_after_a_reload_that_replaced_nobody_ends_with_its_hooks_alone(
    run_of: MakeRun, storage: Storage, wants: bool, hooked: set[str]
) -> None:
    run = run_of(1)
    old = AppFacts(methods=("work", "old"), wants_failures=wants)
    new = AppFacts(methods=("work", "new"), wants_failures=not wants)
    declarations = DeclarationsLoop(run)
    reload = reload_from(old, run, storage, declarations)

    with stand_in_of(run):
        reload._take_over(new)
        run.pool.boots.error = "MemoryError"
        reload.turn()
        declarations.tick(storage)
        of_both = hooked_methods(storage)
        reload._take_over(old)
    with stand_in_of(run) as worker:
        worker.worker_id, worker.ready_at = "one that was forked for the return", 0.0
        reload.turn()
        declarations.tick(storage)

    assert "work" in of_both
    assert hooked_methods(storage) == hooked  # "new" as each method that code has no more
    assert run.registration.wants_failures == wants


def hooked_methods(storage: Storage) -> set[str]:
    """Those of whose jobs something is stored for code to hear of."""
    return set(hooks_of(storage, "work", "old", "new"))


def test_a_host_waits_on_for_a_server_that_is_not_ready_because_everything_stood_still(
    clock: HandClock, sleeping: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(_: object, *, until: float) -> None:
        clock.seconds = until if clock.seconds else 3600.0
        if clock.seconds > 3600:
            os.write(its_end, READY.encode())

    monkeypatch.setattr("qml_mp.embedding.remote.time", SimpleNamespace(monotonic=clock.monotonic))
    monkeypatch.setattr("qml_mp.embedding.remote.wait_for", wait)
    (status_fd, its_end), (reading, host_fd) = os.pipe(), os.pipe()

    RemoteSupervisor(sleeping, host_fd=host_fd, status_fd=status_fd).wait_until_ready(60)

    for fd in (status_fd, its_end, reading, host_fd):
        os.close(fd)


def test_a_worker_too_many_is_told_to_leave_once_its_pipe_has_room(run_of: MakeRun) -> None:
    pool = run_of(1).pool
    reading, worker = a_worker(pool, number=2)
    while send(worker.channels.pipe_fd, Message(kind=Kind.WAKE)):
        pass

    pool.turn()
    was_told = worker.leaving
    os.read(reading, 1 << 20)
    pool.turn()

    assert (was_told, worker.leaving) == (False, True)
    os.close(reading)
    worker.channels.close()


def test_workers_that_boot_are_not_too_slow_because_everything_stood_still(
    run_of: MakeRun, clock: HandClock, sleeping: Child
) -> None:
    pool = run_of(1, clock).pool
    reading, worker = a_worker(pool, number=1)
    worker.child = sleeping
    pool.turn()

    clock.seconds += 3600  # as of a container that was paused
    pool.turn()
    was_too_slow = worker.is_too_slow
    for _ in range(70):
        clock.seconds += 1
        pool.turn()

    assert (was_too_slow, worker.is_too_slow) == (False, True)
    os.close(reading)
    worker.channels.close()


@pytest.mark.parametrize(("activity", "jobs_done"), [(Activity.RUNNING, 0), (Activity.IDLE, 1)])
def test_the_pause_ends_with_a_worker_that_has_had_a_job_however_short_its_life(
    run_of: MakeRun, clock: HandClock, activity: Activity, jobs_done: int
) -> None:
    run = run_of(1, clock)
    run.pool.boots.was_useless(clock.monotonic() - 1, was_ready=True)

    with stand_in_of(run) as worker:
        worker.note_ready(clock.monotonic())
        slot = worker.slots.writer(0)
        slot.jobs_done = jobs_done
        slot.show(SlotView(activity=activity))
        run.pool.turn()

    assert run.pool.boots.useless == 0


def test_workers_that_died_soon_are_no_trouble_any_more_where_nobody_wants_others(
    run_of: MakeRun, clock: HandClock
) -> None:
    run, troubles = run_of(2, clock), list[str | None]()

    with stand_in_of(run) as worker:
        worker.note_ready(clock.monotonic())
        for _ in range(5):
            run.pool.boots.was_useless(clock.monotonic(), was_ready=True)
        for size in (3, 1):
            run.pool.resize(size)
            troubles.append(run.pool.trouble())

    assert [trouble is None for trouble in troubles] == [False, True]


def test_the_pause_ends_a_second_after_the_worker_that_lives_on_was_ready(
    run_of: MakeRun, clock: HandClock
) -> None:
    run, useless = run_of(1, clock), list[int]()
    pool = run.pool
    pool.boots.was_useless(clock.monotonic() - 1, was_ready=True)

    with stand_in_of(run) as worker:
        worker.note_ready(clock.monotonic())
        for clock.seconds in (0.9, 1.0):
            pool.turn()
            useless.append(pool.boots.useless)

    assert useless == [1, 0]


def test_a_slot_is_free_for_another_worker_after_all_others_whichever_of_them_are_taken(
    run_of: MakeRun,
) -> None:
    """What a dead worker has left there is the guardian's as long as possible."""
    run, others = run_of(1), range(1, 65)

    with stand_in_of(run):  # in the first slot
        given = [run.pool._free_slot() for _ in range(128)]

    assert given == [*others, *others]


def test_a_worker_that_may_not_be_signalled_is_told_of_once_and_holds_up_no_stop(
    run_of: MakeRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    run = run_of(1)
    reading, worker = a_worker(run.pool, number=1)
    monkeypatch.setattr(os, "kill", refuse)
    monkeypatch.setattr(os, "killpg", refuse)

    worker.ask_for_stack()
    run.stop.begin(now=False, why="a test")
    could_stop_before = run.stop.is_complete
    for _ in range(3):
        run.pool.kill_all(CancelReason.SHUTDOWN)

    assert (could_stop_before, run.stop.is_complete) == (False, True)
    assert run.pool.abandon_lost()
    assert len(run.pool) == 0
    told = [record.message for record in caplog.records if "may not be signalled" in record.message]
    assert len(told) == 1
    os.close(reading)


def test_a_job_above_the_hard_limit_of_memory_is_killed_also_while_nothing_can_be_read_of_it(
    run_of: MakeRun, clock: HandClock, sleeping: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where it has written over what its worker shows."""
    monkeypatch.setattr("qml_mp.host.rss_bytes", lambda _: 2 << 20)
    run = run_of(1, clock, max_memory_hard="1MiB")
    key = ClaimKey(job_id=new_job_id(), claim_seq=1)
    reading, worker = a_worker(run.pool, number=1)
    worker.child = sleeping
    run.pool.slots.writer(0).show(SlotView(activity=Activity.RUNNING, key=key))
    run.pool.turn()

    run.pool.slots._memory[_BODY_AT] = 77
    MemoryWatch(run).turn()

    assert (worker.killed_for, worker.killed_key) == (CancelReason.MEMORY, key)
    os.close(reading)
    worker.channels.close()


@pytest.mark.parametrize(("rung", "kept"), [(Rung.INTERRUPT, False), (Rung.DUMP_STACK, True)])
def test_printing_all_stacks_leaves_one_that_is_for_the_record_of_a_kill(
    run_of: MakeRun, sleeping: Child, rung: Rung, kept: bool
) -> None:
    run, key = run_of(1), ClaimKey(job_id=new_job_id(), claim_seq=1)
    reading, worker = a_worker(run.pool, number=1)
    worker.child = sleeping
    run.pool.slots.writer(0).show(SlotView(activity=Activity.RUNNING, key=key))
    worker.look(time.monotonic())

    worker.push(rung, key, CancelReason.TIMEOUT, time.monotonic())
    os.write(worker.channels.stack_fd, b"Current thread (most recent call first):\n")
    worker.forget_stack()

    assert (worker.stack() is not None) == kept
    assert (worker.last_stack().of(key) is not None) == kept
    os.close(reading)
    worker.channels.close()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EAGAIN, errno.ENOMEM])
def test_a_pool_without_room_for_another_worker_says_so_and_does_not_ask_for_turns_in_the_past(
    run_of: MakeRun, clock: HandClock, number: int
) -> None:
    pool = run_of(1, clock).pool
    pool.boots.was_useless(clock.monotonic() - 60)  # whose pause is over
    due_before = pool.next_at()

    assert pool._room.ran_out(OSError(number, "full"), running=0, wanted=1)

    assert "Fewer workers run than are wanted" in str(pool.trouble())
    assert pool.is_whole  # as far as it goes
    assert due_before <= clock.monotonic() < pool.next_at()
    pool._room.freed()
    assert pool.next_at() == due_before


def test_a_start_that_ends_as_a_worker_cannot_boot_has_failed_also_if_another_is_ready_a_moment_later(
    run_of: MakeRun,
) -> None:
    run = run_of(2)
    run.pool.boots.error = "No module named 'no_such_library'"
    Reaper(run, settling=SettleLoop(run)).turn()

    run.pool.boots.succeeded()

    assert run.stop.has_begun
    assert isinstance(run.stop.error, WorkerBootError)


@pytest.mark.parametrize(("grace_s", "is_told"), [(5, False), (40, False), (600, True)])
def test_an_orphan_grace_of_which_only_a_part_counts_is_told(
    run_of: MakeRun, caplog: pytest.LogCaptureFixture, grace_s: int, is_told: bool
) -> None:
    Guardian(run_of(1, orphan_grace=timedelta(seconds=grace_s)))

    assert ("orphan_grace is 10m, of which 40s count" in caplog.text) is is_told
    assert bool(caplog.records) is is_told


def test_a_server_that_has_worked_without_workers_goes_on_where_the_first_cannot_boot(
    run_of: MakeRun,
) -> None:
    run = run_of(0)
    run.pool.boots.none_is_wanted()

    run.pool.resize(1)
    run.pool.boots.error = "No module named 'no_such_library'"
    Reaper(run, settling=SettleLoop(run)).turn()
    trouble = run.pool.trouble()
    run.pool.boots.none_is_wanted()  # again

    assert not run.stop.has_begun
    assert trouble == "New workers cannot boot: No module named 'no_such_library'"
    assert run.pool.trouble() is None


def test_a_server_that_has_worked_without_workers_goes_on_where_a_thread_keeps_any_from_following(
    run_of: MakeRun, one_more_thread: threading.Thread, clock: HandClock
) -> None:
    run = run_of(0, clock)
    run.pool.boots.none_is_wanted()
    guardian = Guardian(run)

    guardian.start_if_missing()
    run.pool.resize(1)
    for _ in range(10):
        clock.seconds += 5  # past each pause
        run.pool.spawn_workers()

    assert "a handler's thread" in str(guardian.trouble())
    assert "a handler's thread" in str(run.pool.trouble())


def test_a_thread_that_begins_once_workers_were_ready_keeps_others_from_following_and_ends_no_server(
    run_of: MakeRun, one_more_thread: threading.Thread, caplog: pytest.LogCaptureFixture
) -> None:
    clock = HandClock()
    run = run_of(2, clock)
    reading, worker = a_worker(run.pool, number=1)
    worker.ready_at = clock.monotonic()
    run.pool.boots.succeeded()
    guardian = Guardian(run)

    for number in range(10):
        one_more_thread.name = f"a handler's thread {number}"  # one for each report
        clock.seconds += 5  # past each pause
        run.pool.spawn_workers()
        guardian._not_before = 0.0
        guardian.start_if_missing()

    assert "a handler's thread" in str(run.pool.trouble())
    assert "a handler's thread" in str(guardian.trouble())
    assert len(run.pool) == 1
    assert run.pool.is_whole  # as far as it goes: a burst ends
    told = [record.levelname for record in caplog.records if "Cannot fork: " in record.message]
    assert told == ["WARNING", "ERROR", "ERROR"]  # of workers, of the guardian, and that it lasts
    assert "thread 4" in str(run.pool.boots.error)  # when it was taken to last: told then, and not again
    os.close(reading)


def test_a_burst_ends_where_what_it_leaves_takes_too_long_to_be_counted(
    run_of: MakeRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def take_too_long(*_: object, **__: object) -> None:
        raise StorageUnavailable("canceling statement due to statement timeout")

    run = run_of(0)
    with closing(open_storage("memory://")) as storage:
        storage.enqueue(Job.new("unserved"))
        monkeypatch.setattr(storage, "later_work", take_too_long)

        BurstLoop(run, settling=SettleLoop(run), wait=timedelta()).tick(storage)

    assert run.stop.has_begun
    assert "Left: 1 job, as this server has no worker (-w)" in caplog.messages
    assert (
        "Left: what else cannot be counted (canceling statement due to statement timeout)" in caplog.messages
    )


def test_new_code_that_cannot_be_looked_at_because_of_a_thread_is_told_and_ends_no_server(
    run_of: MakeRun, one_more_thread: threading.Thread
) -> None:
    run = run_of(1)
    reload = Reload(run, SOURCE, new_code=NewCode(), declarations=DeclarationsLoop(run))

    reload.begin()
    reload.start_if_asked()

    assert "a handler's thread" in str(reload.trouble())
    assert not reload.is_under_way


def test_a_server_whose_workers_are_all_gone_ends_when_a_thread_that_lasts_keeps_others_from_following(
    run_of: MakeRun, one_more_thread: threading.Thread
) -> None:
    clock = HandClock()
    pool = run_of(1, clock).pool
    pool.boots.succeeded()

    for _ in range(4):  # it may be a report to somebody, and end
        clock.seconds += 5
        pool.spawn_workers()

    clock.seconds += 5
    with pytest.raises(ConfigurationError, match="a handler's thread"):
        pool.spawn_workers()


def test_a_server_with_threads_at_its_start_ends_at_once(
    run_of: MakeRun, one_more_thread: threading.Thread
) -> None:
    run = run_of(1)

    with pytest.raises(ConfigurationError, match="a handler's thread"):
        Guardian(run).start_if_missing()
    with pytest.raises(ConfigurationError, match="a handler's thread"):
        run.pool.spawn_workers()


@pytest.mark.parametrize("fails_later", [False, True])
def test_a_pool_that_lacks_workers_asks_for_no_turn_in_the_past_while_the_server_stops(
    run_of: MakeRun, fails_later: bool
) -> None:
    clock = HandClock()
    run = run_of(1, clock)
    run.pool.boots.was_useless(clock.monotonic())

    run.stop.begin(now=False, why="a test")

    if fails_later:
        run.pool.boots.was_useless(clock.monotonic())
    clock.seconds += 60  # past each pause
    assert run.pool.next_at() > clock.monotonic()


def test_each_series_is_reported_where_more_of_them_grow_than_fit_in_a_report(run_of: MakeRun) -> None:
    run, heard = run_of(1), set[str]()
    reports = ServerReports(run, loops=[])

    for _ in range(3):
        for number in range(MOST_NAMES + 50):
            name = f"m{number}"
            run.pool.totals.add(method=name, queue="q", ending=Ending.SUCCEEDED, waited_us=0, ran_us=1)
        heard |= {each.method for each in reports.make().ends}

    assert len(heard) == MOST_NAMES + 1
    assert OTHER in heard


def test_a_cause_of_which_no_worker_has_died_yet_is_reported_with_0(run_of: MakeRun) -> None:
    run = run_of(1)
    reports = ServerReports(run, loops=[])

    before = reports.make().deaths
    run.counts.deaths["SIGKILL"] += 1
    run.counts.deaths["SIGXCPU"] += 1
    after = reports.make().deaths

    assert before["SIGKILL"] == before["out_of_memory"] == before["timeout"] == before["left"] == 0
    assert after == {**before, "SIGKILL": 1, "SIGXCPU": 1}


def test_no_attempts_are_shown_by_a_new_metrics_process_until_it_has_heard_of_all(run_of: MakeRun) -> None:
    run = run_of(1)
    reports = ServerReports(run, loops=[])
    for ending in (Ending.SUCCEEDED, Ending.RETRIED):  # more series than fit in a report
        for number in range(80):
            run.pool.totals.add(method=f"m{number}", queue="q", ending=ending, waited_us=0, ran_us=1)

    shown: list[set[float]] = []
    for _ in range(2):  # the process, and the one that follows it
        reports.begin()
        told = ToldEnds()
        for _ in range(3):
            told.add(reports.make())
            shown.append(attempts_of_each(told))

    assert shown == 2 * [set(), {2.0}, {2.0}]


def attempts_of_each(told: ToldEnds) -> set[float]:
    """What the histograms of how long attempts ran say: how many of a method there are."""
    return {
        sample.value
        for family in families_of_ends(told.numbers())
        for sample in family.samples
        if sample.name == "qml_mp_job_running_seconds_count"
    }


def test_a_worker_has_the_time_that_its_spans_may_take_before_it_must_have_left(
    run_of: MakeRun, clock: HandClock
) -> None:
    flush_timeout = timedelta(seconds=7)
    app = QmlApp("sqlite:////nowhere/jobs.db", tracing=OpenTelemetry(flush_timeout=flush_timeout))
    run = run_of(1, clock)
    reading, worker = a_worker(run.pool, number=1)
    with ExitStack() as stack:
        for fd in (reading, *worker.channels.fds):
            stack.callback(os.close, fd)
        run.registration.serve((), read_facts(probe(LoadedProgram(program=app.program, label="app"))))

        run.stop.begin(now=False, why="a test")
        assert run.stop.plan is not None
        asked_at, pusher = run.stop.plan.ask_at, Pusher(run)

        waits_for_storage_s = pusher.next_at() - asked_at
        run.pool.slots.writer(0).show(SlotView(activity=Activity.LEAVING))
        worker.look(asked_at)
        exports_s = pusher.next_at() - asked_at

        assert 0 < waits_for_storage_s <= 1
        assert flush_timeout.total_seconds() < exports_s <= flush_timeout.total_seconds() + 1


@pytest.mark.parametrize(
    ("activity", "is_told", "has_outcome", "is_killed"),
    [
        (Activity.LEAVING, True, False, True),
        (Activity.LEAVING, False, False, True),  # of its own, to be replaced
        (Activity.IDLE, True, False, True),
        (Activity.IDLE, False, False, False),
        (Activity.FETCHING, True, True, False),  # it gives claims back, and storage does not take them
        (Activity.FINISHING, True, False, False),
        (Activity.RUNNING, True, False, False),
        (Activity.BOOTING, True, False, False),  # which has a limit of its own
    ],
)
def test_a_worker_is_killed_on_its_way_out_only_when_it_has_nothing_else_to_do(
    run_of: MakeRun, sleeping: Child, activity: Activity, is_told: bool, has_outcome: bool, is_killed: bool
) -> None:
    run, key = run_of(1, clock := HandClock()), ClaimKey(job_id=new_job_id(), claim_seq=1)
    reading, worker = a_worker(run.pool, number=1)
    is_of_a_job = activity in (Activity.RUNNING, Activity.FINISHING)
    view = SlotView(activity=activity, key=key if is_of_a_job else None, limit=timedelta(days=1))
    worker.child = sleeping
    if activity is not Activity.BOOTING:
        worker.note_ready(clock.monotonic())
    if is_told:
        worker.leave()
    if has_outcome:
        worker.channels.ended.append(key, Release(reason="paused", not_begun=True))
    run.pool.slots.writer(0).show(view)
    worker.look(clock.monotonic())
    pusher = Pusher(run)

    clock.seconds += 2.0  # in which it may flush what it has printed
    worker.look(clock.monotonic())
    pusher.turn()
    was_killed_early = worker.killed_for is not None
    clock.seconds += 61.0
    worker.look(clock.monotonic())
    pusher.turn()

    assert not was_killed_early
    assert (worker.killed_for is not None) == is_killed
    os.close(reading)
    worker.channels.close()


def test_no_limit_goes_on_once_the_hook_was_told_of_an_end(run_of: MakeRun) -> None:
    """The worker may wait for storage next, with an outcome in hand."""
    run, execution = run_of(1, HandClock()), processor_of(lambda: None).resolve(claim_of())
    slots, shown = run.pool.slots, list[SlotView | None]()

    def hook(_: StateChange) -> None:
        shown.append(slots.read(0))

    with closing(Bell()) as bell:
        display = Display(slots.writer(0), bell=bell, title="a test")
        changes = StateChanges(hook, display=display, events=new_emitter())
        deleted = Finished(accepted=True, state=StateName.DELETED, row=lambda: execution.job)
        changes.finished(execution, deleted, is_told=False)
    shown.append(slots.read(0))

    activities = [view.activity for view in shown if view is not None]
    assert activities == [Activity.RUNNING, Activity.FINISHING]


def test_what_the_hook_makes_of_the_job_that_it_is_told_of_is_not_what_the_job_gets(run_of: MakeRun) -> None:
    run = run_of(1, HandClock())
    execution = processor_of(lambda: None).resolve(claim_of({"a": [1]}, metadata={"of": ["b"]}))

    def hook(change: StateChange) -> None:
        payload: Any = change.job.payload
        payload.pop("a").clear()
        metadata: Any = change.job.metadata
        metadata.pop("of").clear()

    with closing(Bell()) as bell:
        display = Display(run.pool.slots.writer(0), bell=bell, title="a test")
        StateChanges(hook, display=display, events=new_emitter()).claimed(execution)

    assert (execution.job.payload, execution.job.metadata) == ({"a": [1]}, {"of": ["b"]})


def test_that_the_hook_failed_is_told_with_its_attempt(
    run_of: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    run, claim = run_of(1, HandClock()), claim_of(failures=1)
    execution = processor_of(lambda: None).resolve(claim)

    def hook(_: StateChange) -> None:
        raise ValueError("no such channel")

    with closing(Bell()) as bell:
        display = Display(run.pool.slots.writer(0), bell=bell, title="a test")
        StateChanges(hook, display=display, events=new_emitter()).claimed(execution)

    [told] = [record for record in caplog.records if "hook failed" in record.message]
    assert keys_of(told) == (claim.job.id, "f", 2, "w-1")
    line = json.loads(JsonFormatter().format(told))
    assert line["message"] == "The state-change hook failed: ValueError: no such channel"
    assert line["traceback"].endswith("ValueError: no such channel")


def test_a_cancel_pushes_the_job_and_no_hook_that_is_told_of_its_end(
    run_of: MakeRun, sleeping: Child
) -> None:
    run, execution = run_of(1, clock := HandClock()), processor_of(lambda: None).resolve(claim_of())
    reading, worker = a_worker(run.pool, number=1)
    worker.child = sleeping
    key, pusher, pushed_to = execution.claim.key, Pusher(run), list[set[Rung]]()

    def hook(change: StateChange) -> None:
        clock.seconds = time.monotonic() + 60.0  # as if it had taken so long, of a limit of five minutes
        worker.look(clock.monotonic())
        pusher.turn()
        pushed_to.append(set(worker.rungs_of(key)))

    with closing(Bell()) as bell:
        display = Display(run.pool.slots.writer(0), bell=bell, title="a test")
        changes = StateChanges(hook, display=display, events=new_emitter())
        worker.cancel(key, run.graces.cancel(asked=clock.monotonic()))
        changes.given_back(execution)
        deleted = Finished(accepted=True, state=StateName.DELETED, row=lambda: execution.job)
        changes.finished(execution, deleted, is_told=False)

        display.running(execution)  # as one that it does reach
        worker.look(clock.monotonic())
        pusher.turn()
        pushed_to.append(set(worker.rungs_of(key)))

    assert pushed_to == [set(), set(), {Rung.NONE, Rung.ASK}]
    os.close(reading)
    worker.channels.close()
