"""`qml-mp top`: what it draws on a terminal, what its keys do, and how it leaves the terminal."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import sqlite3
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pyte
import pytest
from rich.console import Console

from qml_mp import host
from qml_mp.cli.commands import top
from qml_mp.cli.main import run
from qml_mp.cli.top.choice import Choice, Key, Pane
from qml_mp.cli.top.keyboard import keys_of
from qml_mp.cli.top.loop import Top
from qml_mp.cli.top.page import page, rows_of
from qml_mp.cli.top.sample import Rates, Sample, rates_between, take_sample
from qml_mp.core.history import Ending, SeriesKey, numbers_of_one
from qml_mp.core.job import Job
from qml_mp.core.outcome import ErrorInfo, Failure, Success
from qml_mp.core.server_info import ServerInfo, WorkerInfo
from qml_mp.core.state import StateName
from qml_mp.errors import StorageUnavailable
from qml_mp.storage.history import MINUTE, Period, floor_to
from qml_mp.storage.store import Storage
from qml_mp.storage.values import BY_DEFAULT, Fetch, Retention
from qml_mp.views import snapshot
from qml_mp.views.snapshot import Counting
from tests.cli.command import Qml
from tests.storage.helpers import too_long

SIZES = [(80, 24), (120, 40)]
WITHIN_S = 60
NO_RATES = Rates(growth_per_s={}, cpu_percent={})


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


def test_the_newest_failure_is_seen_beside_any_number_of_kinds(storage: Storage) -> None:
    """Of each there are two, and of the new one just one."""
    for name in [*(f"old{number}" for number in range(55)), "new"]:
        for _ in range(1 if name == "new" else 2):
            storage.enqueue(Job.new(name))
            claim = storage.fetch_and_lock_job(Fetch(worker_id="w", server_id="s", queues=()))
            assert claim is not None
            error = ErrorInfo(type="ValueError", message="no", traceback="")
            storage.finish(claim, Failure(error=error), retention=BY_DEFAULT)

    shown = [kind.newest.method for kind in take_sample(storage, Counting(), at=0.0).failures]

    assert shown[0] == "new"
    assert len(shown) == 50


def test_a_failure_of_three_days_ago_is_told_as_such(busy: Storage, qml: Qml) -> None:
    with closing(sqlite3.connect(qml.database)) as connection, connection:
        three_days_us = 3 * 24 * 3600 * 10**6
        connection.execute(
            "UPDATE qml_jobs SET finished_at = finished_at - ? WHERE state = 'failed'", [three_days_us]
        )

    lines = drawn(take_sample(busy, Counting(), at=0.0), Choice(), width=120, height=24)

    assert any(line.startswith("3d") and " ago " in line and "ValueError" in line for line in lines)


def test_what_cannot_be_counted_in_time_is_counted_up_to_a_number_for_some_minutes(
    busy: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried, now = list[str](), [0.0]
    counting = Counting(monotonic=lambda: now[0])
    monkeypatch.setattr(snapshot, "MOST_COUNTED", 1)

    def sample_with(*slow: str, at: float) -> Sample:
        now[0] = at
        with monkeypatch.context() as patch:
            for name in slow:
                patch.setattr(busy, name, in_time(getattr(busy, name), tried))
            return take_sample(busy, counting, at=at)

    cut, soon = sample_with("job_counts", at=0.0), sample_with("job_counts", at=299.0)
    kinds_cut, whole = sample_with("failure_kinds", at=300.0), sample_with(at=600.0)

    assert tried == ["job_counts", "failure_kinds"]  # and not when that was known
    samples = (cut, soon, kinds_cut, whole)
    assert [each.seen.most for each in samples] == [1, 1, None, None]
    assert [each.most_of_kind for each in samples] == [1, 1, 1, None]
    assert all(each.failures == whole.failures for each in samples)
    text = drawn(soon, Choice(), width=120, height=24)
    assert "enqueued 1+" in text[1]
    assert any(line.startswith("images") and " 1+ " in line for line in text)


def test_a_lock_that_was_waited_for_is_told_and_bounds_no_count(
    busy: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = Top(busy, retention=BY_DEFAULT)
    asked = list[int | None]()
    count = busy.job_counts

    def wait_for_a_lock(*, among: int | None = None) -> dict[StateName, int]:
        asked.append(among)
        if len(asked) == 1:
            raise StorageUnavailable("canceling statement due to lock timeout")
        return count(among=among)

    monkeypatch.setattr(busy, "job_counts", wait_for_a_lock)
    shown.look()
    why_old = shown._why_old
    shown.look()

    assert why_old is not None
    assert "lock timeout" in why_old
    assert asked == [None, None]
    assert shown._why_old is None


def test_an_oldest_job_of_those_that_were_looked_at_alone_is_told_as_such(busy: Storage) -> None:
    sample = take_sample(busy, Counting(), at=0.0)
    queues = [
        replace(queue, stats=replace(queue.stats, oldest=timedelta(minutes=12), is_oldest_of_some=True))
        for queue in sample.seen.queues
    ]

    text = drawn(replace(sample, seen=replace(sample.seen, queues=queues)), Choice(), width=120, height=24)

    assert any(line.startswith("images") and " 12m+ " in line for line in text)
    assert queues[0].to_json()["oldest_of_some"] is True
    assert "oldest_of_some" not in sample.seen.queues[0].to_json()


def in_time(read: Callable[..., Any], tried: list[str]) -> Callable[..., Any]:
    """Refuses to look at all, as a database does that has too many."""

    def bounded(*args: Any, among: int | None = None, **options: Any) -> Any:
        if among is None:
            tried.append(read.__name__)
            raise too_long()
        return read(*args, among=among, **options)

    return bounded


def drawn(sample: Sample, choice: Choice, *, width: int, height: int, rates: Rates = NO_RATES) -> list[str]:
    lines = page(sample, rates, choice, url="sqlite:///x.db", clock="12:00:00", width=width, height=height)
    assert len(lines) == height
    assert all(line.cell_len <= width for line in lines)
    return [line.plain for line in lines]


def text_of(shown: Top) -> str:
    """What it draws on a terminal."""
    console = Console(width=200, height=40, file=io.StringIO())
    console.print(shown.drawn(console))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(("width", "height"), [*SIZES, (40, 10), (20, 4), (300, 100)])
def test_a_page_is_as_large_as_the_terminal_and_has_everything_for_which_there_is_room(
    busy: Storage, width: int, height: int
) -> None:
    text = "\n".join(drawn(take_sample(busy, Counting(), at=0.0), Choice(), width=width, height=height))

    assert "\x1b" not in text
    if width >= 80:
        for part in (
            "processing 1", "blue 1", "thumb", "images", "none", "ValueError: no", "Tab list",
            "queue images: 2 jobs and no server serves it",
        ):  # fmt: skip
            assert part in text


def test_the_chosen_row_is_always_seen(busy: Storage) -> None:
    busy.enqueue_many(Job.new("thumb", queue=f"queue-{number:02}") for number in range(40))
    sample = take_sample(busy, Counting(), at=0.0)
    choice = Choice(pane=Pane.QUEUES)

    for _ in range(60):
        choice.on_key(Key.DOWN, rows_of(sample))

    assert any("queue-39" in line for line in drawn(sample, choice, width=80, height=24))


def test_rates_are_what_has_changed_a_second(busy: Storage) -> None:
    before = replace(take_sample(busy, Counting(), at=10.0), cpu_s={"w": 1.0})
    ids = [busy.enqueue(Job.new("thumb", queue="images")) for _ in range(5)]
    busy.delete(ids[0], reason="no", retention=BY_DEFAULT)
    now = replace(take_sample(busy, Counting(), at=12.0), cpu_s={"w": 2.5, "new": 9.0})

    rates = rates_between(before, now)

    assert rates.growth_per_s == {"default": 0.0, "images": 2.0}
    assert rates.cpu_percent == {"w": 75.0}
    assert rates_between(None, now) == NO_RATES
    text = "\n".join(drawn(now, Choice(), width=120, height=40, rates=rates))
    assert "+2.0/s" in text
    assert "ended" not in text  # no server has counted anything


def test_how_a_queue_grows_that_was_not_counted_to_the_end_is_not_told(
    busy: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = take_sample(busy, Counting(), at=10.0)
    monkeypatch.setattr(snapshot, "MOST_COUNTED", 1)
    with monkeypatch.context() as patch:
        patch.setattr(busy, "job_counts", in_time(busy.job_counts, []))
        cut, again = (take_sample(busy, Counting(), at=at) for at in (12.0, 14.0))
    whole_again = replace(whole, at=16.0)

    growths = [rates_between(*pair).growth_per_s for pair in pairwise((whole, cut, again, whole_again))]

    assert growths == [{"default": 0.0}] * 3
    assert rates_between(whole, whole_again).growth_per_s == {"default": 0.0, "images": 0.0}
    text = drawn(again, Choice(), width=120, height=40, rates=rates_between(cut, again))
    assert any(re.match(r"images +1\+ +- ", line) for line in text)


def test_what_has_ended_is_told_while_as_many_rows_are_deleted(busy: Storage) -> None:
    at_once = Retention(succeeded_ttl=timedelta(), failed_ttl=timedelta())
    one = numbers_of_one(waited_us=1, ran_us=1)
    counted = {
        SeriesKey(method="thumb", queue="images", ending=ending): [count * number for number in one]
        for ending, count in ((Ending.SUCCEEDED, 150), (Ending.FAILED, 50), (Ending.RETRIED, 7))
    }
    this_minute = floor_to(MINUTE, busy.now())
    busy.note_history(
        [
            Period(step=MINUTE, begins_at=this_minute + number * MINUTE, writer="blue#1", numbers=counted)
            for number in range(-5, 5)
        ]
    )
    old = busy.fetch_and_lock_job(Fetch(worker_id="blue#1:worker:2.1", server_id="blue#1", queues=()))
    assert old is not None
    busy.finish(old, Success(result=1, duration=timedelta()), retention=at_once)
    before = take_sample(busy, Counting(), at=10.0)
    new = busy.fetch_and_lock_job(Fetch(worker_id="blue#1:worker:2.1", server_id="blue#1", queues=()))
    assert new is not None
    busy.finish(new, Success(result=1, duration=timedelta()), retention=BY_DEFAULT)
    assert busy.delete_expired_jobs(limit=10) == 1
    now = take_sample(busy, Counting(), at=11.0)

    head = drawn(now, Choice(), width=120, height=40, rates=rates_between(before, now))[0]

    assert "  200 ended/min  " in head


def test_keys_ask_first_and_then_do_it(busy: Storage) -> None:
    shown = Top(busy, retention=BY_DEFAULT)
    [row] = rows_of(shown._sample)[Pane.FAILURES]
    assert row.action is not None
    failed = row.action.job_id

    shown.on_key(Key.RETRY)
    assert shown.choice.asked is not None
    assert shown.choice.asked.question == f"Retry thumb (ValueError) {failed}?"
    shown.on_key("n")
    assert (shown.choice.said, busy.job_counts()[StateName.FAILED]) == ("Nothing was changed.", 1)
    for key in (Key.RETRY, Key.YES):
        shown.on_key(key)

    assert shown.choice.said == f"{failed} enqueued."
    assert busy.job_counts()[StateName.FAILED] == 0
    shown.on_key(Key.RETRY)
    assert "nothing to retry" in shown.choice.said


def test_the_chosen_kind_of_failure_stays_chosen_while_jobs_of_several_fail(storage: Storage) -> None:
    def fail(error_type: str) -> str:
        storage.enqueue(Job.new("thumb"))
        claim = storage.fetch_and_lock_job(Fetch(worker_id="w", server_id="s", queues=()))
        assert claim is not None
        error = ErrorInfo(type=error_type, message="no", traceback="")
        storage.finish(claim, Failure(error=error), retention=BY_DEFAULT)
        return claim.job.id

    for each in ("KeyError", "OSError", "ValueError"):
        fail(each)
    shown = Top(storage, retention=BY_DEFAULT)
    shown.choice.pane = Pane.FAILURES
    for _ in range(2):
        shown.on_key(Key.DOWN)  # to the oldest
    newest, _ = fail("KeyError"), fail("ValueError")
    shown.look()

    shown.on_key(Key.RETRY)

    assert shown.choice.asked is not None
    assert shown.choice.asked.job_id == newest
    assert "KeyError" in shown.choice.asked.question


def test_a_running_job_is_cancelled_and_a_queue_paused_and_resumed(busy: Storage) -> None:
    shown = Top(busy, retention=BY_DEFAULT)

    for key in (Key.CANCEL, Key.YES):
        shown.on_key(key)
    assert shown.choice.said.endswith("asked to end.")
    assert len(busy.cancel_requests("blue#1")) == 1
    shown.on_key(Key.DOWN)
    shown.on_key(Key.CANCEL)
    assert "nothing to cancel" in shown.choice.said  # the second worker is idle

    shown.on_key(Key.PAUSE)
    shown.on_key("n")
    shown.on_key(Key.DOWN)
    for expected in ("images is paused.", "images is resumed."):
        shown.on_key(Key.PAUSE)
        shown.on_key(Key.YES)
        assert shown.choice.said == expected
    assert [each.limit.paused for each in busy.standings()] == []


def test_what_was_done_is_told_also_where_the_audit_refuses_its_note(busy: Storage, qml: Qml) -> None:
    with closing(sqlite3.connect(qml.database)) as connection, connection:
        refused = "BEGIN SELECT RAISE(ABORT, 'refused by the test'); END"
        connection.execute(f"CREATE TRIGGER no_note BEFORE INSERT ON qml_acts {refused}")
    shown = Top(busy, retention=BY_DEFAULT)
    shown.choice.pane = Pane.QUEUES
    shown.choice.chosen[Pane.QUEUES] = "images"

    for key in (Key.PAUSE, Key.YES):
        shown.on_key(key)

    assert re.match(r"images is paused; this stands in no audit \(.*refused by the test", shown.choice.said)
    assert [each.limit.name for each in busy.standings() if each.limit.paused] == ["images"]


@pytest.mark.parametrize("name", ["reports-of-the-northern-region-" + "x" * 60, "bell\x07\x1b[2J\r"])
def test_a_question_about_a_queue_leaves_room_for_its_answers_whatever_the_name(
    busy: Storage, qml: Qml, name: str
) -> None:
    with closing(sqlite3.connect(qml.database)) as connection, connection:  # as another program might
        connection.execute("UPDATE qml_jobs SET queue = ? WHERE queue = 'images'", [name])
    shown = Top(busy, retention=BY_DEFAULT)
    shown.choice.pane = Pane.QUEUES
    shown.choice.chosen[Pane.QUEUES] = name

    def foot() -> str:
        return drawn(shown._sample, shown.choice, width=80, height=24)[-1]

    shown.on_key(Key.PAUSE)
    assert foot().startswith(f"Pause queue {name[:4]}")
    assert foot().endswith("? y: yes, any other key: no")
    assert foot().isprintable()
    shown.on_key(Key.YES)
    assert foot().isprintable()
    assert foot().endswith("is paused.")


@pytest.mark.parametrize(
    ("key", "question"),
    [(Key.CANCEL, "Cancel make_thumbnails 0"), (Key.RETRY, "Retry make_thumbnails (ValueError) 0")],
)
def test_a_question_about_a_job_leaves_room_for_its_answers(
    busy: Storage, qml: Qml, key: Key, question: str
) -> None:
    with closing(sqlite3.connect(qml.database)) as connection, connection:
        connection.execute("UPDATE qml_jobs SET method = 'make_thumbnails'")
    shown = Top(busy, retention=BY_DEFAULT)

    shown.on_key(key)

    foot = drawn(shown._sample, shown.choice, width=80, height=24)[-1]
    assert foot.startswith(question)
    assert foot.endswith(" y: yes, any other key: no")


def test_a_storage_that_is_away_is_told_until_it_is_back(busy: Storage, qml: Qml) -> None:
    shown = Top(busy, retention=BY_DEFAULT)
    busy.close()
    away = qml.database.with_suffix(".away")
    qml.database.rename(away)

    shown.look()
    gone = text_of(shown)
    away.rename(qml.database)
    shown.look()
    back = text_of(shown)

    assert re.search(r"^this is as of \d\d:\d\d:\d\d: The SQLite file ", gone, flags=re.MULTILINE)
    assert "qml-mp: error" not in gone
    assert "images" in gone
    assert gone.splitlines()[-1].startswith("Tab list")
    assert "as of" not in back


def test_keys_are_told_from_the_bytes_of_a_terminal() -> None:
    told = list(keys_of(b"\x1b[A\x1bOBk\tq\x1b[15~\x1b[1;5Cy\x03\x1b"))

    assert told == [Key.UP, Key.DOWN, Key.UP, Key.TAB, Key.LEAVE, Key.YES, Key.LEAVE]


class Seen:
    """A terminal of some size with `top` in it."""

    def __init__(self, fd: int, pid: int, size: tuple[int, int], before: list[Any]) -> None:
        """`before`: how the terminal was set when nothing had it yet."""
        self.before = before
        self.screen = pyte.Screen(*size)
        self.everything = b""
        self.fd = fd
        self.pid = pid
        self._stream = pyte.ByteStream(self.screen)

    def until(self, is_there: Callable[[str], bool]) -> str:
        """Read on until the screen is as wanted; the screen."""
        deadline = time.monotonic() + WITHIN_S
        while not is_there(text := "\n".join(self.screen.display)):
            assert time.monotonic() < deadline, text
            self.read()
        return text

    def read(self) -> bool:
        if not select.select([self.fd], [], [], 0.5)[0]:
            return True
        try:
            data = os.read(self.fd, 65536)
        except OSError:
            return False
        self.everything += data
        self._stream.feed(data)
        return bool(data)


@contextmanager
def on_terminal(
    qml: Qml, size: tuple[int, int], *arguments: str, term: str = "xterm-256color"
) -> Iterator[Seen]:
    fd, theirs = pty.openpty()
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
    before = termios.tcgetattr(fd)
    pid = os.fork()
    if pid == 0:
        os.close(fd)
        os.login_tty(theirs)
        os.chdir(qml.folder)
        environment = {**qml.environment(), "TERM": term}
        os.execve(sys.executable, [sys.executable, "-m", "qml_mp", *arguments], environment)
    os.close(theirs)
    try:
        yield Seen(fd, pid, size, before)
    finally:
        os.close(fd)


@pytest.mark.parametrize("size", SIZES)
def test_on_a_terminal_it_draws_itself_takes_keys_and_leaves_the_terminal_as_it_was(
    qml: Qml, busy: Storage, size: tuple[int, int]
) -> None:
    with on_terminal(qml, size, "top", "--every", "100ms") as seen:
        text = seen.until(lambda text: "images" in text and "q leave" in text)
        assert text.splitlines()[-1].startswith("Tab list")
        os.write(seen.fd, b"\t\x1b[Bp")
        seen.until(lambda text: "Pause queue images? y: yes" in text)
        os.write(seen.fd, b"y")
        seen.until(lambda text: "images is paused." in text)
        os.write(seen.fd, b"q")
        while seen.read():
            pass
        _, status = os.waitpid(seen.pid, 0)
        assert termios.tcgetattr(seen.fd) == seen.before

    assert os.waitstatus_to_exitcode(status) == 0
    assert [each.limit.name for each in busy.standings() if each.limit.paused] == ["images"]
    assert seen.everything.rstrip().endswith((b"\x1b[?1049l\x1b[?25h", b"\x1b[?25h\x1b[?1049l"))


def test_a_terminal_that_cannot_be_drawn_on_is_refused(qml: Qml, busy: Storage) -> None:
    with on_terminal(qml, SIZES[0], "top", term="dumb") as seen:
        seen.until(lambda text: "TERM says that this is none" in text.replace("\n", ""))
        _, status = os.waitpid(seen.pid, 0)

    assert os.waitstatus_to_exitcode(status) == 2


def test_without_a_terminal_or_the_extra_it_says_what_to_do(
    qml: Qml, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(qml.folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    codes = [run(["top"])]
    monkeypatch.setattr(top, "find_spec", lambda _name: None)
    codes.append(run(["top"]))

    no_terminal, no_extra = capsys.readouterr().err.splitlines()
    assert codes == [2, 2]
    assert "`top` needs a terminal. `qml-mp status --watch` shows the same" in no_terminal
    assert "needs the extra `top`: pip install 'qml-mp[top]'" in no_extra
