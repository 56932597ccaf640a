"""Tests: the workers of a server that says nothing, when they may not be killed: another user's."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from qml_mp import host
from qml_mp.core.server_info import ProcessIdentity, ServerInfo, WorkerInfo
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from qml_mp.supervisor.recovery import frozen, sweep

NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def process() -> Iterator[ProcessIdentity]:
    with subprocess.Popen(["sleep", "60"]) as sleeping:
        try:
            yield host.identity(sleeping.pid)
        finally:
            sleeping.kill()


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    with closing(open_storage(f"sqlite:///{tmp_path}/jobs.db")) as opened:
        yield opened


def test_workers_that_may_not_be_killed_are_tried_with_growing_pauses_and_told_once(
    storage: Storage,
    process: ProcessIdentity,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    peer = ServerInfo(
        id="peer#1", name="peer", hostname="here", process=process, worker_count=1, queues=(), started_at=NOW,
        last_heartbeat=NOW, heartbeat_enabled=True,
    )  # fmt: skip
    storage.register_server(peer)
    storage.register_worker(WorkerInfo(id="w", server_id=peer.id, number=1, process=process, started_at=NOW))
    monkeypatch.setattr(frozen, "_LEAVE_WITHIN", timedelta())
    monkeypatch.setattr(frozen, "ask_stranger", lambda _: None)  # as signals do that may not be sent
    monkeypatch.setattr(sweep, "kill_stranger", lambda _: None)
    peers = frozen.FrozenPeers()

    with caplog.at_level(logging.WARNING):
        pauses = [peers.end_workers(storage, peer) for _ in range(9)]

    assert pauses == [min(timedelta(seconds=0.05 * 2**each), timedelta(seconds=5)) for each in range(9)]
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 3
    assert "its workers are ended" in told[0]
    assert "Killing worker" in told[1]
    assert "another user's" in told[2]
