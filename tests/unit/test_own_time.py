"""Tests: a job that waited for a processor is not taken for a long one, on either side of the tickets."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from qml_mp import host
from qml_mp.child.own_time import OwnTime
from qml_mp.core.job import ClaimKey
from qml_mp.ipc.slot import Activity, SlotTable
from qml_mp.ipc.tickets import TicketPipe
from qml_mp.supervisor.loops.held_claims import HeldClaims

KEY = ClaimKey(job_id="0f8fad5b-d9cb-469f-a165-70867728950e", claim_seq=1)


class Usage:
    """What the kernel counts of the main thread."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ran_s, self.waits = 1.0, 7
        monkeypatch.setattr(resource, "getrusage", self._read)

    def _read(self, _who: int) -> SimpleNamespace:
        return SimpleNamespace(ru_utime=self.ran_s, ru_stime=0.0, ru_nvcsw=self.waits)


@pytest.fixture
def usage(monkeypatch: pytest.MonkeyPatch) -> Usage:
    return Usage(monkeypatch)


def test_a_job_that_waited_only_for_a_processor_took_what_it_ran(usage: Usage) -> None:
    own = OwnTime()
    own.begin()
    usage.ran_s += 0.002

    assert own.of(0.08) == pytest.approx(0.002)


def test_a_job_that_waited_for_anything_else_took_all_of_its_time(usage: Usage) -> None:
    own = OwnTime()
    own.begin()
    usage.ran_s += 0.002
    usage.waits += 1

    assert own.of(0.08) == 0.08


def test_a_job_that_computes_took_all_of_its_time(usage: Usage) -> None:
    own = OwnTime()
    own.begin()
    usage.ran_s += 0.1  # with the jobs before it

    assert own.of(0.08) == 0.08


def test_what_ran_before_the_last_long_one_is_not_counted_again(usage: Usage) -> None:
    own = OwnTime()
    usage.ran_s += 5.0
    own.of(5.0)
    usage.ran_s += 0.001

    assert own.of(0.08) == pytest.approx(0.001)


def test_a_short_job_costs_no_look(monkeypatch: pytest.MonkeyPatch) -> None:
    own = OwnTime()
    monkeypatch.setattr(resource, "getrusage", None)

    assert own.of(0.004) == 0.004


class Clock:
    seconds = 100.0

    def monotonic(self) -> float:
        return self.seconds


class Scene:
    """A worker that holds one more claim beside the job in hand, and what the kernel says of its process."""

    def __init__(self, tickets: TicketPipe, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        self.ran_s: float | None = 3.0
        self.is_ready: bool | None = True
        monkeypatch.setattr(host, "ran_s", lambda _pid: self.ran_s)
        monkeypatch.setattr(host, "is_ready", lambda _pid: self.is_ready)
        self.worker: Any = SimpleNamespace(
            worker_id="w",
            child=SimpleNamespace(pid=4242),
            last=SimpleNamespace(activity=Activity.RUNNING, jobs_done=5, since_ns=100_000_000_000),
            channels=SimpleNamespace(tickets=tickets),
            taken=set(),
            slots=SlotTable(1),
            index=0,
        )
        run: Any = SimpleNamespace(pool=[self.worker], clock=self.clock)
        self.held = HeldClaims(run)
        assert tickets.write([KEY]) == 1
        self.held.turn()

    def later(self, seconds: float, *, ran_s: float = 0.0, is_ready: bool = True) -> bool:
        """Whether the claim is taken from the worker then, when its process has run for so long."""
        self.clock.seconds += seconds
        if self.ran_s is not None:
            self.ran_s, self.is_ready = self.ran_s + ran_s, is_ready
        self.held.turn()
        return KEY in self.worker.taken


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    tickets = TicketPipe()
    yield Scene(tickets, monkeypatch)
    tickets.close()


def test_what_waits_behind_a_job_that_computes_is_taken(scene: Scene) -> None:
    assert not scene.later(0.02, ran_s=0.01)
    assert scene.later(0.02, ran_s=0.01)


def test_what_waits_behind_a_job_that_sleeps_is_taken(scene: Scene) -> None:
    assert scene.later(0.06, is_ready=False)


def test_a_worker_that_waits_for_a_processor_keeps_what_it_holds(scene: Scene) -> None:
    assert not scene.later(0.06, ran_s=0.001)
    assert scene.held.next_at() == pytest.approx(scene.clock.seconds + 0.01)
    assert not scene.later(0.06, ran_s=0.001)
    assert scene.later(0.06, ran_s=0.02)


def test_a_worker_that_never_comes_to_a_processor_does_not_keep_it_for_ever(scene: Scene) -> None:
    assert not scene.later(0.4)
    assert scene.later(0.1)


def test_where_the_system_does_not_tell_it_is_as_if_processors_were_free(scene: Scene) -> None:
    scene.ran_s = None

    assert scene.later(0.06)


def test_nor_where_it_does_not_tell_whether_the_worker_is_ready(scene: Scene) -> None:
    scene.is_ready, told = None, scene.ran_s
    assert told is not None

    scene.clock.seconds += 0.06
    scene.held.turn()

    assert KEY in scene.worker.taken


@pytest.mark.parametrize("is_ready", [True, False])
def test_what_was_claimed_during_a_job_waits_as_long_as_its_worker_says(scene: Scene, is_ready: bool) -> None:
    scene.worker.slots.writer(0).show_unread(1, in_hand=KEY, patience_s=0.1)

    assert not scene.later(0.06, ran_s=0.06, is_ready=is_ready)
    assert scene.held.next_at() <= scene.clock.seconds + 0.04
    assert scene.later(0.05, ran_s=0.05, is_ready=is_ready)


def test_the_kernel_tells_that_this_process_runs() -> None:
    import os

    ran_s, is_ready = host.ran_s(os.getpid()), host.is_ready(os.getpid())

    assert ran_s is None or ran_s > 0
    assert is_ready is None or is_ready
    assert host.ran_s(2**22 + 1) is None
    assert host.is_ready(2**22 + 1) is None
