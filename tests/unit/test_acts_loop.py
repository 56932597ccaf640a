"""Tests: what is asked of the server is done once, whichever reply of storage is lost, and whenever."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from qml_mp.child.source import NamedProgram
from qml_mp.cli.asking import await_act
from qml_mp.cli.commands import signals
from qml_mp.cli.local_servers import LocalServer
from qml_mp.core.acts import Act, ActKind, ActRequest, ActState, Asker
from qml_mp.core.answers import ReloadAnswer, ReloadedCode, ReloadState, StacksAnswer
from qml_mp.core.server_info import ServerInfo
from qml_mp.errors import StorageUnavailable
from qml_mp.ipc.slot import Activity, SlotView
from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.acts import ActDesk, ActsLoop, Answer
from qml_mp.supervisor.loops.declarations import DeclarationsLoop
from qml_mp.supervisor.loops.settle import SettleLoop
from qml_mp.supervisor.parts import acts
from qml_mp.supervisor.parts.acts import CarryingOut
from qml_mp.supervisor.parts.reload import NewCode, Reload
from qml_mp.supervisor.parts.signals import StackDump
from qml_mp.supervisor.run import Run
from tests.storage.helpers import DONE, KEEP, claim_new
from tests.unit.stand_ins import stand_in_of


class Losing:
    """A storage that does what it is told, and whose n-th reply is lost."""

    def __init__(self, storage: Storage, *, nth: int) -> None:
        self._storage = storage
        self._left = nth

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._storage, name)

        def call(*arguments: Any, **named: Any) -> Any:
            reply = operation(*arguments, **named)
            self._left -= 1
            if self._left == 0:
                raise StorageUnavailable("the reply is lost")
            return reply

        return call


class Turning:
    """A storage whose server has a turn before each look at an act."""

    def __init__(self, storage: Storage, turn: Callable[[], None]) -> None:
        self._storage = storage
        self._turn = turn

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def get_act(self, act_id: str) -> Act | None:
        self._turn()
        return self._storage.get_act(act_id)


@pytest.fixture
def desk() -> ActDesk:
    return ActDesk()


@pytest.fixture
def loop(run: Run, desk: ActDesk) -> ActsLoop:
    return ActsLoop(run, desk=desk, settling=SettleLoop(run))


def ask(storage: Storage, run: Run, kind: ActKind = ActKind.RELOAD) -> ActRequest:
    request = ActRequest(kind=kind, server_id=run.registration.id, by=Asker(who="anna", where="cli"))
    storage.ask(request)
    return request


def act_in(storage: Storage, request: ActRequest) -> Act:
    act = storage.get_act(request.id)
    assert act is not None
    return act


@pytest.mark.parametrize("nth", range(1, 7))
def test_whichever_reply_is_lost_it_is_done_once_and_told(
    nth: int, storage: Storage, run: Run, desk: ActDesk, loop: ActsLoop
) -> None:
    request = ask(storage, run)
    losing: Any = Losing(storage, nth=nth)
    done: list[str] = []

    for _ in range(6):
        try:
            loop.run(losing)
        except StorageUnavailable:
            assert loop.due_at() <= run.clock.monotonic()  # tried again
        for act in desk.take_new():
            done.append(act.id)
            desk.answer(act, Answer(state=ActState.TAKEN, said="half"))
            desk.answer(act, Answer(state=ActState.DONE, said="whole"))

    assert done == [request.id]
    act = act_in(storage, request)
    assert (act.state, act.said) == (ActState.DONE, "whole")
    assert desk.ids == frozenset()


def test_an_idle_loop_is_not_due_until_it_hears_of_a_commit_or_has_something_to_say(
    storage: Storage, run: Run, desk: ActDesk, loop: ActsLoop
) -> None:
    loop.run(storage)
    idle = loop.due_at()
    loop.hasten()
    hastened = loop.due_at()
    ask(storage, run)
    loop.run(storage)
    (act,) = desk.take_new()
    taken = loop.due_at()
    desk.answer(act, Answer(state=ActState.DONE))

    assert (idle, taken) == (float("inf"), float("inf"))
    assert hastened < float("inf")
    assert loop.due_at() == 0.0


def test_a_reload_of_a_server_that_is_about_to_stop_is_not_told_as_code_that_cannot_boot(
    storage: Storage, run: Run, desk: ActDesk, loop: ActsLoop, capsys: pytest.CaptureFixture[str]
) -> None:
    reload = Reload(run, NamedProgram(spec="an:app"), new_code=NewCode(), declarations=DeclarationsLoop(run))
    carrying_out = CarryingOut(run, desk=desk, reload=reload, stacks=StackDump(run))
    [info] = storage.list_servers()
    far = replace(info, process=replace(info.process, host="another machine"))

    def turn() -> None:
        loop.run(storage)
        carrying_out.turn()
        loop.run(storage)

    run.stop.begin(now=False, why="a test")
    served: Any = Turning(storage, turn)
    code = signals._reload(served, far, within=timedelta(minutes=1))

    assert "the server is about to stop" in capsys.readouterr().err
    assert code == 1


def test_whoever_waits_for_an_act_rides_out_an_outage(
    storage: Storage, run: Run, desk: ActDesk, loop: ActsLoop
) -> None:
    request = ask(storage, run)
    asked = act_in(storage, request)
    loop.run(storage)
    (act,) = desk.take_new()
    desk.answer(act, Answer(state=ActState.DONE))
    loop.run(storage)
    losing: Any = Losing(storage, nth=1)

    seen = await_act(losing, asked, wait=timedelta(minutes=1))

    assert (asked.state.is_final, seen.state) == (False, ActState.DONE)


def test_whoever_waits_for_a_server_of_this_machine_rides_out_an_outage(storage: Storage, run: Run) -> None:
    done = ReloadAnswer(began_at=1.0, state=ReloadState.DONE, workers=1, replaced=1)
    run.registration.answer_reload(done)
    run.registration.answer_stacks(StacksAnswer(began_at=1.0, workers=()))
    run.registration.update(storage)
    [info] = storage.list_servers()
    first, second = Losing(storage, nth=1), Losing(storage, nth=1)
    minute = timedelta(minutes=1)

    with LocalServer(info) as server:
        answer = signals._await_reload(server, first, since=0.0, within=minute)  # type: ignore[arg-type]
        stacks = signals._await_stacks(server, second, since=0.0)  # type: ignore[arg-type]

    assert answer == done
    assert stacks == StacksAnswer(began_at=1.0, workers=())


def test_a_storage_that_is_away_for_one_of_several_servers_keeps_nothing_from_the_others(
    storage: Storage, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    [info] = storage.list_servers()
    servers = [replace(info, id=each, name=each) for each in ("a", "b", "c")]
    told: list[str] = []

    def tell(server: ServerInfo) -> int:
        told.append(server.name)
        if server.name == "a":
            raise StorageUnavailable("the database restarts")
        return 0

    codes = signals._each(servers, tell)

    assert (codes, told) == ([4, 0, 0], ["a", "b", "c"])
    assert "the database restarts" in capsys.readouterr().err


def test_the_same_answer_is_written_once(storage: Storage, run: Run, desk: ActDesk, loop: ActsLoop) -> None:
    ask(storage, run)
    loop.run(storage)
    (act,) = desk.take_new()
    for _ in range(3):
        desk.answer(act, Answer(state=ActState.TAKEN, said="1 of 2"))

    first = desk.untold
    loop.run(storage)
    desk.answer(act, Answer(state=ActState.TAKEN, said="1 of 2"))

    assert first == [(act, Answer(state=ActState.TAKEN, said="1 of 2"))]
    assert desk.untold == []


def test_what_was_asked_under_an_id_that_was_declared_dead_is_forgotten(
    storage: Storage, run: Run, desk: ActDesk, loop: ActsLoop
) -> None:
    request = ask(storage, run)
    loop.run(storage)
    (act,) = desk.take_new()
    storage.reclaim_server(run.registration.id, silent_for=None)
    run.registration.renew_id()
    run.registration.register(storage)

    desk.answer(act, Answer(state=ActState.DONE))
    loop.run(storage)

    assert desk.ids == frozenset()
    assert act_in(storage, request).state is ActState.UNFINISHED


def begin_drain(storage: Storage, run: Run, desk: ActDesk, loop: ActsLoop) -> None:
    ask(storage, run, ActKind.DRAIN)
    loop.run(storage)
    desk.take_new()


def test_a_drain_waits_for_the_claims_that_storage_knows_of(
    storage: Storage, run: Run, desk: ActDesk, loop: ActsLoop
) -> None:
    claim = claim_new(storage, server=run.registration.id, worker="w")
    begin_drain(storage, run, desk, loop)
    loop.run(storage)
    held = desk.is_empty
    storage.finish(claim, DONE, retention=KEEP)

    loop.run(storage)

    assert (held, desk.is_empty) == (False, True)


def test_a_drain_that_was_taken_and_not_begun_is_not_done(
    storage: Storage, run: Run, desk: ActDesk, loop: ActsLoop
) -> None:
    """Its workers may still claim, and storage has answered before they have."""
    ask(storage, run, ActKind.DRAIN)

    loop.run(storage)
    was_empty = desk.is_empty
    desk.take_new()
    loop.run(storage)

    assert (was_empty, desk.is_empty) == (False, True)


@pytest.mark.parametrize("is_known", [True, False], ids=["known", "just booted"])
def test_a_drain_waits_for_a_worker_that_asks_for_a_job(
    storage: Storage, run: Run, desk: ActDesk, loop: ActsLoop, is_known: bool
) -> None:
    begin_drain(storage, run, desk, loop)
    with stand_in_of(run) as worker:
        slot = worker.slots.writer(0)
        slot.show_ready()
        if is_known:
            worker.note_ready(0.0)
            worker.look(0.0)
        slot.show(SlotView(activity=Activity.FETCHING))
        loop.run(storage)
        while_it_asks = desk.is_empty
        slot.show(SlotView(activity=Activity.IDLE))

        loop.run(storage)

    assert (while_it_asks, desk.is_empty) == (False, True)


def test_a_drain_waits_until_each_worker_has_read_that_claims_are_paused(
    storage: Storage, run: Run, desk: ActDesk, loop: ActsLoop
) -> None:
    begin_drain(storage, run, desk, loop)
    with stand_in_of(run) as worker:
        worker.slots.writer(0).show_ready()
        worker.note_ready(0.0)
        worker.look(0.0)
        worker.pause()

        loop.run(storage)

    assert not desk.is_empty


def test_a_drain_does_not_wait_for_a_worker_that_is_on_its_way_out(
    storage: Storage, run: Run, desk: ActDesk, loop: ActsLoop
) -> None:
    """It may export its spans yet, and reads nothing any more."""
    begin_drain(storage, run, desk, loop)
    with stand_in_of(run) as worker:
        slot = worker.slots.writer(0)
        slot.show_ready()
        worker.note_ready(0.0)
        slot.show(SlotView(activity=Activity.LEAVING))
        worker.pause()

        loop.run(storage)

    assert desk.is_empty


def test_a_drain_does_not_wait_for_a_worker_that_boots(
    storage: Storage, run: Run, desk: ActDesk, loop: ActsLoop
) -> None:
    """It reads that claims are paused before its first."""
    begin_drain(storage, run, desk, loop)
    with stand_in_of(run) as worker:
        worker.pause()

        loop.run(storage)

    assert desk.is_empty


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (ReloadedCode.NEW, ""),
        (
            ReloadedCode.OF_START,
            "; they run the code that was loaded at the start; restart the server to change it",
        ),
        (
            ReloadedCode.CELLS_OF_START,
            "; they import modules anew, and run the cells as they were at the start; restart the server to "
            "change those",
        ),
    ],
)
def test_a_reload_says_what_is_not_new_of_the_code_that_the_new_workers_run(
    code: ReloadedCode, said: str
) -> None:
    done = ReloadAnswer(began_at=0.0, state=ReloadState.DONE, workers=2, replaced=2, code=code)

    assert acts._of_reload(done) == Answer(state=ActState.DONE, said=f"2 workers replaced{said}")


def test_what_was_done_and_not_told_is_told_by_the_servers_leaving(
    storage: Storage, run: Run, desk: ActDesk, loop: ActsLoop
) -> None:
    paused, stop, reload = (ask(storage, run, kind) for kind in (ActKind.PAUSE, ActKind.STOP, ActKind.RELOAD))
    loop.run(storage)
    for act in desk.take_new():
        state = ActState.DONE if act.what == ActKind.PAUSE else ActState.TAKEN
        desk.answer(act, Answer(state=state, said="so far"))

    storage.deregister_server(run.registration.id, done=desk.done_by_leaving())

    assert [act_in(storage, each).state for each in (paused, stop, reload)] == [
        ActState.DONE, ActState.DONE, ActState.UNFINISHED
    ]  # fmt: skip
    assert act_in(storage, stop).said == "stopped"
