"""Tests: facts reach whoever is told of them, and no subscriber can harm its process or the others."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from qml_mp.events import emitter
from qml_mp.events.emitter import Emitter, Subscriber
from qml_mp.events.facts import Event, ServerStopped, StorageBack

STOPPED = ServerStopped()
BACK = StorageBack()


@pytest.fixture
def full_pipe() -> Iterator[int]:
    """The writing end of a pipe that nobody reads; it does not block."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(4096))
    yield writing
    os.close(reading)
    os.close(writing)


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the monotonic clock shows; the test's to set. The time that really passes breaks off no call: this
    process may just have to wait for a processor."""
    now_s = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    monkeypatch.setattr(emitter, "_LONGEST_CALL_S", 60.0)
    return now_s


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


def test_a_fact_that_only_the_log_is_told_of_and_has_no_line_for_need_not_be_made() -> None:
    alone = Emitter(failing, unlogged={ServerStopped})
    together = Emitter(failing, failing, unlogged={ServerStopped})

    assert not alone.is_told_of(ServerStopped)
    assert alone.is_told_of(StorageBack)
    assert together.is_told_of(ServerStopped)


def test_one_that_raises_is_logged_once_and_keeps_nobody_else_from_being_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[Event] = []
    events = Emitter(failing, failing, told.append)

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

    events = Emitter(lambda _: None, sometimes)
    events.emit(BACK)
    events.emit(STOPPED)

    assert told == [STOPPED]


def test_a_full_pipe_that_does_not_block_holds_nobody_up(
    full_pipe: int, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Event] = []
    events = Emitter(lambda _: None, lambda _: _write(full_pipe), told.append)

    events.emit(BACK)
    events.emit(STOPPED)

    assert told == [BACK, STOPPED]
    assert len(caplog.records) == 1


def test_one_that_has_held_up_its_process_for_half_a_second_is_given_up(
    now: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Event] = []
    calls: list[Event] = []
    events = Emitter(lambda _: None, slow(0.2, calls, now), told.append)

    for _ in range(10):
        events.emit(BACK)

    assert len(calls) == 3
    assert len(told) == 10
    assert messages(caplog) == ["A subscriber holds up this process, and is told no more facts"]


def test_a_call_that_does_not_return_is_broken_off_and_the_others_are_told(
    now: list[float], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(emitter, "_LONGEST_CALL_S", 0.5)  # far more than the others' calls take
    told: list[Event] = []
    calls: list[Event] = []
    handler = signal.getsignal(signal.SIGALRM)

    def waits_for_ever(event: Event) -> None:
        calls.append(event)
        now[0] += 0.2
        with contextlib.suppress(Exception):
            threading.Event().wait()

    events = Emitter(lambda _: None, waits_for_ever, told.append)

    for _ in range(20):
        events.emit(BACK)

    assert len(told) == 20
    assert len(calls) < 20
    assert messages(caplog) == ["A subscriber holds up this process, and is told no more facts"]
    assert signal.getsignal(signal.SIGALRM) is handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_the_log_is_never_given_up(now: list[float], caplog: pytest.LogCaptureFixture) -> None:
    calls: list[Event] = []
    events = Emitter(slow(60, calls, now))

    for _ in range(10):
        events.emit(BACK)

    assert len(calls) == 10
    assert caplog.records == []


def test_one_that_is_slow_now_and_then_is_kept(now: list[float]) -> None:
    calls: list[Event] = []
    events = Emitter(lambda _: None, slow(0.1, calls, now))

    for _ in range(100):
        events.emit(BACK)
        now[0] += 20

    assert len(calls) == 100


def test_moments_do_not_add_up(now: list[float]) -> None:
    calls: list[Event] = []
    events = Emitter(lambda _: None, slow(0.009, calls, now))

    for _ in range(1000):
        events.emit(BACK)

    assert len(calls) == 1000


def slow(seconds: float, calls: list[Event], now: list[float]) -> Subscriber:
    """A subscriber during whose calls so much time passes."""

    def subscriber(event: Event) -> None:
        calls.append(event)
        now[0] += seconds

    return subscriber


def _write(fd: int) -> None:
    os.write(fd, b"x")
