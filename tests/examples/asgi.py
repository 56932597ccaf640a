"""Tests: what an ASGI server is to an application: its lifespan, and requests, by the protocol itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

Message = MutableMapping[str, Any]
Application = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]
_ASGI = {"version": "3.0", "spec_version": "2.4"}


@asynccontextmanager
async def lifespan(application: Application) -> AsyncIterator[Message]:
    """The application between its startup and its shutdown; yields its answer to the startup."""
    to_application: asyncio.Queue[Message] = asyncio.Queue()
    from_application: asyncio.Queue[Message] = asyncio.Queue()
    scope = {"type": "lifespan", "asgi": _ASGI, "state": {}}
    life = asyncio.ensure_future(application(scope, to_application.get, from_application.put))
    await to_application.put({"type": "lifespan.startup"})
    started = await asyncio.wait_for(from_application.get(), 60)
    yield started
    if started["type"] == "lifespan.startup.complete":
        await to_application.put({"type": "lifespan.shutdown"})
        assert await asyncio.wait_for(from_application.get(), 60) == {"type": "lifespan.shutdown.complete"}
    await asyncio.wait_for(life, 60)


async def request(application: Application, method: str, path: str) -> tuple[int, Any]:
    """One HTTP request without a body; the status, and the answer's JSON."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http", "asgi": _ASGI, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": [],
        "client": ("127.0.0.1", 50000), "server": ("127.0.0.1", 8000), "state": {},
    }  # fmt: skip
    await application(scope, receive, send)
    start, *rest = sent
    assert start["type"] == "http.response.start"
    return start["status"], json.loads(b"".join(part["body"] for part in rest))
