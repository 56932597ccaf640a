"""Tests of the storage: a registered worker, and one that stops in the middle of a claim."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import TypeVar

from qml_mp.core.job import Claim
from qml_mp.core.server_info import ProcessIdentity, ServerInfo, WorkerInfo
from qml_mp.storage.store import Storage
from tests.storage.conftest import Raw
from tests.storage.helpers import fetch, open_patiently
from tests.until import wait_until

PROCESS = ProcessIdentity(host="kernel/ns", pid=4242, started_ticks=1)
START = datetime(2026, 1, 1, 12, tzinfo=UTC)
FETCH = replace(fetch(worker="w-1", server="a#1"), registered=True)

_T = TypeVar("_T")


def worker(*, epoch: int = 0) -> WorkerInfo:
    """The worker w-1."""
    return WorkerInfo(
        id="w-1", server_id="a#1", number=1, process=PROCESS, started_at=START, epoch=epoch
    )  # fmt: skip


def register(storage: Storage) -> None:
    """The server a#1 with its worker w-1."""
    storage.register_server(
        ServerInfo(
            id="a#1",
            name="a",
            hostname="h",
            process=PROCESS,
            worker_count=1,
            queues=(),
            started_at=START,
            last_heartbeat=START,
            heartbeat_enabled=True,
        )
    )
    assert storage.register_worker(worker())


class Claimer:
    """A worker that sends its claim from another thread, for tests that stop it on its way."""

    def __init__(self, url: str, raw: Raw) -> None:
        self._name = f"claimer {uuid.uuid4().hex}"  # others may claim on the same server at the same time
        self.storage = open_patiently(url, application_name=self._name)
        self._raw = raw
        self._thread = ThreadPoolExecutor(1)

    def send(self) -> Future[Claim | None]:
        """Send the claim; returns when it waits for a lock."""
        return self.ask(lambda storage: storage.fetch_and_lock_job(FETCH))

    def ask(self, ask: Callable[[Storage], _T]) -> Future[_T]:
        """Have it ask storage for that; returns when this waits for a lock."""
        sent = self._thread.submit(ask, self.storage)
        wait_until(self._is_waiting, what="a claim that waits for a lock")
        return sent

    def close(self) -> None:
        self._thread.shutdown()
        self.storage.close()

    def _is_waiting(self) -> bool:
        waiting = "SELECT 1 FROM pg_stat_activity WHERE application_name = ? AND wait_event_type = 'Lock'"
        return bool(self._raw.run(waiting, self._name))
