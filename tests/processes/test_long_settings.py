"""Tests: a server whose every duration is the longest that there is works like any other."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from qml_mp.core.state import StateName
from qml_mp.setting_kinds import Time
from qml_mp.settings import SETTINGS
from qml_mp.storage.store import Storage
from qml_mp.units import LONGEST
from tests.processes.harness import Server, enqueue, wait_for_state

MakeServer = Callable[..., Server]


def test_a_server_with_the_longest_durations_runs_jobs_waits_and_stops(
    server: MakeServer, storage: Storage
) -> None:
    longest = {name: LONGEST for name, kind in SETTINGS.items() if isinstance(kind, Time)}
    longest["heartbeat_interval"] /= 2
    one = server(
        **{f"QML_MP_{name.upper()}": f"{value.total_seconds():.0f}" for name, value in longest.items()}
    )
    one.start()

    first = wait_for_state(storage, enqueue(storage, "quick"), StateName.SUCCEEDED)
    wait_for_state(storage, enqueue(storage, "quick"), StateName.SUCCEEDED)

    assert first.expires_at is not None
    assert first.expires_at - first.created_at >= LONGEST - timedelta(seconds=1)
    assert one.stop() == 0
    assert "Traceback" not in one.log()
