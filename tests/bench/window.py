"""Benchmark, a program of a run: lets the jobs begin once the server is up, and reads its page meanwhile."""

from __future__ import annotations

import re
import time
from contextlib import closing

import httpx

from qml_mp.storage.open import open_storage
from tests.bench.place import Place
from tests.until import wait_until

_QUEUE = "default"
_PAGE = re.compile(r"The page: (http://\S+)")
_LOOK_EVERY_S = 0.25


def pause(url: str) -> None:
    """No job begins until `look` says so."""
    with closing(open_storage(url)) as storage:
        storage.set_paused(_QUEUE, True)


def look(url: str, *page: str) -> None:
    """End the pause; with a page, read its Overview until the end of the run."""
    with httpx.Client(trust_env=False, timeout=60) as client, closing(open_storage(url)) as storage:
        wait_until(storage.list_servers, what="the server")
        address = wait_until(_address, what="the page") if page else ""
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
