"""Tests: a browser of applications in this process, without a server between them."""

from __future__ import annotations

import asyncio
from itertools import cycle
from typing import Any

import httpx
from starlette.types import ASGIApp


class Visitor:
    """Has cookies, and follows no redirects. Of several processes that serve one page each request reaches
    another."""

    def __init__(self, *processes: ASGIApp, origin: str = "http://localhost") -> None:
        self._turns = cycle(processes)
        self._origin = origin
        self.cookies = httpx.Cookies()

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self._ask("GET", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self._ask("POST", path, **options)

    def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        transport = httpx.ASGITransport(app=next(self._turns), raise_app_exceptions=False)

        async def ask() -> httpx.Response:
            async with httpx.AsyncClient(
                transport=transport, base_url=self._origin, cookies=self.cookies, verify=False
            ) as client:
                answer = await client.request(method, path, **options)
                self.cookies = client.cookies
                return answer

        return asyncio.run(ask())
