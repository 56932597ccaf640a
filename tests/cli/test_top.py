"""`qml-mp top`: what it draws on a terminal, what its keys do, and how it leaves the terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pyte
import pytest

from qml_mp import host
from qml_mp.core.job import Job
from qml_mp.core.outcome import ErrorInfo, Failure
from qml_mp.core.server_info import ServerInfo, WorkerInfo
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from qml_mp.storage.values import BY_DEFAULT, Fetch
from tests.cli.command import Qml

WITHIN_S = 60
_NEXT_PAGE = b"\x1b[H"
"""The cursor goes home. A page is written over the one before, so it is whole once the next one begins."""


@pytest.fixture
def busy(storage: Storage) -> Storage:
    """One server with two workers, of which the first runs a job; jobs that wait, and one that has failed."""
    now = datetime.now(UTC)
    storage.register_server(
        ServerInfo(
            id="blue#1", name="blue", hostname="here", process=host.identity(), worker_count=2,
            queues=("default",), started_at=now, last_heartbeat=now, methods=("thumb",),
        )
    )  # fmt: skip
    for number in (1, 2):
        storage.register_worker(
            WorkerInfo(
                id=f"blue#1:worker:{number}.1", server_id="blue#1", number=number, process=host.identity(),
                started_at=now,
            )
        )  # fmt: skip
    storage.enqueue(Job.new("thumb", {"n": 1}))
    failed = storage.fetch_and_lock_job(Fetch(worker_id="blue#1:worker:1.1", server_id="blue#1", queues=()))
    assert failed is not None
    error = ErrorInfo(type="ValueError", message="no\x1b[2J", traceback='  File "a/t.py", line 3, in f\n')
    storage.finish(failed, Failure(error=error), retention=BY_DEFAULT)
    storage.enqueue(Job.new("thumb", {"n": 2}))
    assert storage.fetch_and_lock_job(Fetch(worker_id="blue#1:worker:1.1", server_id="blue#1", queues=()))
    storage.enqueue_many(Job.new("thumb", queue=queue) for queue in ("default", "images", "images"))
    return storage


class Seen:
    """A terminal with `top` in it. Its screen shows whole pages only: in a line that is half written, columns
    of the old page stand behind columns of the new one."""

    def __init__(self, fd: int, process: subprocess.Popen[bytes], before: list[Any]) -> None:
        """`before`: how the terminal was set when nothing had it yet."""
        self.before = before
        self.screen = pyte.Screen(80, 24)
        self.everything = b""
        self.fd = fd
        self.process = process
        self._stream = pyte.ByteStream(self.screen)
        self._begun = b""
        """Of the page that is not whole yet."""

    def until(self, is_there: Callable[[str], bool]) -> str:
        """Read on until the screen is as wanted; the screen."""
        deadline = time.monotonic() + WITHIN_S
        while not is_there(text := "\n".join(self.screen.display)):
            assert time.monotonic() < deadline, text
            self.read()
        return text

    def read(self) -> bool:
        """Read what there is; whether there may be more."""
        if not select.select([self.fd], [], [], 0.5)[0]:
            return True
        try:
            data = os.read(self.fd, 65536)
        except OSError:
            data = b""
        if not data:  # the command has left its terminal, and all that it wrote is read
            self._stream.feed(self._begun)
            self._begun = b""
            return False
        self.everything += data
        whole, begins, self._begun = (self._begun + data).rpartition(_NEXT_PAGE)
        self._stream.feed(whole + begins)
        return True

    def leave(self) -> int:
        """Press q; the exit code, when all that was written is read."""
        os.write(self.fd, b"q")
        deadline = time.monotonic() + WITHIN_S
        while self.read():
            assert time.monotonic() < deadline
        return self.process.wait(WITHIN_S)


_ON_ITS_TERMINAL = """
import os, sys
os.login_tty(os.dup(0))
os.execv(sys.executable, [sys.executable, "-m", "qml_mp", *sys.argv[1:]])
"""


@contextmanager
def on_terminal(qml: Qml, *arguments: str, term: str = "xterm-256color") -> Iterator[Seen]:
    """The command on a terminal of 80 columns and 24 lines."""
    fd, theirs = pty.openpty()
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    before = termios.tcgetattr(fd)
    with subprocess.Popen(
        [sys.executable, "-c", _ON_ITS_TERMINAL, *arguments], cwd=qml.folder,
        env=qml.environment({"TERM": term}), stdin=theirs, stdout=theirs, stderr=theirs,
    ) as process:  # fmt: skip
        os.close(theirs)
        try:
            yield Seen(fd, process, before)
        finally:
            os.close(fd)
            process.kill()


def test_on_a_terminal_it_draws_itself_takes_keys_and_leaves_the_terminal_as_it_was(
    qml: Qml, busy: Storage
) -> None:
    with on_terminal(qml, "top", "--every", "100ms") as seen:
        text = seen.until(lambda text: "images" in text and "q leave" in text)
        os.write(seen.fd, b"\t\x1b[Bp")
        seen.until(lambda text: "Pause queue images? y: yes" in text)
        os.write(seen.fd, b"y")
        seen.until(lambda text: "images is paused." in text)
        code = seen.leave()
        assert termios.tcgetattr(seen.fd) == seen.before

    for part in (
        "processing 1",
        "blue 1",
        "thumb",
        "none",
        "ValueError: no\\x1b[2J",
        "queue images: 2 jobs and no",
    ):
        assert part in text
    assert text.splitlines()[-1].startswith("Tab list")
    assert code == 0
    assert [each.limit.name for each in busy.standings() if each.limit.paused] == ["images"]
    assert seen.everything.rstrip().endswith((b"\x1b[?1049l\x1b[?25h", b"\x1b[?25h\x1b[?1049l"))


def test_a_job_is_retried_and_one_that_runs_cancelled_after_a_question(qml: Qml, busy: Storage) -> None:
    with on_terminal(qml, "top", "--every", "100ms") as seen:
        seen.until(lambda text: "q leave" in text)
        os.write(seen.fd, b"r")
        seen.until(lambda text: "Retry thumb (ValueError)" in text)
        os.write(seen.fd, b"n")
        seen.until(lambda text: "Nothing was changed." in text)
        refused = busy.job_counts()[StateName.FAILED]
        os.write(seen.fd, b"ry")
        seen.until(lambda text: " enqueued." in text)
        os.write(seen.fd, b"cy")
        seen.until(lambda text: "asked to end." in text)
        seen.leave()

    assert refused == 1
    assert busy.job_counts()[StateName.FAILED] == 0
    assert len(busy.cancel_requests("blue#1")) == 1


def test_a_storage_that_is_away_is_told_until_it_is_back(qml: Qml, busy: Storage) -> None:
    busy.close()
    away = qml.database.with_suffix(".away")
    with on_terminal(qml, "top", "--every", "100ms") as seen:
        seen.until(lambda text: "q leave" in text)

        qml.database.rename(away)
        gone = seen.until(lambda text: "this is as of " in text)
        away.rename(qml.database)
        seen.until(lambda text: "this is as of " not in text)
        code = seen.leave()

    assert "images" in gone
    assert code == 0


def test_a_terminal_that_cannot_be_drawn_on_is_refused(qml: Qml, busy: Storage) -> None:
    with on_terminal(qml, "top", term="dumb") as seen:
        seen.until(lambda text: "TERM says that this is none" in text.replace("\n", ""))
        assert seen.process.wait(WITHIN_S) == 2


def test_without_a_terminal_it_says_what_to_do(qml: Qml) -> None:
    ended = qml("top")

    assert ended.code == 2
    assert "`top` needs a terminal. `qml-mp status --watch` shows the same" in ended.err
