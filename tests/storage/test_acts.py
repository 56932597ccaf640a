"""Tests of the storage: what is asked of servers, their answers, and the audit."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest

from qml_mp.core.acts import ActKind, ActRequest, ActState, Asker
from qml_mp.core.answers import WorkerStack
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Heard
from tests.storage.conftest import Raw
from tests.storage.helpers import HOUR, claim_new, in_children, open_patiently
from tests.storage.test_registry import server

ANNA = Asker(who="anna@laptop", where="cli")
STACKS = (WorkerStack(number=1, pid=7, method="resize", stack='File "a.py", line 1'),)


def asked(
    server_id: str = "a#1", kind: ActKind = ActKind.STACKS, *, worker_id: str | None = None
) -> ActRequest:
    return ActRequest(kind=kind, server_id=server_id, by=ANNA, worker_id=worker_id)


def state_of(storage: Storage, request: ActRequest) -> ActState:
    act = storage.get_act(request.id)
    assert act is not None
    return act.state


@pytest.fixture(autouse=True)
def a_server(storage: Storage) -> None:
    """The one that most tests ask."""
    storage.register_server(server("a#1"))


def test_what_is_asked_is_taken_answered_and_read_back(storage: Storage) -> None:
    request = replace(asked(kind=ActKind.REPLACE, worker_id="a#1:worker:3.9"), at_once=True)

    first = storage.ask(request)
    (taken,) = storage.take_acts("a#1")
    said = storage.answer_act(
        request.id, server_id="a#1", state=ActState.DONE, said="as asked", stacks=STACKS
    )

    act = storage.get_act(request.id)
    assert said
    assert act is not None
    assert (first.state, first.what, first.subject) == (ActState.ASKED, "replace", "a#1:worker:3.9")
    assert (taken.state, taken.worker_id, taken.at_once, taken.then_stop) == (
        ActState.TAKEN, "a#1:worker:3.9", True, False
    )  # fmt: skip
    assert (act.state, act.said, act.stacks, act.by) == (ActState.DONE, "as asked", STACKS, ANNA)
    assert act.until is not None
    assert act.taken_at is not None
    assert act.ended_at is not None
    assert act.until == act.asked_at + request.within
    assert act.asked_at <= act.taken_at <= act.ended_at


def test_what_came_with_a_lost_reply_is_given_again_and_what_is_in_hand_is_not(storage: Storage) -> None:
    lost, in_hand = asked(), asked(kind=ActKind.PAUSE)
    storage.ask(lost)
    storage.ask(in_hand)
    storage.take_acts("a#1")

    again = storage.take_acts("a#1", in_hand=[in_hand.id])

    assert [act.id for act in again] == [lost.id]


def test_what_is_past_its_time_is_never_given(storage: Storage, raw: Raw) -> None:
    late, lost = asked(), asked()
    storage.ask(lost)
    storage.take_acts("a#1")  # the reply is lost
    storage.ask(late)
    raw.age("acts", "until", HOUR)

    read = state_of(storage, late)
    taken = storage.take_acts("a#1")

    assert read is ActState.EXPIRED  # before anybody has said so
    assert taken == []
    assert [state_of(storage, each) for each in (late, lost)] == [ActState.EXPIRED] * 2
    assert not storage.answer_act(late.id, server_id="a#1", state=ActState.DONE)


def test_a_server_that_is_not_there_is_gone_at_once(storage: Storage) -> None:
    act = storage.ask(asked("nobody#1"))

    assert act.state is ActState.GONE
    assert act.ended_at is not None
    assert storage.take_acts("nobody#1") == []


@pytest.mark.parametrize("leaves", ["by itself", "declared dead"])
def test_a_successor_takes_nothing_of_what_was_asked_of_a_server_that_has_gone(
    storage: Storage, leaves: str
) -> None:
    taken, stop, waits = asked(kind=ActKind.RELOAD), asked(kind=ActKind.STOP), asked()
    storage.ask(taken)
    storage.ask(stop)
    storage.take_acts("a#1")
    storage.ask(waits)

    if leaves == "by itself":
        assert storage.deregister_server("a#1", done=[stop.id])
    else:
        storage.reclaim_server("a#1", silent_for=None)
    storage.register_server(server("a#2"))

    assert storage.take_acts("a#2") == []
    assert storage.take_acts("a#1") == []
    stopped = ActState.DONE if leaves == "by itself" else ActState.UNFINISHED
    assert [state_of(storage, each) for each in (taken, stop, waits)] == [
        ActState.UNFINISHED, stopped, ActState.GONE
    ]  # fmt: skip
    act = storage.get_act(stop.id)
    assert act is not None
    assert act.said == ("stopped" if leaves == "by itself" else None)
    assert not storage.answer_act(taken.id, server_id="a#1", state=ActState.DONE)


def test_a_server_that_cannot_leave_yet_is_still_asked(storage: Storage) -> None:
    claim_new(storage, server="a#1", worker="w")
    request = asked()
    storage.ask(request)

    assert not storage.deregister_server("a#1")

    assert [act.id for act in storage.take_acts("a#1")] == [request.id]


def test_asking_twice_asks_once(storage: Storage) -> None:
    request = asked()
    storage.ask(request)
    storage.take_acts("a#1")
    storage.answer_act(request.id, server_id="a#1", state=ActState.DONE)

    again = storage.ask(request)

    assert again.state is ActState.DONE
    assert storage.take_acts("a#1") == []


def test_an_answer_can_be_repeated_and_comes_from_the_server_alone(storage: Storage) -> None:
    request = asked()
    storage.ask(request)
    before = storage.answer_act(request.id, server_id="a#1", state=ActState.DONE)
    storage.take_acts("a#1")

    others = storage.answer_act(request.id, server_id="b#1", state=ActState.DONE)
    so_far = [storage.answer_act(request.id, server_id="a#1", state=ActState.TAKEN, said="1 of 2")] * 2
    act = storage.get_act(request.id)
    done = [storage.answer_act(request.id, server_id="a#1", state=ActState.DONE, said="2 of 2") for _ in "ab"]
    other = storage.answer_act(request.id, server_id="a#1", state=ActState.FAILED)

    assert (before, others, so_far, done, other) == (False, False, [True] * 2, [True] * 2, False)
    assert act is not None
    assert (act.state, act.said, act.ended_at) == (ActState.TAKEN, "1 of 2", None)
    assert state_of(storage, request) is ActState.DONE


def test_a_heartbeat_tells_that_something_is_asked(storage: Storage) -> None:
    storage.register_server(server("b#1"))
    storage.ask(asked())

    beats = [storage.heartbeat_server(each, worker_rss={}) for each in ("a#1", "b#1")]
    storage.take_acts("a#1")
    after = storage.heartbeat_server("a#1", worker_rss={})

    assert beats == [Heard(servers=2, is_asked=True), Heard(servers=2, is_asked=False)]
    assert after == Heard(servers=2, is_asked=False)


def test_a_request_and_the_end_of_its_server_at_the_same_moment_leave_nobody_waiting(
    storage: Storage, url: str
) -> None:
    requests = [asked(f"c{n}#1") for n in range(30)]
    for request in requests:
        storage.register_server(server(request.server_id))
    storage.close()

    def ask() -> None:
        own = open_patiently(url)
        for request in requests:
            own.ask(request)

    def leave() -> None:
        own = open_patiently(url)
        for request in requests:
            own.deregister_server(request.server_id)

    actions: list[Callable[[], object]] = [partial(ask), partial(leave)]
    assert in_children(actions) == [0, 0]
    assert {state_of(storage, request) for request in requests} == {ActState.GONE}


def test_the_audit_has_changes_beside_requests_newest_first_by_pages(storage: Storage) -> None:
    request = asked()
    storage.ask(request)
    for number in range(5):
        storage.audit(ANNA, "pause queue", f"images{number}", said="as its \0 jobs failed")

    first = storage.list_acts(limit=4)
    rest = storage.list_acts(limit=4, after=first.next_cursor)

    assert [act.subject for act in first.acts] == [f"images{n}" for n in (4, 3, 2, 1)]
    assert [act.subject for act in rest.acts] == ["images0", "a#1"]
    assert rest.next_cursor is None
    assert (first.acts[0].state, first.acts[0].by, first.acts[0].server_id) == (ActState.DONE, ANNA, None)
    assert first.acts[0].said == "as its \N{REPLACEMENT CHARACTER} jobs failed"
    assert [act.id for act in storage.list_acts(asked_of_servers=True).acts] == [request.id]


def test_an_entry_that_was_made_before_its_change_says_afterwards_what_came_of_it(storage: Storage) -> None:
    act_id = str(uuid.uuid4())
    storage.audit(ANNA, "delete jobs", "all jobs", said="begun", state=ActState.UNFINISHED, act_id=act_id)
    (begun,) = storage.list_acts().acts

    for _ in range(2):  # the first reply was lost
        storage.audit(ANNA, "delete jobs", "all jobs", said="7 jobs", act_id=act_id)

    (done,) = storage.list_acts().acts
    assert (begun.id, begun.state, begun.said) == (act_id, ActState.UNFINISHED, "begun")
    assert (done.id, done.state, done.said) == (act_id, ActState.DONE, "7 jobs")
    assert done.asked_at == begun.asked_at


def test_old_acts_are_deleted_save_what_a_server_is_about(storage: Storage, raw: Raw) -> None:
    about = asked(kind=ActKind.DRAIN)
    storage.ask(about)
    storage.take_acts("a#1")
    storage.ask(asked())
    storage.audit(ANNA, "pause queue", "images")
    raw.age("acts", "asked_at", 2 * HOUR)
    storage.audit(ANNA, "resume queue", "images")

    deleted = [storage.delete_old_acts(kept_for=HOUR, limit=1) for _ in range(3)]

    assert deleted == [1, 1, 0]
    assert [act.what for act in storage.list_acts().acts] == ["resume queue", "drain"]
