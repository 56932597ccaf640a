"""`--watch`: blocks that take the place of the one before, or follow it; and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from datetime import timedelta
from tempfile import TemporaryFile

import pytest

from qml_mp import host
from qml_mp.core.job import Job
from qml_mp.core.outcome import ErrorInfo, Failure, Success
from qml_mp.core.progress import Progress
from qml_mp.core.server_info import ServerInfo, WorkerInfo
from qml_mp.storage.store import Storage
from qml_mp.storage.values import BY_DEFAULT, Fetch
from tests.cli.command import Qml, is_one_error, on_a_terminal
from tests.warm import launch


@pytest.mark.parametrize("command", [("status",), ("workers", "list")])
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


def test_an_interval_of_a_watch_that_cannot_be_is_refused(qml: Qml, storage: object) -> None:
    refused = [qml("status", "--watch", text) for text in ("0.01", "soon")]

    assert [ended.code for ended in refused] == [2, 2]
    assert all("--watch is" in ended.err for ended in refused)
