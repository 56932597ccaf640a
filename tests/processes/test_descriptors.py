"""Tests: which descriptors a worker holds, what jobs do to them, and a supervisor that has few."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.apps_faults import IMPORTS, open_files
from tests.processes.harness import Server, enqueue, few, is_gone, result_of, wait_for_state, wait_until

MakeServer = Callable[..., Server]
FAULTS = "tests.processes.apps_faults:app"
RESTARTS = 5


@pytest.mark.fault(19)
def test_a_job_that_closes_every_descriptor_crashes_and_nothing_else_is_written(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "1", QML_MP_MAX_CRASHES="1").start()
    (worker,) = one.worker_pids().values()

    job_id = enqueue(storage, "close_descriptors")

    wait_for_state(storage, job_id, StateName.FAILED)
    (attempt,) = storage.attempts(job_id)
    assert attempt.error is not None
    assert "closed or replaced descriptors of the worker" in attempt.error.message
    assert is_gone(worker)
    assert result_of(storage, "quick") == 1
    assert one.stop() == 0
    assert "it exited with code 82 (The job closed or replaced descriptors of the worker.)" in one.log()


@pytest.mark.fault(20)
def test_a_job_that_puts_a_file_in_the_place_of_every_descriptor_gets_no_byte_written_to_it(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    one = server("-w", "1", QML_MP_MAX_CRASHES="1").start()

    job_id = enqueue(storage, "replace_descriptors", path=str(tmp_path / "foreign"))

    wait_for_state(storage, job_id, StateName.FAILED)
    (attempt,) = storage.attempts(job_id)
    assert attempt.error is not None
    assert "closed or replaced descriptors of the worker" in attempt.error.message
    assert (tmp_path / "foreign").read_bytes() == b""
    assert result_of(storage, "quick") == 1
    assert one.stop() == 0


@pytest.mark.nightly
@pytest.mark.fault(20)
def test_a_job_that_forks_with_files_in_the_place_of_every_descriptor_loses_no_job_of_others(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    one = server("-w", "2", QML_MP_MAX_CRASHES="1").start(ready=2)
    committed = storage.enqueue_many(Job.new("nobody_knows") for _ in range(30))

    job_id = enqueue(storage, "replace_descriptors_and_fork", folder=str(tmp_path))

    wait_for_state(storage, job_id, StateName.FAILED)
    (attempt,) = storage.attempts(job_id)
    assert attempt.error is not None
    assert "closed or replaced descriptors of the worker" in attempt.error.message
    assert [each for each in committed if storage.get(each) is None] == []
    assert {file.read_bytes() for file in tmp_path.glob("foreign*")} == {b"f" * 100_000}
    assert result_of(storage, "quick") == 1
    assert one.stop() == 0


def test_descriptors_that_jobs_themselves_open_are_theirs_to_close_and_open_again(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    one = server("-w", "1", app=FAULTS).start()
    (worker,) = one.worker_pids().values()

    pids = {result_of(storage, "renew_a_connection", path=str(tmp_path / f"file{n}")) for n in range(4)}

    assert pids == {worker}
    assert one.stop() == 0


@pytest.mark.fault(65)
@pytest.mark.fault(63)
def test_a_new_worker_holds_its_pipes_and_its_stack_file_and_nothing_of_the_supervisor(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    one = server("-w", "3", app=FAULTS, **{IMPORTS: str(tmp_path / "imports")}).start(ready=3)
    (worker, *_) = one.worker_pids().values()

    os.kill(worker, signal.SIGKILL)

    replacement = wait_until(lambda: new_workers(tmp_path / "imports", known=4))
    for files in [*replacement.values()]:
        others = [file for file in files if not file.startswith("/")]
        # One end of the pipe from the supervisor, both of that for tickets, one of the bell; the turns.
        assert sorted(file.partition(":")[0] for file in others) == ["pipe"] * 4 + ["socket"] * 2
        assert sorted(Counter(others).values()) == [1, 1, 1, 1, 2]
        names = [Path(file).name for file in files if file.startswith("/")]
        # A fork while storage is slow to answer leaves /dev/null in the place of the supervisor's connection.
        assert names.count("null") in (1, 2)
        assert [name for name in names if name != "null"] == [
            "server.log", "server.log", "memfd:qml-mp-stack (deleted)",
        ]  # fmt: skip
    assert one.stop() == 0


def new_workers(path: Path, *, known: int) -> dict[int, list[str]] | None:
    """The files that each worker held when it imported the app; the first import was the probe's."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return dict(lines[1:]) if len(lines) > known else None


@pytest.mark.fault(63)
def test_restarts_leave_the_supervisors_descriptors_as_they_were(
    server: MakeServer, storage: Storage
) -> None:
    """A few: what one restart leaves open shows after each. `scripts/soak --only replacements` asks the same
    after hundreds."""
    one = server("-w", "2", "--preload", QML_MP_MAX_CRASHES="1").start(ready=2)
    before = settled_count(one)

    ids = [enqueue(storage, "die", exit_code=1) for _ in range(RESTARTS)]
    for job_id in ids:
        wait_for_state(storage, job_id, StateName.FAILED)

    wait_until(lambda: len(one.worker_pids()) == 2, what="both workers")
    wait_until(lambda: settled_count(one) == before, what="the same count")
    wait_until(lambda: one.log().count(" started (pid") >= 2 + RESTARTS, what=one.log)
    assert one.stop() == 0


def settled_count(one: Server, *, looks: int = 30) -> int:
    """How many descriptors the supervisor holds when it does not change any more: so many looks find the
    same. Without a processor it may stand still between two counts, which many looks outlast."""
    counts: list[int] = []

    def is_settled() -> bool:
        counts.append(len(open_files(one.pid)))
        return len(counts) >= looks and len(set(counts[-looks:])) == 1

    wait_until(is_settled, what=f"a count that stays; {counts[-30:]}")
    return counts[-1]


@pytest.mark.fault(22)
@few("lower_limit", [False], nightly=[True])
def test_a_job_that_uses_up_the_descriptors_fails_and_its_worker_is_replaced(
    server: MakeServer, storage: Storage, lower_limit: bool
) -> None:
    limit = ("bash", "-c", 'ulimit -n 256; exec "$@"', "bash")
    one = server("-w", "1", app=FAULTS)
    one.prefix = limit
    one.start()
    (worker,) = one.worker_pids().values()

    job_id = enqueue(storage, "use_up_descriptors", lower_limit=lower_limit)

    job = wait_for_state(storage, job_id, StateName.FAILED)
    assert job.last_error is not None
    assert job.last_error.type == "OSError"
    assert (job.failures, job.crashes) == (1, 0)
    after = result_of(storage, "quick")
    assert lower_limit or after != worker
    assert one.stop() == 0


@pytest.mark.fault(18)
def test_a_process_that_has_left_the_workers_session_holds_nothing_of_it(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    one = server("-w", "2", app=FAULTS, QML_MP_ORPHAN_GRACE="600").start(ready=2)
    workers = list(one.worker_pids().values())
    report = tmp_path / "report"
    escaped = result_of(storage, "leave_a_session", report=str(report))
    assert isinstance(escaped, int)
    try:
        wait_until(report.exists)

        os.kill(one.pid, signal.SIGKILL)
        one.wait()

        # Idle workers see the supervisor's death, so the escaped process holds no end of their pipes.
        wait_until(lambda: all(is_gone(pid) for pid in workers), what="the workers' leave")
        assert not is_gone(escaped)
    finally:
        os.kill(escaped, signal.SIGKILL)  # out of reach for the server: that is documented
    files = json.loads(report.read_text())
    assert [file for file in files if file.startswith(("pipe:", "socket:"))] == []
    assert [file for file in files if "jobs.db" in file or "qml-mp-stack" in file] == []


# For four workers and three descriptors more: while storage is slow to answer, a fork finds the connection to
# it open, and is not to find less room than the others.
FEW = ("bash", "-c", 'ulimit -Sn 67; exec "$@"', "bash")
SAID = "No descriptors are left for another worker"


def whole_as_far_as_it_goes(one: Server) -> dict[int, int]:
    """The workers, once the server has said that there is room for no more and all that it has are ready."""
    wait_until(lambda: SAID in one.log(), what=one.log)
    running = int(one.log().rpartition(f"{SAID}: ")[2].split()[0])
    return wait_until(lambda: workers if len(workers := one.worker_pids()) >= running else None, what=one.log)


@pytest.mark.fault(84)
def test_a_server_with_few_descriptors_runs_with_fewer_workers_says_so_once_and_works_on(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "30", QML_MP_MAX_CRASHES="1")
    one.prefix = FEW
    one.start()

    workers = whole_as_far_as_it_goes(one)

    assert 3 <= len(workers) < 30
    before = settled_count(one)
    killers = [enqueue(storage, "die", signal_number=int(signal.SIGKILL)) for _ in range(3)]
    others = [enqueue(storage, "quick") for _ in range(10)]
    for job_id in others:
        wait_for_state(storage, job_id, StateName.SUCCEEDED)
    for job_id in killers:
        wait_for_state(storage, job_id, StateName.FAILED)
    wait_until(lambda: len(one.worker_pids()) == len(workers), what="the replacements")
    wait_until(lambda: settled_count(one) == before, what="the same count")
    assert one.log().count(SAID) == 1
    (shown,) = storage.list_servers()
    assert shown.trouble is not None
    assert "Fewer workers run than are wanted" in shown.trouble
    assert one.stop() == 0


@pytest.mark.nightly
@pytest.mark.fault(84)
def test_a_server_with_few_descriptors_replaces_its_workers_all_the_same(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "30")
    one.prefix = FEW
    one.start()
    workers = whole_as_far_as_it_goes(one)

    one.signal(signal.SIGHUP)

    wait_until(
        lambda: len(new := one.worker_pids()) == len(workers) and not {*new.values()} & {*workers.values()},
        what="new workers alone",
    )
    assert one.log().count(SAID) == 1
    assert one.stop() == 0


@pytest.mark.nightly
@pytest.mark.fault(84)
def test_workers_for_whom_there_was_no_room_start_when_there_is(server: MakeServer, storage: Storage) -> None:
    one = server("-w", "14")
    one.prefix = FEW
    one.start()
    assert len(whole_as_far_as_it_goes(one)) < 14

    hard = resource.prlimit(one.pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(one.pid, resource.RLIMIT_NOFILE, (min(hard, 256), hard))

    wait_until(lambda: len(one.worker_pids()) == 14, what=one.log)
    wait_until(lambda: "All workers that are wanted run again" in one.log(), what=one.log)
    assert one.stop() == 0


@pytest.mark.nightly
@pytest.mark.fault(84)
def test_a_burst_with_few_descriptors_ends(server: MakeServer, storage: Storage) -> None:
    job_id = enqueue(storage, "quick")
    one = server("-w", "30", "--burst")
    one.prefix = FEW
    one.start(ready=None)

    assert one.wait() == 0
    wait_for_state(storage, job_id, StateName.SUCCEEDED)
