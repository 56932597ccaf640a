"""Tests: open browsers: each holds a stream, and fetches every live part when it is told of a change."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from html import unescape

from tests.web.connections import Connection

_LIVE = re.compile(r'id="([a-z_]+)" data-live hx-get="([^"]+)"')


class Window:
    """One browser's window."""

    def __init__(self, origin: str, path: str) -> None:
        self._origin = origin
        self._path = path
        self._cookie = ""
        self._news = asyncio.Event()
        """Told, and nothing fetched since. Of all that htmx is told while it fetches it keeps only that it
        has to fetch once more."""
        self.told = 0
        """How often it was told of a change."""
        self.parts: dict[str, str] = {}
        """By name, as they were fetched last."""

    async def live(self) -> None:
        """Until it is cancelled."""
        async with Connection(self._origin) as connection:
            page = await connection.get(self._path)
        self._cookie = "; ".join(page.cookies)
        names = _LIVE.findall(page.text)
        assert names
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen())
            group.create_task(self._follow(names))

    async def _listen(self) -> None:
        while True:
            async with Connection(self._origin) as connection:
                async for event in connection.events("/events", cookie=self._cookie):
                    if event == "changed":
                        self.told += 1
                        self._news.set()

    async def _follow(self, names: Sequence[tuple[str, str]]) -> None:
        async with AsyncExitStack() as stack:
            parts = [
                (await stack.enter_async_context(Connection(self._origin)), name, unescape(address))
                for name, address in names
            ]
            while True:
                await self._news.wait()
                self._news.clear()
                await asyncio.gather(*(self._fetch(*part) for part in parts))

    async def _fetch(self, connection: Connection, name: str, address: str) -> None:
        answer = await connection.get(address, cookie=self._cookie, hx_request="true", hx_target=name)
        self.parts[name] = answer.text


@asynccontextmanager
async def windows(origin: str, path: str, *, count: int) -> AsyncIterator[list[Window]]:
    """So many, open within the block. Fails when one of them fails. The page has been looked at before: who
    waits for one that reads what nobody has read yet is refused when that takes long."""
    async with Connection(origin) as connection:
        await connection.get(path)
    opened = [Window(origin, path) for _ in range(count)]
    tasks = [asyncio.create_task(window.live()) for window in opened]
    try:
        yield opened
    finally:
        failed = [task.exception() for task in tasks if task.done() and not task.cancelled()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert failed == []


async def until(condition: Callable[[], bool], *, what: str, within_s: float = 60) -> None:
    """Waits for a condition, with a deadline."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while not condition():
        assert loop.time() < deadline, f"{what} did not come about"
        await asyncio.sleep(0.02)
