"""Tests: what is asked of a server that no signal reaches: one in a pid namespace of its own, as on another
machine."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from qml_mp import host
from qml_mp.core.acts import ALL_ACTS, Act, ActKind, ActRequest, ActState, Asker
from qml_mp.core.server_info import ServerInfo, WorkerInfo
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.harness import (
    Server,
    enqueue,
    few,
    left_in_registry,
    stop_between_writes,
    wait_for_state,
    wait_until,
)
from tests.processes.pid_namespace import CONTAINER, kill_container, need_namespaces

LEAVES_PATIENTLY = True
MakeServer = Callable[..., Server]
MakeFarServer = Callable[..., Server]
GATED = "tests.processes.apps_storage_faults:app"
ANNA = Asker(who="anna@laptop", where="cli")


@pytest.fixture
def far(server: MakeServer, storage: Storage) -> Iterator[MakeFarServer]:
    """Starts servers in pid namespaces of their own."""
    need_namespaces()
    made: list[Server] = []

    def start(workers: int, *flags: str, app: str = GATED, **environment: str) -> Server:
        one = server("-w", str(workers), *flags, app=app, **environment)
        one.prefix = CONTAINER
        made.append(one)
        one.start(ready=None)
        wait_until(lambda: one.log().count("is ready") >= workers, what=f"{workers} workers; {one.log()}")
        wait_until(lambda: len(storage.list_workers()) >= workers, what=one.log)
        return one

    yield start
    for one in made:
        if one.process is not None and one.process.poll() is None:
            kill_container(one)


def the_server(storage: Storage) -> ServerInfo:
    (info,) = storage.list_servers()
    assert host.is_alive(info.process) is None  # no signal of ours can be meant for it
    assert info.acts == ALL_ACTS
    return info


def ask(storage: Storage, kind: ActKind, **asked: object) -> ActRequest:
    """Ask the only server."""
    request = replace(ActRequest(kind=kind, server_id=the_server(storage).id, by=ANNA), **asked)  # type: ignore[arg-type]
    storage.ask(request)
    return request


def end_of(storage: Storage, request: ActRequest, one: Server) -> Act:
    """What became of it."""

    def find() -> Act | None:
        act = storage.get_act(request.id)
        return act if act is not None and act.state.is_final else None

    return wait_until(find, what=f"the end of {request.kind}; {one.log()}")


def begun_gated(storage: Storage, one: Server, gate: Path) -> str:
    """A job that runs until the gate is there."""
    job_id = enqueue(storage, "gated", gate=str(gate))
    wait_until(lambda: any(line.job_id == job_id for line in one.journal()), what=one.log)
    return job_id


def test_its_stacks_are_told(far: MakeFarServer, storage: Storage, tmp_path: Path) -> None:
    one = far(2)
    begun_gated(storage, one, tmp_path / "gate")

    act = end_of(storage, ask(storage, ActKind.STACKS), one)

    assert (act.state, act.said) == (ActState.DONE, "2 workers told")
    assert sorted(each.number for each in act.stacks) == [1, 2]
    assert sorted(each.method or "idle" for each in act.stacks) == ["gated", "idle"]
    assert any("in gated" in each.in_words for each in act.stacks)
    assert "Asked to stacks by anna@laptop (cli)" in one.log()


def test_one_worker_is_replaced_after_its_job(far: MakeFarServer, storage: Storage, tmp_path: Path) -> None:
    one, gate = far(2), tmp_path / "gate"
    before = {worker.number: worker for worker in storage.list_workers()}
    job_id = begun_gated(storage, one, gate)
    (claim,) = storage.claims()

    request = ask(storage, ActKind.REPLACE, worker_id=claim.worker_id)

    wait_until(lambda: "leaves after" in (_act(storage, request).said or ""), what=one.log)
    gate.touch()
    act = end_of(storage, request, one)
    assert act.state is ActState.DONE
    assert act.said is not None
    assert act.said.startswith("replaced by pid ")

    def replaced() -> list[str]:
        after = {worker.id for worker in _workers(storage, 2) or before.values()}
        return [worker.id for worker in before.values() if worker.id not in after]

    assert wait_until(replaced, what="the row of the new worker in the place of the old one's") == [
        claim.worker_id
    ]
    assert wait_for_state(storage, job_id, StateName.SUCCEEDED).claim_seq == 1
    again = end_of(storage, ask(storage, ActKind.REPLACE, worker_id=claim.worker_id), one)
    assert (again.state, again.said) == (ActState.FAILED, "the worker is not there any more")


def _act(storage: Storage, request: ActRequest) -> Act:
    act = storage.get_act(request.id)
    assert act is not None
    return act


def _workers(storage: Storage, count: int) -> list[WorkerInfo] | None:
    found = storage.list_workers()
    return found if len(found) == count else None


@pytest.mark.nightly
def test_a_reload_tells_what_became_of_the_new_code(
    far: MakeFarServer, storage: Storage, tmp_path: Path
) -> None:
    head = "from qml_mp import QmlApp\napp = QmlApp()\n@app.job()\ndef version():\n    return {}\n"
    code = tmp_path / "far_app.py"
    code.write_text(head.format(1))
    one = far(2, app="far_app:app", PYTHONPATH=str(tmp_path), PYTHONDONTWRITEBYTECODE="1")
    code.write_text("import no_such_library\n")

    refused = end_of(storage, ask(storage, ActKind.RELOAD), one)
    code.write_text(head.format(2))
    done = end_of(storage, ask(storage, ActKind.RELOAD), one)

    assert refused.state is ActState.FAILED
    assert "The workers stay as they are" in (refused.said or "")
    assert "No module named 'no_such_library'" in (refused.said or "")
    assert (done.state, done.said) == (ActState.DONE, "2 workers replaced")
    job_id = enqueue(storage, "version")
    assert wait_for_state(storage, job_id, StateName.SUCCEEDED).result == 2


def test_claims_are_paused_and_resumed(far: MakeFarServer, storage: Storage, tmp_path: Path) -> None:
    one, gate = far(1), tmp_path / "gate"
    in_hand = begun_gated(storage, one, gate)  # who is idle may be about to claim

    paused = end_of(storage, ask(storage, ActKind.PAUSE), one)
    wait_until(lambda: the_server(storage).paused)
    again = end_of(storage, ask(storage, ActKind.PAUSE), one)
    job_id = enqueue(storage, "gated", gate=str(gate))
    gate.touch()
    wait_for_state(storage, in_hand, StateName.SUCCEEDED)  # behind which it would claim the next one
    stacks = end_of(storage, ask(storage, ActKind.STACKS), one)  # it has had its turns since
    waits = storage.get(job_id)
    resumed = end_of(storage, ask(storage, ActKind.RESUME), one)

    assert [each.state for each in (paused, again, stacks, resumed)] == [ActState.DONE] * 4
    assert [paused.said, again.said] == ["claims are paused", "claims were paused already"]
    assert waits is not None
    assert waits.state_name is StateName.ENQUEUED
    wait_for_state(storage, job_id, StateName.SUCCEEDED)


@few("then_stop", [True], nightly=[False])
def test_a_server_is_drained_once_nothing_is_left_of_what_it_had_claimed(
    far: MakeFarServer, storage: Storage, tmp_path: Path, then_stop: bool
) -> None:
    one, gate = far(2), tmp_path / "gate"
    running = [begun_gated(storage, one, gate) for _ in range(2)]  # who is idle may be about to claim

    request = ask(storage, ActKind.DRAIN, then_stop=then_stop)
    wait_until(lambda: _act(storage, request).said == "2 workers still busy", what=one.log)
    waiting = enqueue(storage, "gated", gate=str(gate))
    gate.touch()
    act = end_of(storage, request, one)

    assert act.state is ActState.DONE
    for job_id in running:
        assert wait_for_state(storage, job_id, StateName.SUCCEEDED).claim_seq == 1
    left = storage.get(waiting)
    assert left is not None
    assert (left.state_name, left.claim_seq) == (StateName.ENQUEUED, 0)
    if then_stop:
        assert one.wait() == 0
        assert left_in_registry(storage, one.log()) == []
    else:
        assert the_server(storage).paused
        end_of(storage, ask(storage, ActKind.RESUME), one)
        wait_for_state(storage, waiting, StateName.SUCCEEDED)


@pytest.mark.parametrize("at_once", [False, True], ids=["after-jobs", "at-once"])
def test_a_server_is_stopped(far: MakeFarServer, storage: Storage, tmp_path: Path, at_once: bool) -> None:
    one, gate = far(1), tmp_path / "gate"
    job_id = begun_gated(storage, one, gate)

    request = ask(storage, ActKind.STOP, at_once=at_once)
    wait_until(lambda: "asked by anna@laptop (cli)" in one.log())
    if not at_once:
        gate.touch()

    assert end_of(storage, request, one).state is ActState.DONE
    assert one.wait() == (6 if at_once else 0)
    assert left_in_registry(storage, one.log()) == []
    job = storage.get(job_id)
    assert job is not None
    assert job.state_name is (StateName.ENQUEUED if at_once else StateName.SUCCEEDED)


def test_nothing_is_done_of_what_was_asked_of_a_server_that_has_died(
    far: MakeFarServer, server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    dead = far(1, QML_MP_STALE_PROCESSING_AFTER="1s", QML_MP_HEARTBEAT_INTERVAL="0.2s")
    began_id = the_server(storage).id
    kill_container(dead)
    requests = [ask(storage, kind) for kind in (ActKind.STOP, ActKind.PAUSE)]

    storage.reclaim_server(began_id, silent_for=None)  # as a peer does that has found it dead
    successor = server("-w", "1", app=GATED).start()

    assert [end_of(storage, request, successor).state for request in requests] == [ActState.GONE] * 2
    gate = tmp_path / "gate"
    gate.touch()
    wait_for_state(storage, enqueue(storage, "gated", gate=str(gate)), StateName.SUCCEEDED)
    assert not storage.list_servers()[0].paused
    assert successor.stop() == 0


def test_a_server_that_was_stopped_past_the_time_limit_does_nothing_of_it(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    one = server("-w", "1", app=GATED).start()
    (info,) = storage.list_servers()
    stop_between_writes(storage, one.pid)
    request = ActRequest(kind=ActKind.STOP, server_id=info.id, by=ANNA, within=timedelta(milliseconds=50))
    storage.ask(request)
    wait_until(lambda: _act(storage, request).state is ActState.EXPIRED)

    one.signal(signal.SIGCONT)

    later = ActRequest(kind=ActKind.STACKS, server_id=info.id, by=ANNA)
    storage.ask(later)
    assert end_of(storage, later, one).state is ActState.DONE
    assert _act(storage, request).state is ActState.EXPIRED
    assert one.stop() == 0


@pytest.mark.nightly
def test_what_was_begun_by_a_server_that_is_killed_is_told_as_unfinished(
    far: MakeFarServer, storage: Storage, tmp_path: Path
) -> None:
    one = far(1)
    begun_gated(storage, one, tmp_path / "gate")
    request = ask(storage, ActKind.DRAIN)
    wait_until(lambda: _act(storage, request).state is ActState.TAKEN)
    server_id = the_server(storage).id

    kill_container(one)
    storage.reclaim_server(server_id, silent_for=None)

    assert _act(storage, request).state is ActState.UNFINISHED


def armed(server: MakeServer, point: str, action: str, folder: Path) -> Server:
    """A server that does so at its first time there."""
    one = server("-w", "1", app=GATED)
    one.program = ("-m", "tests.failpoints", f"supervisor/{point}={action}@{folder / 'mark'}")
    return one.start()


@few("point", ["acts.telling"], nightly=["acts.taken", "acts.told"])
def test_a_reply_that_is_lost_has_it_done_once_and_told(
    server: MakeServer, storage: Storage, tmp_path: Path, point: str
) -> None:
    one = armed(server, point, "raise", tmp_path)
    (info,) = storage.list_servers()
    request = ActRequest(kind=ActKind.RELOAD, server_id=info.id, by=ANNA)

    storage.ask(request)

    act = end_of(storage, request, one)
    wait_until((tmp_path / "mark").exists)  # the answer that is found may be the one whose reply is lost
    assert (act.state, act.said) == (ActState.DONE, "1 worker replaced")
    assert one.log().count("Asked to reload") == 1
    assert one.stop() == 0
