"""Tests: named failpoints do nothing until they are armed, and then exactly what was said."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qml_mp import failpoints
from qml_mp.errors import StorageUnavailable
from tests.failpoints import arm

PACKAGE = Path(failpoints.__file__).parent


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    arm("")


def in_child(action: Callable[[], object]) -> int:
    """Run it in a forked process; its exit code, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_place_that_is_not_armed_does_nothing() -> None:
    arm("finish.before=raise")

    failpoints.hit("finish.committed")


def test_each_place_that_is_documented_is_in_the_code_once() -> None:
    text = "".join(path.read_text() for path in PACKAGE.rglob("*.py"))

    hits = re.findall(r'failpoints\.hit\("([a-z.]+)"\)', text)

    assert sorted(hits) == sorted(failpoints.PLACES)


def test_an_armed_place_raises_at_its_turn_alone() -> None:
    arm("storage.call=raise:2;finish.before=break")

    failpoints.hit("storage.call")
    with pytest.raises(StorageUnavailable, match=r"storage\.call"):
        failpoints.hit("storage.call")
    failpoints.hit("storage.call")
    with pytest.raises(RuntimeError):
        failpoints.hit("finish.before")


def test_a_role_restricts_a_place() -> None:
    def as_worker() -> None:
        failpoints.hit("worker.begin")
        failpoints.hit("storage.call")

    arm("supervisor/storage.call=kill")

    assert in_child(as_worker) == 0
    arm("worker/storage.call=kill")
    assert in_child(as_worker) == -signal.SIGKILL


def test_a_forked_process_counts_for_itself() -> None:
    arm("storage.call=kill:2")
    failpoints.hit("storage.call")

    def come_by(times: int) -> None:
        for _ in range(times):
            failpoints.hit("storage.call")

    assert in_child(lambda: come_by(1)) == 0
    assert in_child(lambda: come_by(2)) == -signal.SIGKILL


def test_with_a_mark_it_strikes_once_for_all(tmp_path: Path) -> None:
    arm(f"boot=kill@{tmp_path / 'mark'}")

    codes = [in_child(lambda: failpoints.hit("boot")) for _ in range(3)]

    assert codes == [-signal.SIGKILL, 0, 0]


@pytest.mark.parametrize("text", ["boot", "boot=explode", "nowhere=kill", "boot=kill:0", "boot=kill@mark"])
def test_a_text_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no failpoint"):
        arm(text)
