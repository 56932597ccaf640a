"""Tests: jobs that end in unusual ways, user code around jobs that raises, and processes without room."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from qml_mp import host
from qml_mp.core.job import Job
from qml_mp.core.outcome import AttemptKind
from qml_mp.core.server_info import ServerInfo, WorkerInfo, new_server_id
from qml_mp.core.state import StateName
from qml_mp.ipc.pipe import Kind, Message
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from qml_mp.storage.values import BY_DEFAULT, Fetch
from tests.processes.apps_faults import open_files
from tests.processes.harness import Server, enqueue, few, is_gone, wait_for_state, wait_until

MakeServer = Callable[..., Server]
FAULTS = "tests.processes.apps_faults:app"
HOOKED = "tests.processes.apps_faults:hooked"
QUICK = {"QML_MP_CANCEL_GRACE": "0.2", "QML_MP_TERM_GRACE": "0.3"}
UNPRIVILEGED_UID = 54321


def failure_of(storage: Storage, method: str, **arguments: object) -> Job:
    """The job, once it has failed."""
    return wait_for_state(storage, enqueue(storage, method, **arguments), StateName.FAILED)


@pytest.mark.fault(9)
def test_memory_that_a_limit_refuses_is_an_ordinary_failure_and_the_limit_is_gone_afterwards(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "1", app=FAULTS).start()
    (worker,) = one.worker_pids().values()

    job = failure_of(storage, "use_up_memory")

    assert job.last_error is not None
    assert job.last_error.type == "MemoryError"
    assert (job.failures, job.crashes) == (1, 0)
    after = wait_for_state(storage, enqueue(storage, "quick"), StateName.SUCCEEDED)
    assert after.result == worker
    assert one.stop() == 0


@pytest.mark.fault(16)
@pytest.mark.parametrize("in_c", [False, True])
def test_endless_recursion_is_a_failure_or_a_crash_and_never_hangs(
    server: MakeServer, storage: Storage, in_c: bool
) -> None:
    one = server("-w", "1", app=FAULTS, QML_MP_MAX_CRASHES="1").start()

    job = failure_of(storage, "recurse", in_c=in_c)

    assert job.last_error is not None
    if job.crashes:
        (attempt,) = storage.attempts(job.id)
        assert attempt.process.signal == signal.SIGSEGV
    else:
        assert job.last_error.type == "RecursionError"
    assert wait_for_state(storage, enqueue(storage, "quick"), StateName.SUCCEEDED)
    assert one.stop() == 0


@pytest.mark.fault(31)
@few("what", ["object", "huge"], nightly=["set", "nan", "bytes"])
def test_a_result_that_cannot_be_stored_is_dropped_with_the_reason_and_the_job_has_succeeded(
    server: MakeServer, storage: Storage, what: str
) -> None:
    one = server("-w", "1", app=FAULTS).start()
    (worker,) = one.worker_pids().values()

    job = wait_for_state(storage, enqueue(storage, "give_back", what=what), StateName.SUCCEEDED)

    if what == "set":
        assert job.result == [1, 2]
    else:
        assert job.result is None
        assert job.result_not_stored
    assert wait_for_state(storage, enqueue(storage, "quick"), StateName.SUCCEEDED).result == worker
    assert one.stop() == 0


@pytest.mark.fault(32)
def test_an_error_that_cannot_be_described_is_recorded_by_its_type(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "1", app=FAULTS).start()
    (worker,) = one.worker_pids().values()

    job = failure_of(storage, "raise_rude", how="raise")

    assert job.last_error is not None
    assert job.last_error.type.endswith("RudeError")
    assert wait_for_state(storage, enqueue(storage, "quick"), StateName.SUCCEEDED).result == worker
    assert one.stop() == 0


@pytest.mark.fault(32)
def test_an_error_whose_description_never_ends_is_ended_by_the_time_limit(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "1", app=FAULTS, **QUICK).start()
    limited = Job.new("raise_rude", {"how": "loop"}, timeout=timedelta(seconds=0.5))

    job = wait_for_state(storage, storage.enqueue(limited), StateName.FAILED)

    assert job.last_error is not None
    assert (job.failures, job.crashes) == (1, 0)
    assert wait_for_state(storage, enqueue(storage, "quick"), StateName.SUCCEEDED)
    assert one.stop() == 0


@pytest.mark.fault(62)
@few(
    "queue, fails, message",
    [("error", True, "on the job's error")],
    nightly=[("before", False, "before the job"), ("after", False, "after the job")],
)
def test_middleware_and_hooks_that_raise_fail_the_job_and_not_the_worker(
    server: MakeServer, storage: Storage, queue: str, fails: bool, message: str
) -> None:
    one = server("-w", "1", "-q", "*", app=HOOKED).start()
    workers = one.worker_pids()

    job_id = storage.enqueue(Job.new("work", {"fails": fails}, queue=queue))

    job = wait_for_state(storage, job_id, StateName.FAILED)
    assert job.last_error is not None
    assert (job.last_error.type, job.last_error.message) == ("RuntimeError", message)
    calm = wait_for_state(storage, enqueue(storage, "work"), StateName.SUCCEEDED)
    assert calm.result == "done"
    wait_until(lambda: one.log().count("The state-change hook failed") == 4, what=one.log)
    assert one.worker_pids() == workers
    assert one.stop() == 0


@pytest.mark.fault(62)
def test_a_hook_that_hangs_before_the_job_is_ended_at_the_limit_of_the_job(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "1", "-q", "*", app=HOOKED, **QUICK).start()

    job_id = storage.enqueue(Job.new("work", queue="hang-at-processing", timeout=timedelta(seconds=0.3)))

    job = wait_for_state(storage, job_id, StateName.FAILED)
    assert (job.failures, job.crashes) == (1, 0)
    (attempt,) = storage.attempts(job_id)
    assert (attempt.kind, attempt.process.signal) == (AttemptKind.TIMEOUT, signal.SIGKILL)
    wait_for_state(storage, enqueue(storage, "work"), StateName.SUCCEEDED)
    assert one.stop() == 0


@pytest.mark.nightly
def test_what_a_worker_holds_whose_hook_hangs_goes_to_others(server: MakeServer, storage: Storage) -> None:
    limit = timedelta(hours=1)  # also of the hook
    first, second = storage.enqueue_many(
        [
            Job.new("work", queue="hang-at-succeeded", priority=1, timeout=limit),
            Job.new("work", timeout=limit),
        ]
    )
    server("-w", "1", "-q", "*", app=HOOKED, **QUICK).start()
    wait_for_state(storage, first, StateName.SUCCEEDED)  # the commit of which hands out the second one

    other = server("-w", "1", "-q", "*", app=HOOKED, **QUICK).start()

    done = wait_for_state(storage, second, StateName.SUCCEEDED)
    assert (done.failures, done.crashes) == (0, 0)
    assert storage.attempts(second) == ()
    assert other.stop() == 0


@pytest.mark.fault(54)
def test_a_stranger_with_the_pid_of_a_dead_worker_is_left_alone_and_the_job_runs(
    server: MakeServer, storage: Storage
) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    # Who had the pid before started at another time: that is all that tells them apart.
    former = replace(host.identity(stranger.pid), started_ticks=host.identity(stranger.pid).started_ticks - 1)
    now = datetime.now(UTC)
    server_id = new_server_id("former")
    storage.register_server(
        ServerInfo(
            id=server_id, name="former", hostname="here", process=former, worker_count=1,
            queues=("default",), started_at=now, last_heartbeat=now, heartbeat_enabled=False,
        )
    )  # fmt: skip
    storage.register_worker(
        WorkerInfo(
            id=f"{server_id}:worker:1", server_id=server_id, number=1, process=former, started_at=now,
            rss_bytes=None,
        )
    )  # fmt: skip
    job_id = enqueue(storage, "quick")
    claim = storage.fetch_and_lock_job(
        Fetch(worker_id=f"{server_id}:worker:1", server_id=server_id, queues=("default",))
    )
    assert claim is not None

    one = server("-w", "1").start()

    assert wait_for_state(storage, job_id, StateName.SUCCEEDED).claim_seq == 2
    assert one.stop() == 0
    assert stranger.poll() is None
    stranger.communicate(b"\n")
    assert stranger.returncode == 0


@pytest.mark.fault(71)
def test_a_worker_that_reads_nothing_and_whose_pipe_is_full_holds_up_nobody(
    server: MakeServer, storage: Storage
) -> None:
    # The stopped one is not to be killed before the test lets it go on, however long the rest takes.
    one = server("-w", "2", QML_MP_TERM_GRACE="600").start(ready=2)
    job_id = enqueue(storage, "nap", seconds=2)
    stopped = one.wait_until_running().pid
    os.kill(stopped, signal.SIGSTOP)
    fill_pipe_of(stopped)

    storage.request_cancel(job_id, reason="no longer wanted", retention=BY_DEFAULT)
    for said in ("Claims are paused", "Claims are resumed"):
        one.signal(signal.SIGUSR2)
        wait_until(lambda said=said: said in one.log())  # type: ignore[misc]

    for _ in range(20):
        wait_for_state(storage, enqueue(storage, "quick"), StateName.SUCCEEDED)
    one.signal(signal.SIGTERM)
    wait_until(lambda: len(one.worker_pids()) == 1, what="the leave of the other worker")
    os.kill(stopped, signal.SIGCONT)
    assert one.wait() == 0, one.log()
    job = wait_for_state(storage, job_id, StateName.SUCCEEDED, StateName.DELETED)
    assert job.claim_seq == 1


def fill_pipe_of(worker: int) -> None:
    """Put as many messages into the worker's pipe as it takes."""
    pipes = [file for file in open_files(worker).values() if file.startswith("pipe:")]
    (number,) = (
        fd
        for fd, file in open_files(worker).items()
        if pipes.count(file) == 1  # else its tickets
        and os.lstat(f"/proc/{worker}/fd/{fd}").st_mode & stat.S_IRUSR  # else the bell, which it only rings
    )
    own = os.open(f"/proc/{worker}/fd/{number}", os.O_WRONLY | os.O_NONBLOCK)
    with suppress(BlockingIOError):
        while True:
            os.write(own, Message(kind=Kind.WAKE).encode())
    os.close(own)


@pytest.mark.fault(72)
def test_a_job_that_is_cancelled_as_it_ends_has_exactly_one_end(server: MakeServer, storage: Storage) -> None:
    # None is killed: that would cost the job which its worker has begun meanwhile.
    one = server("-w", "2", **{**QUICK, "QML_MP_TERM_GRACE": "600"}).start(ready=2)
    ids = [enqueue(storage, "quick", busy_s=0.01 * (n % 6)) for n in range(60)]

    for job_id in ids:
        wait_until(lambda job_id=job_id: any(line.job_id == job_id for line in one.journal()))  # type: ignore[misc]
        storage.request_cancel(job_id, reason="too late?", retention=BY_DEFAULT)

    for job_id in ids:
        job = wait_for_state(storage, job_id, StateName.SUCCEEDED, StateName.DELETED)
        assert (job.failures, job.crashes) == (0, 0)  # it may have been held, and given back, before it began
        attempts = [attempt.kind for attempt in storage.attempts(job_id)]
        assert attempts == ([] if job.state_name is StateName.SUCCEEDED else [AttemptKind.CANCELLED])
    starts = one.starts()
    assert sorted(starts) == sorted(ids)
    assert storage.claims() == []
    assert one.stop() == 0


NO_ROOM = "The system has no room for another worker: 1 run, 2 are wanted"


@pytest.fixture
def limited(open_folder: Path) -> Iterator[tuple[Server, Storage]]:
    """Not yet: `limit_processes`."""
    one = Server(url=f"sqlite:///{open_folder / 'jobs.db'}", folder=open_folder, flags=("-w", "2"))
    if os.getuid() == 0:  # for whom there is no such limit; only the right to read files is kept
        uid, rights = str(UNPRIVILEGED_UID), "+dac_override"
        one.prefix = (
            "setpriv", "--reuid", uid, "--regid", uid, "--clear-groups",
            "--inh-caps", rights, "--ambient-caps", rights, "--bounding-set", "-all," + rights,
        )  # fmt: skip
    storage = open_storage(one.url)
    try:
        yield one, storage
    finally:
        storage.close()
        one.clean_up()


@pytest.mark.fault(69)
def test_a_supervisor_that_may_not_fork_lives_and_forks_when_it_may_again(
    limited: tuple[Server, Storage],
) -> None:
    one, storage = limited
    one.start(ready=2)
    before = one.worker_pids()
    limit_processes(one, "0")

    os.kill(before[1], signal.SIGKILL)

    wait_until(lambda: NO_ROOM in str(storage.list_servers()[0].trouble), what=one.log)
    busy = enqueue(storage, "quick")  # the other worker works on
    assert wait_for_state(storage, busy, StateName.SUCCEEDED).claim_seq == 1
    assert one.log().count(NO_ROOM) == 1  # not again and again
    limit_processes(one, "hard")
    wait_until(lambda: len(one.worker_pids()) == 2, what="a new worker")
    wait_until(lambda: storage.list_servers()[0].trouble is None, what=one.log)
    assert one.stop() == 0, one.log()
    assert is_gone(before[1])


def limit_processes(one: Server, most: str) -> None:
    """Set how many processes the supervisor's user may have, as that user; "hard": as many as ever."""
    code = (
        "import resource, sys; kind, pid = resource.RLIMIT_NPROC, int(sys.argv[1]);"
        "hard = resource.prlimit(pid, kind)[1];"
        "resource.prlimit(pid, kind, (hard if sys.argv[2] == 'hard' else int(sys.argv[2]), hard))"
    )
    subprocess.run([*one.prefix, sys.executable, "-c", code, str(one.pid), most], check=True)
