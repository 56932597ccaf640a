"""`--watch`: blocks that take the place of the one before, or follow it; and how it ends."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import timedelta
from tempfile import TemporaryFile

import click
import pytest

from qml_mp import host
from qml_mp.cli.watching import Screen, printed, show_once_or_watch
from qml_mp.core.job import Job
from qml_mp.core.outcome import ErrorInfo, Failure, Success
from qml_mp.core.progress import Progress
from qml_mp.core.server_info import ServerInfo, WorkerInfo
from qml_mp.errors import StorageUnavailable
from qml_mp.storage.store import Storage
from qml_mp.storage.values import BY_DEFAULT, Fetch
from tests.cli.command import Qml, is_one_error, on_a_terminal
from tests.warm import launch


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def small_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """From now on standard output is a terminal of ten columns and five lines."""
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((10, 5)))
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    return terminal


def test_a_block_on_a_terminal_takes_the_place_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = small_terminal(monkeypatch)
    screen = Screen()

    screen.draw("one\ntwo\n")
    screen.draw("three\n")

    assert terminal.getvalue() == "\rone\x1b[K\ntwo\x1b[K\n\x1b[J" + "\x1b[2A\rthree\x1b[K\n\x1b[J"


def test_lines_that_wrap_count_and_what_is_too_high_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = small_terminal(monkeypatch)
    screen = Screen()

    screen.draw("x" * 25 + "\n")
    screen.draw("".join(f"{number}\n" for number in range(9)))
    screen.draw("end\n")

    blocks = terminal.getvalue().split("\r")[1:]
    assert blocks[0].endswith("\x1b[3A")
    assert click.unstyle(blocks[1]).splitlines() == ["0", "1", "2", "… and 6 lines more"]
    assert blocks[1].endswith("\x1b[4A")


def test_what_is_shown_has_the_colours_of_a_terminal_and_none_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small_terminal(monkeypatch)
    on_terminal = printed(lambda: click.secho("ü", fg="red"))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))

    assert on_terminal == "\x1b[31mü\x1b[0m\n"
    assert printed(lambda: click.secho("ü", fg="red")) == "ü\n"


def watch_thrice(monkeypatch: pytest.MonkeyPatch, text: str, *, as_json: bool = False) -> list[float]:
    """Watch what shows this text, save that the storage is away at the second look; the pauses."""
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise KeyboardInterrupt

    def show() -> None:
        if len(slept) == 1:
            raise StorageUnavailable("It is away.")
        click.echo(text)

    monkeypatch.setattr(time, "sleep", sleep)
    show_once_or_watch(show, timedelta(seconds=2), as_json=as_json)
    return slept


def test_elsewhere_blocks_follow_each_other_and_a_storage_that_is_away_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slept = watch_thrice(monkeypatch, "shown")

    assert capsys.readouterr().out == "shown\n" + "\nqml-mp: error: It is away.\n" + "\nshown\n"
    assert slept == [2.0, 2.0, 2.0]


def test_what_a_program_reads_has_no_line_that_is_not_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    watch_thrice(monkeypatch, "{}\n{}", as_json=True)

    assert capsys.readouterr() == ("{}\n{}\n" * 2, "qml-mp: error: It is away.\n")


@pytest.mark.parametrize("command", [("status",), ("queues", "list"), ("workers", "list")])
def test_each_line_of_a_watch_with_json_is_json(qml: Qml, storage: Storage, command: tuple[str, ...]) -> None:
    storage.enqueue(Job.new("resize"))
    server = ServerInfo(
        id="blue#1", name="blue", hostname="here", process=host.identity(), worker_count=1, queues=(),
        started_at=storage.now(), last_heartbeat=storage.now(), heartbeat_enabled=True,
    )  # fmt: skip
    storage.register_server(server)
    storage.register_worker(
        WorkerInfo(id="w", server_id=server.id, number=0, process=server.process, started_at=storage.now())
    )
    with subprocess.Popen(
        [sys.executable, "-m", "qml_mp", *command, "--watch", "0.1", "--json"], cwd=qml.folder,
        env=qml.environment(), stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGINT)

    assert all(isinstance(json.loads(line), dict) for line in lines)


def test_without_watching_an_error_is_an_error() -> None:
    def show() -> None:
        raise StorageUnavailable("It is away.")

    with pytest.raises(StorageUnavailable):
        show_once_or_watch(show, None)


def test_a_watch_ends_cleanly_on_ctrl_c_and_on_a_closed_pipe(qml: Qml, storage: object) -> None:
    ends: list[tuple[int, str]] = []
    for is_closed in (False, True):
        reading, writing = os.pipe()
        with TemporaryFile() as err:
            process = launch(
                [sys.executable, "-m", "qml_mp", "status", "--watch", "0.1"], cwd=qml.folder,
                env=qml.environment(), stdin=err.fileno(), stdout=writing, stderr=err.fileno(),
            )  # fmt: skip
            os.close(writing)
            with open(reading, "rb") as blocks:
                assert str(qml.database).encode() in blocks.readline()
                assert any(b"enqueued 0" in line for line in blocks)
                assert str(qml.database).encode() in b"".join(blocks.readline() for _ in range(2))
                if not is_closed:
                    process.send_signal(signal.SIGINT)
                    assert process.wait(60) == 0
            process.wait(60)
            err.seek(0)
            ends.append((process.returncode or 0, err.read().decode()))

    assert ends == [(0, ""), (0, "")]


def test_a_job_is_followed_to_its_end(qml: Qml, storage: Storage) -> None:
    job_id = storage.enqueue(Job.new("thumb", {"n": 1}))
    gone = qml("jobs", "watch", "01a20ff2-659c-78a5-9cfb-d95426a19a21")
    reading, writing = os.pipe()
    with TemporaryFile() as err:
        process = launch(
            [sys.executable, "-m", "qml_mp", "jobs", "watch", job_id, "--every", "100ms"], cwd=qml.folder,
            env=qml.environment(), stdin=err.fileno(), stdout=writing, stderr=err.fileno(),
        )  # fmt: skip
        os.close(writing)
        with open(reading) as lines:
            waiting = lines.readline()
            claim = storage.fetch_and_lock_job(
                Fetch(worker_id="blue:worker:3.1", server_id="blue#1", queues=())
            )
            assert claim is not None
            running = lines.readline()
            storage.note_progress({claim.key: Progress(done=412, total=1000)})
            progress = lines.readline()
            error = ErrorInfo(type="ValueError", message="no")
            storage.finish(claim, Failure(error=error), retention=BY_DEFAULT)
            failed = lines.readline()
        code = process.wait(60)
        err.seek(0)
        told = err.read().decode()

    assert waiting == 'enqueued  {"n": 1}\n'
    assert running.startswith("processing  worker 3 of blue since ")
    assert progress.endswith("412 of 1000 (41 %)\n")
    assert failed.startswith("failed  ValueError: no")
    assert (code, gone.code) == (7, 1)
    assert "failed: ValueError: no" in told


def test_a_job_is_followed_on_when_the_storage_is_back(qml: Qml, storage: Storage) -> None:
    job_id = storage.enqueue(Job.new("thumb"))
    storage.close()
    away = qml.database.with_suffix(".away")
    with subprocess.Popen(
        [sys.executable, "-m", "qml_mp", "jobs", "watch", job_id, "--every", "100ms"], cwd=qml.folder,
        env=qml.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        waiting = process.stdout.readline()
        qml.database.rename(away)
        told = process.stderr.readline()
        away.rename(qml.database)
        back = process.stdout.readline()
        storage.delete(job_id, reason="not needed", retention=BY_DEFAULT)
        deleted = process.stdout.readline()
        ended = process.stderr.read()

    assert told.startswith("qml-mp: error: The SQLite file ")
    assert waiting == back == "enqueued  null\n"
    assert deleted.startswith("deleted  not needed")
    assert "was deleted: not needed" in ended
    assert process.returncode == 7


@pytest.mark.parametrize("command", [("jobs", "watch", "01a20ff2-659c-78a5-9cfb-d95426a19a21"), ("top",)])
def test_looks_have_a_pause_between_them(qml: Qml, storage: Storage, command: tuple[str, ...]) -> None:
    refused = qml(*command, "--every", "0")

    assert (refused.code, is_one_error(refused.err)) == (2, True)
    assert "--every is '0'; it must be at least 100ms." in refused.err


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_a_job_is_followed_without_colours_where_nobody_wants_them(
    qml: Qml, storage: Storage, no_color: str, coloured: bool
) -> None:
    job_id = storage.enqueue(Job.new("thumb"))
    storage.delete(job_id, reason="not needed", retention=BY_DEFAULT)

    shown = on_a_terminal(qml, "jobs", "watch", job_id, no_color=no_color, check=False)

    assert b"not needed" in shown
    assert bool(re.search(rb"\x1b\[\d*m", shown)) is coloured


@pytest.mark.parametrize("succeeded", [True, False])
def test_a_job_that_has_ended_is_shown_once(qml: Qml, storage: Storage, succeeded: bool) -> None:
    job_id = storage.enqueue(Job.new("thumb"))
    if succeeded:
        claim = storage.fetch_and_lock_job(Fetch(worker_id="w", server_id="blue#1", queues=()))
        assert claim is not None
        done = Success(result={"ok": True}, duration=timedelta(seconds=1))
        storage.finish(claim, done, retention=BY_DEFAULT)
    else:
        storage.delete(job_id, reason="not needed", retention=BY_DEFAULT)

    shown = qml("jobs", "watch", job_id, "--json")

    assert shown.code == (0 if succeeded else 7)
    assert (shown.value["id"], shown.value["progress"]) == (job_id, None)


@pytest.mark.parametrize("command", [("status",), ("workers", "list"), ("queues", "list")])
def test_commands_that_show_the_present_can_be_watched(
    qml: Qml, storage: object, command: tuple[str, ...]
) -> None:
    refused = [qml(*command, "--watch", text) for text in ("0.01", "soon")]

    assert [ended.code for ended in refused] == [2, 2]
    assert all("--watch is" in ended.err for ended in refused)
