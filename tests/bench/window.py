"""Benchmark, a program of a run: lets the jobs begin once the server is up, and reads its page meanwhile."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import closing
from typing import TypeVar

import httpx

from qml_mp.storage.open import open_storage
from tests.bench.place import Place

_T = TypeVar("_T")
_QUEUE = "default"
_PAGE = re.compile(r"The page: (http://\S+)")
_BOOT_S = 60.0
_LOOK_EVERY_S = 0.25


def pause(url: str) -> None:
    """No job begins until `look` says so."""
    with closing(open_storage(url)) as storage:
        storage.set_paused(_QUEUE, True)


def look(url: str, *page: str) -> None:
    """End the pause; with a page, read its Overview until the end of the run."""
    with httpx.Client(trust_env=False, timeout=60) as client, closing(open_storage(url)) as storage:
        _wait_for(storage.list_servers)
        address = _wait_for(_address) if page else ""
        if address:
            client.get(address).raise_for_status()
        storage.set_paused(_QUEUE, False)
        while address:
            began = time.monotonic()
            client.get(address).raise_for_status()
            time.sleep(max(0.0, began + _LOOK_EVERY_S - time.monotonic()))


def _address() -> str | None:
    for log in Place.current().folder.glob("log-*"):
        if found := _PAGE.search(log.read_text(errors="replace")):
            return found[1]
    return None


def _wait_for(look: Callable[[], _T | None]) -> _T:
    deadline = time.monotonic() + _BOOT_S
    while not (found := look()):
        if time.monotonic() > deadline:
            raise TimeoutError("The server is not up.")
        time.sleep(0.05)  # between two looks
    return found
