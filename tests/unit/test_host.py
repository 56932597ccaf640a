"""Tests: who a process is, and when it is proved dead."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from qml_mp import host


def test_this_process_is_alive_and_one_that_had_its_pid_before_is_dead() -> None:
    own = host.identity()

    assert host.is_alive(own) is True
    assert host.is_alive(replace(own, started_ticks=own.started_ticks - 1)) is False


def test_a_process_that_nobody_has_collected_yet_is_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = host.identity(child.pid)
    assert host.is_alive(process) is True

    child.communicate()

    assert host.is_alive(process) is False


def test_a_thread_that_has_ended_and_is_still_listed_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = iter([2, 2, 1])
    monkeypatch.setattr(host, "_ENDING_S", float("inf"))
    monkeypatch.setattr(host, "thread_count", lambda: next(listed))

    assert host.lasting_thread_count() == 1


def test_a_thread_that_stays_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_ENDING_S", 0.01)
    monkeypatch.setattr(host, "thread_count", lambda: 2)

    assert host.lasting_thread_count() == 2


@pytest.mark.fault(74)
def test_what_runs_elsewhere_is_not_known() -> None:
    own = host.identity()
    boot, _, namespace = own.host.partition(":")
    container = replace(own, host=f"{boot}:pid:[1]")
    before_reboot = replace(own, host=f"another-boot:{namespace}")

    assert [host.is_alive(process) for process in (container, before_reboot)] == [None, None]
    assert [host.is_of_another_boot(process) for process in (own, container, before_reboot)] == [
        False,
        False,
        True,
    ]
    assert not host.is_of_another_boot(replace(own, host="a-name-of-a-machine"))


@pytest.mark.fault(78)
def test_a_start_time_that_was_not_told_proves_nothing() -> None:
    assert host.is_alive(replace(host.identity(), started_ticks=0)) is None
