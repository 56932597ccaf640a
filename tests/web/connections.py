"""Tests: the connections of a browser: HTTP/1.1 as the page's server speaks it, and no more.

Fifty windows send thousands of requests. A client for everything spends more on each than the page does.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

_COOKIE = re.compile(r"^set-cookie: ([^;\r]+)", re.IGNORECASE | re.MULTILINE)
_LENGTH = re.compile(r"^content-length: (\d+)\r$", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came, with the status 200."""

    head: str
    text: str

    @property
    def cookies(self) -> list[str]:
        """Each as NAME=VALUE."""
        return _COOKIE.findall(self.head)


class Connection:
    """One, which is opened when it is needed, and again after the server has closed it."""

    def __init__(self, origin: str) -> None:
        self._host = urlsplit(origin).netloc
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    async def get(self, path: str, **headers: str) -> Answer:
        """The whole answer. Raises `AssertionError` for one that is no 200 with its length."""
        try:
            head = await self._ask(path, headers)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            if getattr(error, "partial", b""):
                raise
            await self._close()  # it was idle for so long that the server closed it
            head = await self._ask(path, headers)
        length = _LENGTH.search(head)
        assert self._streams is not None
        assert length is not None, head
        body = await self._streams[0].readexactly(int(length[1]))
        text = body.decode()
        assert _is_fine(head), head + text
        return Answer(head=head, text=text)

    async def events(self, path: str, **headers: str) -> AsyncIterator[str]:
        """Names of server-sent events, each of which the server sends by itself. Raises `AssertionError` when
        the last is no "end"."""
        head = await self._ask(path, headers)
        assert self._streams is not None
        assert _is_fine(head), head
        name = ""
        async for line in self._streams[0]:
            if line.startswith(b"event: "):
                name = line[7:].decode().strip()
                yield name
            if name == "end":
                break
        assert name == "end", "the stream was broken off"
        await self._close()

    async def _ask(self, path: str, headers: dict[str, str]) -> str:
        """The head of the answer."""
        if self._streams is None:
            host, _, port = self._host.rpartition(":")
            self._streams = await asyncio.open_connection(host, int(port))
        reader, writer = self._streams
        lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items() if value]
        writer.write(f"GET {path} HTTP/1.1\r\nhost: {self._host}\r\n{''.join(lines)}\r\n".encode())
        return (await reader.readuntil(b"\r\n\r\n")).decode()

    async def _close(self) -> None:
        streams, self._streams = self._streams, None
        if streams is not None:
            streams[1].close()
            with suppress(ConnectionError):
                await streams[1].wait_closed()


def _is_fine(head: str) -> bool:
    return head.startswith("HTTP/1.1 200 ")
