"""Tests: a worker whose registration storage has lost, as a crash or a failover loses the newest commits."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qml_mp.storage.store import Storage
from tests.processes.harness import Server, result_of, wait_until
from tests.storage_rows import run_raw

APP = "tests.processes.apps_storage_faults:app"
OFTEN = {"QML_MP_POLLING_INTERVAL": "10ms"}  # a worker looks after itself every so many of these


@pytest.mark.parametrize(
    "lose",
    [
        pytest.param("DELETE FROM {s}[workers]", id="its row"),
        pytest.param("UPDATE {s}[workers] SET epoch = epoch - 1", id="its newest epoch"),
    ],
)
def test_a_worker_that_storage_has_forgotten_is_registered_again_and_claims(
    server: Callable[..., Server], storage: Storage, lose: str
) -> None:
    one = server("-w", "1", app=APP, **OFTEN).start()
    workers = one.worker_pids()
    assert result_of(storage, "plain") == "plain"

    table = "qml_workers" if storage.url.startswith("sqlite:") else "workers"
    run_raw(storage, lose.replace("[workers]", table))

    assert result_of(storage, "plain") == "plain"
    wait_until(lambda: "Storage has lost the row or the newest epoch" in one.log(), what=one.log)
    assert one.worker_pids() == workers
    assert one.stop() == 0
