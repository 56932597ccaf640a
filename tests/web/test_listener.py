"""Tests: the thread that listens for commits goes on whatever happens to it, and tells only what is new."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, closing

import pytest

from qml_mp.core.job import Job
from qml_mp.storage.open import open_storage
from qml_mp.storage.waiting import Waker
from qml_mp.web import changes as changes_module
from qml_mp.web.changes import Changes
from tests.until import PATIENCE_S
from tests.web.browsers import until

_NO_SUCH_STACK_BYTES = 1 << 60
"""No memory has room for it, and so the system starts no thread that wants it."""


def test_an_error_that_is_none_of_the_storages_is_logged_and_the_next_commit_is_told(
    file_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(open_storage(file_url)) as storage:
        open_waker, calls = storage.open_waker, []

        def fails_once() -> Waker | None:
            calls.append(1)
            if len(calls) == 1:
                raise RuntimeError("a fault of ours")
            return open_waker()

        monkeypatch.setattr(storage, "open_waker", fails_once)
        changes = Changes(storage)

        async def look() -> None:
            async with aclosing(changes.stream()) as events:
                await anext(events)  # there is somebody for whom it listens
                await until(lambda: changes.is_listening, what="another look")
                before = changes.version
                storage.enqueue(Job.new("noop"))
                await until(lambda: changes.version > before, what="the commit")
            await until(lambda: not changes.is_listening, what="its end, as nobody looks any more")

        with caplog.at_level(logging.ERROR):
            asyncio.run(look())

    assert [record.message for record in caplog.records] == [
        "The page is not told of commits; it asks again every 1 s"
    ]


def test_a_browser_that_comes_when_there_is_a_thread_again_is_told(file_url: str) -> None:
    with closing(open_storage(file_url)) as storage:
        changes = Changes(storage)

        async def come_in_vain() -> None:
            with pytest.raises(RuntimeError, match="new thread"):
                await anext(changes.stream())

        async def look() -> None:
            async with aclosing(changes.stream()) as events, asyncio.timeout(PATIENCE_S):
                await begun(events)
                await told(events)
            await until(lambda: not changes.is_listening, what="its end, as nobody looks any more")

        usual_bytes = threading.stack_size(_NO_SUCH_STACK_BYTES)
        try:
            asyncio.run(come_in_vain())
        finally:
            threading.stack_size(usual_bytes)
        asyncio.run(look())


def test_a_commit_is_told_where_the_system_has_no_pipe2(
    file_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "pipe2", raising=False)  # as on macOS
    with closing(open_storage(file_url)) as storage:
        changes = Changes(storage)

        async def look() -> None:
            async with aclosing(changes.stream()) as events, asyncio.timeout(PATIENCE_S):
                await begun(events)
                await told(events)
                before = changes.version
                storage.enqueue(Job.new("noop"))
                await told(events)
                assert changes.version > before
            await until(lambda: not changes.is_listening, what="its end, as nobody looks any more")

        asyncio.run(look())


def test_a_commit_is_told_when_there_may_be_something_newer(file_url: str) -> None:
    with closing(open_storage(file_url)) as storage:
        changes = Changes(storage)

        async def look() -> None:
            async with aclosing(changes.stream()) as events:
                await begun(events)
                await told(events)
                new_at = time.monotonic() + 1.2  # longer than the shortest time between two tellings
                changes.new_at = lambda: new_at
                storage.enqueue(Job.new("noop"))
                await told(events)
                assert time.monotonic() >= new_at

        asyncio.run(look())


def test_however_often_it_is_asked_to_it_tells_at_most_every_half_a_second(file_url: str) -> None:
    with closing(open_storage(file_url)) as storage:
        changes = Changes(storage)

        async def look() -> None:
            async with aclosing(changes.stream()) as events:
                began = time.monotonic()  # before the first telling, of which this thread may learn late
                await begun(events)
                await told(events)
                for _ in range(2):
                    changes.tell_at(float("-inf"))
                    await told(events)
                assert time.monotonic() - began > 0.9

        asyncio.run(look())


def test_a_browser_that_comes_beside_others_is_told_at_once(
    file_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes_module, "_TELL_ANYHOW_S", 3600.0)
    with closing(open_storage(file_url)) as storage:
        changes = Changes(storage)

        async def look() -> list[bytes]:
            async with aclosing(changes.stream()) as others:
                await begun(others)
                await told(others)
                async with aclosing(changes.stream()) as events:
                    return [(await anext(events)).splitlines()[0] for _ in range(2)]

        assert asyncio.run(look()) == [b"event: hello", b"event: changed"]


async def begun(events: AsyncGenerator[bytes, None]) -> None:
    """What each stream begins with."""
    for event in ("hello", "changed"):
        assert (await anext(events)).startswith(b"event: " + event.encode())


async def told(events: AsyncGenerator[bytes, None]) -> None:
    """Until it is told of a change."""
    async for event in events:
        if event.startswith(b"event: changed"):
            return
