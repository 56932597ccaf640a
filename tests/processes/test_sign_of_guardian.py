"""Tests: jobs of a killed server go to others once its guardian has written what had ended, not before."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

import pytest

from qml_mp import host
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from qml_mp.supervisor.recovery.sign_of_guardian import hold_sign, is_held
from tests.processes.harness import Server, enqueue, wait_for_state, wait_until

MakeServer = Callable[..., Server]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there are no such names of sockets")


@pytest.mark.fault(4)
def test_a_killed_servers_jobs_wait_for_its_guardian(server: MakeServer, storage: Storage) -> None:
    app = "tests.soak.apps:app"
    # No grace: a second signal that came half a second after the first would have the worker release its job.
    one = server("-w", "1", app=app, QML_MP_ORPHAN_GRACE="0").start(ready=1)
    supervisor = host.identity(one.pid)
    wait_until(lambda: is_held(supervisor), what="the guardian's sign")
    job_id = enqueue(storage, "fatal_once")
    wait_until(one.journal, what=one.log)
    one.signal(signal.SIGKILL)
    one.wait()
    sign = wait_until(lambda: hold_sign(supervisor), what="the end of the guardian")

    two = server("-w", "1", app=app).start(ready=1)
    assert storage.list_servers()
    assert [claim.key.claim_seq for claim in storage.claims()] == [1]
    sign.close()
    assert wait_for_state(storage, job_id, StateName.SUCCEEDED).claim_seq == 2
    assert two.stop() == 0
