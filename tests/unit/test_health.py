"""Tests: whether a server lives and is ready, from its newest report and a look at storage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from qml_mp.ipc.side import LoopReport, ServerReport, WorkerReport
from qml_mp.metrics.health import TURNED_WITHIN_S, why_not_alive, why_not_ready
from qml_mp.metrics.storage_looks import StorageLook

NOW, WALL = 1000.0, 1_800_000_000.0
LOOP = LoopReport(name="heartbeat", succeeded_at=WALL - 5, due_since=None, failing_since=None)
FINE = ServerReport(
    at=NOW - 0.5,
    server_id="one#1",
    started_at=WALL - 900,
    wanted_workers=1,
    workers=[WorkerReport(number=1, pid=5, state="busy")],
    loops=[LOOP],
    is_stopping=False,
    is_paused=False,
    storage_fails=False,
    trouble=None,
)
ANSWERS = StorageLook(at=NOW, server_id="one#1", answers=True, schema_fits=True)


def not_ready(report: ServerReport | None, look: StorageLook | None = ANSWERS) -> Sequence[str]:
    return why_not_ready(report, look, now=NOW, since=NOW - 1)


def test_a_server_lives_as_long_as_its_supervisor_turns() -> None:
    assert why_not_alive(FINE, now=FINE.at + TURNED_WITHIN_S, since=0) == []
    assert why_not_alive(FINE, now=FINE.at + 60, since=0) == ["the supervisor has not turned for 60 s"]


def test_one_that_has_not_reported_yet_has_a_moment_for_it_and_is_not_ready_meanwhile() -> None:
    assert why_not_alive(None, now=NOW, since=NOW - 1) == []
    assert why_not_alive(None, now=NOW, since=NOW - 60) == ["the supervisor has not reported yet"]
    assert not_ready(None) == ["the supervisor has not reported yet"]


def test_a_server_that_can_do_its_work_is_ready() -> None:
    assert not_ready(FINE) == []
    assert not_ready(replace(FINE, wanted_workers=0, workers=[])) == []
    assert not_ready(replace(FINE, is_paused=True)) == []


@pytest.mark.parametrize(
    ("report", "look", "reason"),
    [
        (FINE, None, "the storage does not answer"),
        (FINE, replace(ANSWERS, answers=False), "the storage does not answer"),
        (FINE, replace(ANSWERS, schema_fits=False), "the schema of the storage is not that of this version"),
        (replace(FINE, at=NOW - 30), ANSWERS, "the supervisor has not turned for 30 s"),
        (replace(FINE, is_stopping=True), ANSWERS, "the server is stopping"),
        (replace(FINE, storage_fails=True), ANSWERS, "the supervisor cannot reach the storage"),
        (replace(FINE, workers=[]), ANSWERS, "no worker is ready"),
        (
            replace(FINE, workers=[WorkerReport(number=1, pid=5, state="booting")]),
            ANSWERS,
            "no worker is ready",
        ),
        (
            replace(FINE, loops=[replace(LOOP, due_since=FINE.at - 20)]),
            ANSWERS,
            "the heartbeat loop has been due for 20 s",
        ),
        (
            replace(FINE, loops=[replace(LOOP, failing_since=FINE.at - 6)]),
            ANSWERS,
            "the heartbeat loop has failed for 6 s",
        ),
    ],
)
def test_what_keeps_it_from_that_is_the_reason(
    report: ServerReport, look: StorageLook | None, reason: str
) -> None:
    assert not_ready(report, look) == [reason]


def test_a_loop_that_is_tried_again_in_a_moment_or_waits_for_another_is_no_reason_yet() -> None:
    moment = replace(LOOP, due_since=FINE.at - 2, failing_since=FINE.at - 2)

    assert not_ready(replace(FINE, loops=[moment])) == []


def test_what_keeps_all_loops_is_the_only_reason() -> None:
    late = replace(LOOP, due_since=FINE.at - 60)

    assert not_ready(replace(FINE, loops=[late], is_stopping=True)) == ["the server is stopping"]
