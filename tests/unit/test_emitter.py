"""Tests: facts reach whoever is told of them, and one who fails harms neither its process nor the others."""

from __future__ import annotations

from functools import partial

import pytest

from qml_mp.events.emitter import Emitter
from qml_mp.events.facts import Event, ServerStopped, StorageBack

STOPPED = ServerStopped()
BACK = StorageBack()


def failing(_: Event) -> None:
    raise RuntimeError("not today")


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_each_subscriber_is_told_of_each_fact_in_order() -> None:
    first: list[Event] = []
    second: list[Event] = []
    events = Emitter(first.append, second.append)

    events.emit(BACK)
    events.emit(STOPPED)

    assert first == second == [BACK, STOPPED]


def test_one_that_raises_is_logged_once_and_keeps_nobody_else_from_being_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[Event] = []
    events = Emitter(failing, partial(failing), told.append)

    events.emit(BACK)
    events.emit(STOPPED)

    assert told == [BACK, STOPPED]
    assert messages(caplog) == ["A subscriber failed at StorageBack; its next failures are not told"] * 2
    assert all(record.exc_info is not None for record in caplog.records)


def test_one_that_raised_is_told_of_the_next_fact() -> None:
    told: list[Event] = []

    def sometimes(event: Event) -> None:
        if event == BACK:
            raise RuntimeError("not this one")
        told.append(event)

    events = Emitter(sometimes)
    events.emit(BACK)
    events.emit(STOPPED)

    assert told == [STOPPED]
