"""Tests: browsers are told of what was committed, and fifty of them cost the storage little."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.statement_trace import TRACE, statements
from tests.storage.helpers import job_in
from tests.web.browsers import Window, until, windows
from tests.web.serving import Served, served

_BROWSERS = 50
_MOST_PER_S = 5.0
_MEASURED_S = 8.0


def shows(window: Window, count: int, state: str) -> bool:
    figure = f'<span class="value">{count}</span><span class="word">{state}</span>'
    return figure in window.parts.get("figures", "")


def count(storage: Storage, state: StateName) -> int:
    return storage.job_counts()[state]


def test_what_was_committed_appears_in_every_window(page: Served, storage: Storage) -> None:
    async def look() -> None:
        async with windows(page.origin, "/", count=3) as opened:
            before = count(storage, StateName.SUCCEEDED)
            await until(
                lambda: all(shows(each, before, "succeeded") for each in opened), what="the first look"
            )

            job_in(storage, StateName.SUCCEEDED)

            await until(lambda: all(shows(each, before + 1, "succeeded") for each in opened), what="the end")

    asyncio.run(look())


def test_fifty_windows_cost_the_storage_at_most_five_statements_a_second(
    url: str, storage: Storage, tmp_path: Path
) -> None:
    """While nothing is committed, and while there are commits without an end."""
    traces = tmp_path / "traces"
    traces.mkdir()
    tracing = served(url, tmp_path, env={TRACE: str(traces)}, program=("-m", "tests.statement_trace"))

    async def look(page: Served) -> tuple[float, float]:
        async with windows(page.origin, "/", count=_BROWSERS) as opened:
            await until(lambda: all(each.told > 2 for each in opened), what="fifty windows")
            await asyncio.sleep(1)  # the first look costs more, and is over
            idle = await _per_second(traces, storage, is_busy=False)
            await _commit_for(3, storage, is_busy=True)
            busy = await _per_second(traces, storage, is_busy=True)
            newest = count(storage, StateName.ENQUEUED)
            await until(lambda: all(shows(each, newest, "enqueued") for each in opened), what="the newest")
            return idle, busy

    with tracing as page:
        idle, busy = asyncio.run(look(page))

    print(f"{_BROWSERS} windows: {idle:.2f} statements per second while idle, {busy:.2f} under load")
    assert max(idle, busy) <= _MOST_PER_S


async def _per_second(traces: Path, storage: Storage, *, is_busy: bool) -> float:
    began_s, before = time.monotonic(), _sent(traces)  # the time of all that is counted
    await _commit_for(_MEASURED_S, storage, is_busy=is_busy)
    return (_sent(traces) - before) / (time.monotonic() - began_s)


async def _commit_for(seconds: float, storage: Storage, *, is_busy: bool) -> None:
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        if is_busy:
            storage.enqueue(Job.new("noop", {}, queue="load"))
        await asyncio.sleep(0.05)


def _sent(traces: Path) -> int:
    return sum(len(each) for each in statements(traces).values())
