"""The browser of the tests: found, or said how to get; and nothing of it outlives the tests that have it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from tests.browser.chromium import VARIABLE, NoChromium, find_chromium
from tests.browser.conftest import started_browser
from tests.until import wait_until


def test_a_browser_that_has_ended_leaves_no_thread_descriptor_or_child() -> None:
    before = traces()

    with started_browser() as browser:
        page = browser.new_page()
        page.goto("about:blank")

    # A thread is there for a moment longer than whoever has joined it knows.
    wait_until(lambda: traces() <= before, what=lambda: f"the end of {traces() - before}")


def test_one_without_windows_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("chromium", "chromium-headless-shell"):
        (tmp_path / name).touch(mode=0o755)

    assert find_chromium() == str(tmp_path / "chromium-headless-shell")


def test_without_a_browser_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr("tests.browser.chromium._APPLICATIONS", ())

    with pytest.raises(NoChromium, match=r"apt-get install .*chromium"):
        find_chromium()


def test_a_browser_that_is_named_and_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "/nowhere/chromium")

    with pytest.raises(NoChromium, match="/nowhere/chromium"):
        find_chromium()


def traces() -> set[str]:
    """Threads, descriptors and children of this process. Those of an earlier test may be about to go."""
    links = {f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}" for fd in os.listdir("/proc/self/fd") if exists(fd)}
    threads = {f"thread {number}" for number in os.listdir("/proc/self/task")}
    with open(f"/proc/self/task/{threading.get_native_id()}/children") as children:
        return links | threads | {f"child {pid}" for pid in children.read().split()}


def exists(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")
