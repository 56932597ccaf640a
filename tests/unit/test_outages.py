"""Tests: what a worker's log says of an outage, and how its pauses grow."""

from __future__ import annotations

import logging

import pytest

from qml_mp.child.outages import Outages
from qml_mp.errors import StorageUnavailable
from qml_mp.events.emitter import new_emitter


def test_an_outage_has_one_line_when_it_begins_when_it_changes_and_when_it_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "qml_mp")
    pauses: list[float] = []
    outages = Outages(worker_id="w", wait=pauses.append, events=new_emitter())

    for text in ("refused", "refused", "refused", "starting up", "starting up"):
        outages.failed("claim a job", StorageUnavailable(text))
    outages.ended()
    outages.ended()

    assert [record.getMessage() for record in caplog.records] == [
        "Cannot claim a job, will try again: refused",
        "Cannot claim a job, will try again: starting up",
        "Storage answers again",
    ]


def test_the_pauses_grow_to_less_than_five_seconds_and_begin_anew_after_the_outage() -> None:
    pauses: list[float] = []
    outages = Outages(worker_id="w", wait=pauses.append, events=new_emitter())

    for _ in range(10):
        outages.failed("claim a job", StorageUnavailable("refused"))
    outages.ended()
    outages.failed("claim a job", StorageUnavailable("refused"))

    assert pauses[0] <= 0.2
    assert all(3.0 <= pause <= 4.5 for pause in pauses[5:10])
    assert pauses[10] <= 0.2
