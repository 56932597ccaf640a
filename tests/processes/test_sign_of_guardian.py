"""Tests: jobs of a killed server go to others once its guardian has written what had ended, not before."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any, NoReturn

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
    app = "tests.nightly.apps:app"
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


def test_the_sign_lasts_as_long_as_any_process_that_has_it_open() -> None:
    child = os.fork()
    if child == 0:
        signal.pause()
    who = host.identity(child)
    sign = hold_sign(who)
    assert sign is not None
    assert is_held(who)
    reading, writing = os.pipe()
    heir = os.fork()
    if heir == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    sign.close()
    assert is_held(who)
    os.close(writing)
    os.close(reading)
    os.waitpid(heir, 0)
    assert not is_held(who)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def refusal(number: int) -> Callable[..., Any]:
    def refuse(*_: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return refuse


def test_nobody_waits_for_a_sign_where_the_system_refuses_such_sockets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    who = host.identity()
    monkeypatch.setattr(socket, "socket", refusal(errno.EAFNOSUPPORT))  # systemd's RestrictAddressFamilies

    assert hold_sign(who) is None
    assert not is_held(who)


def test_nobody_waits_for_a_sign_where_the_system_refuses_such_names(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused(socket.socket):
        bind = refusal(errno.EACCES)  # AppArmor

    who = host.identity()
    monkeypatch.setattr(socket, "socket", Refused)

    assert hold_sign(who) is None
    assert not is_held(who)


def test_without_a_free_descriptor_nobody_takes_a_sign_for_let_go() -> None:
    who = host.identity()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        assert is_held(who)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert not is_held(who)
