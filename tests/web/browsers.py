"""Tests: open browsers: each holds a stream, and fetches every live part when it is told of a change."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import httpx

_LIVE = re.compile(r'id="([a-z_]+)" data-live hx-get="([^"]+)"')
_LIMITS = httpx.Limits(max_connections=1000)


class Window:
    """One browser's window."""

    def __init__(self, origin: str, path: str) -> None:
        # There is no TLS; to be ready for it, each client would read the certificates of all authorities.
        self._client = httpx.AsyncClient(
            base_url=origin, trust_env=False, verify=False, timeout=60, limits=_LIMITS
        )
        self._path = path
        self.told = 0
        """How often it was told of a change."""
        self.parts: dict[str, str] = {}
        """By name, as they were fetched last."""
        self.fetching = asyncio.Lock()
        """Whoever has it may end the window: what is broken off amid requests leaves connections open."""

    async def live(self) -> None:
        """Until it is cancelled."""
        async with self._client as client:
            page = await client.get(self._path)
            names = _LIVE.findall(page.text)
            assert names
            while True:
                async with client.stream("GET", "/events", timeout=60) as stream:
                    async for line in stream.aiter_lines():
                        if line == "event: changed":
                            self.told += 1
                            async with self.fetching:
                                await self._fetch(client, names)

    async def _fetch(self, client: httpx.AsyncClient, names: list[tuple[str, str]]) -> None:
        async def fetch(name: str, address: str) -> None:
            answer = await client.get(address, headers={"HX-Request": "true", "HX-Target": name})
            assert answer.status_code == 200, answer.text
            self.parts[name] = answer.text

        await asyncio.gather(*(fetch(name, address) for name, address in names))


@asynccontextmanager
async def windows(origin: str, path: str, *, count: int) -> AsyncIterator[list[Window]]:
    """So many, open within the block. Fails when one of them fails."""
    opened = [Window(origin, path) for _ in range(count)]
    tasks = [asyncio.create_task(window.live()) for window in opened]
    try:
        yield opened
    finally:
        failed = [task.exception() for task in tasks if task.done() and not task.cancelled()]
        for window, task in zip(opened, tasks, strict=True):
            async with window.fetching:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        assert failed == []


async def until(condition: Callable[[], bool], *, what: str, within_s: float = 60) -> None:
    """Waits for a condition, with a deadline."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while not condition():
        assert loop.time() < deadline, f"{what} did not come about"
        await asyncio.sleep(0.02)
