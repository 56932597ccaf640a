"""Tests: a server whose SQLite file or disk goes bad while it works."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.errors import StorageUnreachable
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from tests.processes.bad_disk import BadDisk, failing_disk, small_disk
from tests.processes.harness import (
    Server,
    enqueue,
    few,
    left_in_registry,
    state_of,
    stop_between_writes,
    wait_for_state,
    wait_until,
)

APP = "tests.processes.apps_storage_faults:app"
MakeServer = Callable[..., Server]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """The folder of the database, apart from journal and log."""
    folder = tmp_path / "disk"
    folder.mkdir()
    return folder


@pytest.fixture
def path(disk: Path) -> Path:
    return disk / "jobs.db"


@pytest.fixture
def url(path: Path) -> str:
    """SQLite alone: the file is what these faults are about."""
    return f"sqlite:///{path}"


@pytest.fixture
def bad_disk(request: pytest.FixtureRequest, disk: Path) -> Iterator[BadDisk]:
    if request.param == "full":
        with small_disk(disk) as bad:
            yield bad
    else:
        yield failing_disk(disk)


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """What the job in hand waits for."""
    return tmp_path / "gate"


def busy(one: Server, storage: Storage, gate: Path) -> tuple[Server, str, str]:
    """A server whose only worker is in a job until the gate opens, and the job that comes after it."""
    one.start()
    running_id = enqueue(storage, "gated", gate=str(gate))
    wait_until(lambda: one.journal(), what=one.log)
    return one, running_id, enqueue(storage, "plain")


def has_emptied_log(path: Path) -> bool:
    """Move all that is committed into the file, so that the next commit needs new room in its log; False:
    somebody reads just now, and the log is kept."""
    with closing(sqlite3.connect(path, timeout=0.2)) as connection:
        busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return not busy


def stop_with_an_empty_log(storage: Storage, pid: int, path: Path) -> None:
    """The process, whose heartbeat might be what begins the log anew; not while it reads or writes."""
    stop_between_writes(storage, pid)
    while not has_emptied_log(path):
        os.kill(pid, signal.SIGCONT)
        stop_between_writes(storage, pid)


def check(path: Path) -> str:
    with closing(sqlite3.connect(path)) as connection:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])


@pytest.mark.parametrize(
    ("bad_disk", "said"),
    [
        pytest.param("full", "disk is full", marks=pytest.mark.fault(42)),
        pytest.param("failing", "the disk reported an error", marks=pytest.mark.fault(45)),
    ],
    indirect=["bad_disk"],
)
def test_on_a_bad_disk_no_job_runs_without_a_claim_and_all_goes_on_when_it_is_mended(
    server: MakeServer, storage: Storage, bad_disk: BadDisk, path: Path, gate: Path, said: str
) -> None:
    one, running_id, next_id = busy(server("-v", "-w", "1", app=APP, **bad_disk.environment), storage, gate)
    worker = one.worker_pids()[1]
    stop_with_an_empty_log(storage, one.pid, path)

    with bad_disk.full() if said == "disk is full" else bad_disk.failing(worker):
        gate.touch()
        wait_until(lambda: one.log().count("Cannot write an outcome") >= 2, what=one.log)
        meanwhile = one.starts(), state_of(storage, running_id), state_of(storage, next_id)
        one.signal(signal.SIGCONT)

    assert meanwhile == ([running_id], StateName.PROCESSING, StateName.ENQUEUED)
    assert said in one.log()
    for job_id in (running_id, next_id):
        assert wait_for_state(storage, job_id, StateName.SUCCEEDED).claim_seq == 1
    assert one.starts() == [running_id, next_id]
    assert one.stop() == 0
    assert check(path) == "ok"


@pytest.mark.fault(43)
def test_a_lock_that_another_program_keeps_is_waited_for_and_nothing_is_lost(
    server: MakeServer, storage: Storage, path: Path, gate: Path
) -> None:
    # Some 5 s: so long is the lock waited for before that is said.
    one, running_id, next_id = busy(server("-w", "1", app=APP), storage, gate)

    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        gate.touch()
        wait_until(lambda: "Cannot write an outcome" in one.log(), what=one.log)
        meanwhile = one.starts(), state_of(storage, next_id)
        other.execute("ROLLBACK")

    assert meanwhile == ([running_id], StateName.ENQUEUED)
    assert "is locked by another program" in one.log()
    for job_id in (running_id, next_id):
        assert wait_for_state(storage, job_id, StateName.SUCCEEDED).claim_seq == 1
    assert one.stop() == 0


@pytest.mark.fault(43)
def test_a_start_waits_a_little_for_a_program_that_keeps_the_lock(
    server: MakeServer, storage: Storage, path: Path
) -> None:
    job_id = enqueue(storage, "plain")
    one = server("-v", "-w", "1", app=APP)

    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        one.start(ready=None)
        wait_until(lambda: "The start waits for storage" in one.log(), what=one.log)
        other.execute("ROLLBACK")

    wait_for_state(storage, job_id, StateName.SUCCEEDED)
    assert one.stop() == 0


@pytest.mark.fault(43)
@few("in_a_job", [True], nightly=[False])
def test_while_another_program_keeps_the_lock_the_server_stops_on_time(
    server: MakeServer, storage: Storage, path: Path, gate: Path, in_a_job: bool
) -> None:
    one, running_id, next_id = busy(server("-w", "2", "--shutdown-timeout", "2", app=APP), storage, gate)
    wait_for_state(storage, next_id, StateName.SUCCEEDED)

    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        if not in_a_job:
            gate.touch()
            wait_until(lambda: (running_id, "end") in [(line.job_id, line.what) for line in one.journal()])
        one.signal(signal.SIGTERM)
        code = one.wait(within_s=10.0)  # 2 s for the jobs, 1 s for the rest, and some for a busy machine
        other.execute("ROLLBACK")

    assert code == 6, one.log()
    gate.touch()
    two = server("-w", "1", app=APP).start()
    job = wait_for_state(storage, running_id, StateName.SUCCEEDED)
    assert (job.failures, job.crashes) == (0, 0)
    assert two.stop() == 0
    assert left_in_registry(storage, two.log()) == []


@pytest.mark.fault(44)
def test_a_server_refuses_to_start_on_a_file_that_it_cannot_write(
    server: MakeServer, storage: Storage, disk: Path, path: Path
) -> None:
    storage.enqueue(Job.new("plain"))
    storage.close()
    before = path.read_bytes()
    path.chmod(0o400)
    disk.chmod(0o500)
    one = server("-w", "1", app=APP)
    if os.geteuid() == 0:  # modes do not bind root, until it gives this up
        one.prefix = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--")

    code = one.start(ready=None).wait()

    disk.chmod(0o700)
    assert code == 4, one.log()
    assert f"{path} cannot be written" in one.log()
    assert path.read_bytes() == before
    assert list(disk.iterdir()) == [path]


@pytest.mark.fault(44)
def test_a_file_deleted_under_a_server_is_said_and_never_made_anew(
    server: MakeServer, storage: Storage, disk: Path, path: Path, gate: Path
) -> None:
    one, running_id, _ = busy(server("-v", "-w", "1", "--shutdown-timeout", "1", app=APP), storage, gate)
    storage.close()
    for file in list(disk.iterdir()):
        file.unlink()

    gate.touch()

    wait_until(lambda: one.log().count("Cannot write an outcome") >= 2, what=one.log)
    assert "was deleted or replaced while in use" in one.log()
    assert one.starts() == [running_id]
    one.signal(signal.SIGTERM)
    assert one.wait() == 6
    assert list(disk.iterdir()) == []


@pytest.mark.fault(44)
def test_a_worker_that_comes_while_the_file_is_elsewhere_makes_none_and_goes_on_once_it_is_back(
    server: MakeServer, storage: Storage, path: Path, tmp_path: Path, gate: Path
) -> None:
    one, running_id, next_id = busy(server("-v", "-w", "1", app=APP), storage, gate)
    worker = one.worker_pids()[1]
    storage.close()
    path.rename(tmp_path / "aside.db")

    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: "Cannot claim a job" in one.log(), what=one.log)  # said by the next one
    was_made = path.exists()
    (tmp_path / "aside.db").rename(path)
    gate.touch()

    assert not was_made
    for job_id in (running_id, next_id):
        assert wait_for_state(storage, job_id, StateName.SUCCEEDED).crashes == (job_id == running_id)
    assert one.stop() == 0
    assert check(path) == "ok"


@pytest.mark.fault(46)
def test_jobs_that_open_the_database_file_do_not_damage_it(
    server: MakeServer, storage: Storage, path: Path
) -> None:
    one = server("-w", "4", app=APP)
    ids = storage.enqueue_many(
        Job.new("read_the_database_file", {"path": str(path)}) if number % 2 else Job.new("plain")
        for number in range(80)
    )
    one.start()
    for _ in range(20):
        ids.append(enqueue(storage, "read_the_database_file", path=str(path)))

    for job_id in ids:
        assert wait_for_state(storage, job_id, StateName.SUCCEEDED).crashes == 0

    assert sorted(one.starts()) == sorted(ids)
    assert one.stop() == 0
    assert check(path) == "ok"


@pytest.mark.fault(44)
@few("something_is_in_it", [True], nightly=[False])
def test_a_log_removed_under_a_server_damages_nothing_that_was_in_the_file(
    server: MakeServer, storage: Storage, path: Path, gate: Path, something_is_in_it: bool
) -> None:
    before_id = storage.enqueue(Job.new("plain", queue="not-served"))
    one, running_id, _ = busy(server("-w", "1", "--shutdown-timeout", "1", app=APP), storage, gate)
    wait_until(partial(has_emptied_log, path), what="a moment at which nobody reads")
    last_id = storage.enqueue(Job.new("plain", queue="not-served")) if something_is_in_it else before_id
    path.with_name("jobs.db-wal").unlink()

    with (
        closing(open_storage(storage.url)) as another,
        pytest.raises(StorageUnreachable, match="was deleted or replaced while in use"),
    ):
        another.list_servers()
    gate.touch()

    wait_until(lambda: "was deleted or replaced while in use" in one.log(), what=one.log)
    assert one.stop() in (0, 6)
    one.clean_up()
    storage.close()  # nobody else has it open
    assert check(path) == "ok"
    with closing(open_storage(storage.url)) as another:
        for job_id in (before_id, last_id):
            assert state_of(another, job_id) is StateName.ENQUEUED
        assert another.get(running_id) is not None
