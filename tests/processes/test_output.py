"""Tests: standard output and error that nobody reads, that are closed or replaced, and nasty names in them;
neither jobs nor the server mind, and no connection is ever in their place."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from qml_mp.core.job import Job
from qml_mp.core.outcome import AttemptKind
from qml_mp.core.recurring import RecurringJob
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.apps_names import METHOD, NASTY
from tests.processes.harness import (
    ROOT,
    Server,
    enqueue,
    left_in_registry,
    result_of,
    wait_for_state,
    wait_until,
)
from tests.processes.leaving import leaving_patiently
from tests.storage.helpers import patient_url

MakeServer = Callable[..., Server]
QUICK = {"QML_MP_CANCEL_GRACE": "0.3", "QML_MP_TERM_GRACE": "0.5"}
FAULTS = "tests.processes.apps_faults:app"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The smallest pipe there is; the test closes its reading end or keeps it, and need not read."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    yield reading, writing
    for fd in (reading, writing):
        with suppress(OSError):
            os.close(fd)


@pytest.mark.fault(21)
def test_a_job_that_floods_a_pipe_that_nobody_reads_blocks_itself_alone(
    server: MakeServer, storage: Storage, pipe: tuple[int, int]
) -> None:
    one = leaving_patiently(server)("-w", "2", app=FAULTS, **QUICK)
    one.output = pipe[1]
    one.start(ready=2)
    limit = timedelta(seconds=0.5)

    job_id = storage.enqueue(Job.new("print_lines", {"lines": 100}, timeout=limit))

    wait_until(lambda: one.journal())
    others = [enqueue(storage, "quick") for _ in range(10)]
    for other in others:
        wait_for_state(storage, other, StateName.SUCCEEDED)
    wait_for_state(storage, job_id, StateName.FAILED)
    (attempt,) = storage.attempts(job_id)
    assert attempt.kind is AttemptKind.TIMEOUT
    one.signal(signal.SIGTERM)
    assert one.wait() == 0
    assert left_in_registry(storage, log="") == []


@pytest.mark.fault(21)
def test_lines_that_the_log_could_not_take_are_counted(
    server: MakeServer, storage: Storage, pipe: tuple[int, int]
) -> None:
    reading, writing = pipe
    one = server("-w", "1", app=FAULTS)
    one.output = writing
    one.start()
    fill(writing)
    wait_for_state(storage, enqueue(storage, "quick"), StateName.SUCCEEDED)
    os.set_blocking(reading, False)
    drain(reading)

    wait_for_state(storage, enqueue(storage, "quick"), StateName.SUCCEEDED)

    # The worker's lines about the start and the end of the first job.
    assert b"(2 lines were dropped here, because nobody read them)" in drain(reading)
    assert one.stop() == 0


def fill(writing: int) -> None:
    """Leave no room in the pipe, through a description of our own that does not block."""
    own = os.open(f"/proc/self/fd/{writing}", os.O_WRONLY | os.O_NONBLOCK)
    with suppress(BlockingIOError):
        while True:
            os.write(own, b"-")
    os.close(own)


def drain(fd: int) -> bytes:
    """What is in the pipe now."""
    with suppress(BlockingIOError):
        return os.read(fd, 65536)
    return b""


@pytest.mark.fault(21)
def test_without_a_reader_of_its_output_a_server_works_on(
    server: MakeServer, storage: Storage, pipe: tuple[int, int]
) -> None:
    reading, writing = pipe
    one = server("-w", "1", app=FAULTS)
    one.output = writing
    one.start()
    workers = one.worker_pids()
    os.close(reading)
    os.close(writing)

    printing = enqueue(storage, "print_lines", lines=100)
    quiet = enqueue(storage, "quick")

    job = wait_for_state(storage, printing, StateName.FAILED)
    assert job.last_error is not None
    assert job.last_error.type == "BrokenPipeError"  # as in any program
    assert wait_for_state(storage, quiet, StateName.SUCCEEDED).result in workers.values()
    assert one.worker_pids() == workers
    assert one.stop() == 0


LEFTOVERS = "tests.processes.apps_leftovers:app"
CLOSING = ("bash", "-c", 'exec "$@" <&- >&- 2>&-', "bash")


@pytest.fixture
def one(server: MakeServer) -> Server:
    return server("-w", "1", app=LEFTOVERS).start()


@pytest.mark.fault(80)
def test_what_a_job_prints_after_another_has_closed_the_streams_is_no_statement(
    postgres_url: str, tmp_path: Path
) -> None:
    schema = f"streams_{os.getpid()}"
    url = f"{postgres_url}{'&' if '?' in postgres_url else '?'}schema={schema}"
    one = Server(url=url, folder=tmp_path, app=LEFTOVERS, flags=("-w", "1")).start()
    storage = one.storage
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE belongings (name text)")
        try:
            closing = enqueue(storage, "close_streams", gate=str(tmp_path / "gate"), first=1)
            wait_until(one.journal)
            connection.execute(  # so that the worker has to connect anew
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s",
                ["qml-mp: worker 1"],
            )
            (tmp_path / "gate").touch()
            worker = wait_for_state(storage, closing, StateName.SUCCEEDED).result

            printing = enqueue(storage, "say_as_a_statement", statement="DROP TABLE belongings")

            printed = wait_for_state(storage, printing, StateName.SUCCEEDED, StateName.FAILED)
            assert connection.execute("SELECT count(*) FROM belongings").fetchone() == (0,)
            assert printed.result == worker
            assert result_of(storage, "say", text="as ever") == worker
            assert "as ever" in one.log()
            assert one.stop() == 0
        finally:
            storage.close()
            one.clean_up()
            connection.execute("DROP TABLE IF EXISTS belongings")
            connection.execute(f'DROP SCHEMA IF EXISTS "{schema}" CASCADE')


@pytest.mark.fault(80)
def test_closed_streams_are_put_back_before_the_storage_is_used_and_for_the_next_job(
    one: Server, storage: Storage, tmp_path: Path
) -> None:
    before = result_of(storage, "streams")
    (tmp_path / "gate").touch()

    worker = result_of(storage, "close_streams", gate=str(tmp_path / "gate"))

    assert result_of(storage, "streams") == before
    assert result_of(storage, "say", text="heard again") == worker
    assert "heard again" in one.log()
    assert one.stop() == 0


@pytest.mark.fault(80)
def test_streams_that_a_job_has_replaced_are_its_own_and_not_the_next_jobs(
    one: Server, storage: Storage, tmp_path: Path
) -> None:
    before = result_of(storage, "streams")

    worker = result_of(storage, "replace_streams", path=str(tmp_path / "its-own"))

    assert result_of(storage, "streams") == before
    assert result_of(storage, "say", text="for everybody") == worker
    assert "for everybody" in one.log()
    assert "for everybody" not in (tmp_path / "its-own").read_text()
    assert one.stop() == 0


@pytest.mark.fault(80)
def test_a_worker_in_which_nothing_can_be_printed_any_more_leaves_and_says_why(
    one: Server, storage: Storage
) -> None:
    worker = result_of(storage, "close_print")

    assert result_of(storage, "say", text="from another one") != worker
    assert "from another one" in one.log()
    assert "sys.stdout or sys.stderr is closed" in one.log()
    assert one.stop() == 0


@pytest.mark.fault(80)
def test_a_server_that_is_started_without_standard_streams_works_and_holds_nothing_in_their_place(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "1", app=LEFTOVERS)
    one.prefix = CLOSING
    one.start()

    assert result_of(storage, "streams") == ["/dev/null"] * 3
    result_of(storage, "say", text="to nobody")
    assert [os.readlink(f"/proc/{one.pid}/fd/{fd}") for fd in range(3)] == ["/dev/null"] * 3
    assert one.stop() == 0


@pytest.mark.fault(80)
def test_a_producer_without_standard_streams_has_no_connection_in_their_place(
    url: str, tmp_path: Path
) -> None:
    program = (
        "import json, os, sys\n"
        "from qml_mp import Job, open_storage\n"
        "storage = open_storage(sys.argv[1])\n"
        "storage.enqueue(Job.new('quick'))\n"
        "print('not to the database')\n"
        "found = [os.readlink(f'/proc/self/fd/{fd}') for fd in range(3)]\n"
        "with open(sys.argv[2], 'w') as file: json.dump(found, file)\n"
        "storage.enqueue(Job.new('quick'))\n"
    )
    report = tmp_path / "report"

    subprocess.run(
        [*CLOSING, sys.executable, "-c", program, patient_url(url), str(report)], cwd=ROOT, check=True
    )

    assert json.loads(report.read_text()) == ["/dev/null"] * 3


@pytest.mark.fault(91)
def test_jobs_may_write_ten_megabytes_in_every_way_and_the_system_works_on(
    one: Server, storage: Storage
) -> None:
    loud = enqueue(storage, "use_every_way_out", mib=10)

    worker = wait_for_state(storage, loud, StateName.SUCCEEDED).result

    assert result_of(storage, "quick") == worker
    written = one.log().count("x" * 1023)
    assert written == 4 * 10 * 1024
    assert one.stop() == 0


@pytest.mark.fault(91)
def test_output_that_nobody_reads_is_the_jobs_own_affair(server: MakeServer, storage: Storage) -> None:
    reading, writing = os.pipe()
    one = server("-w", "1", app=LEFTOVERS)
    one.output = writing
    one.start()
    os.close(reading)
    os.close(writing)

    worker = result_of(storage, "write_to_what_nobody_reads")
    failed = wait_for_state(storage, enqueue(storage, "say", text="x" * 100_000), StateName.FAILED)

    assert failed.last_error is not None
    assert failed.last_error.type == "BrokenPipeError"  # as in any program
    assert result_of(storage, "quick") == worker
    assert one.stop() == 0


APP = "tests.processes.apps_names:app"


@pytest.mark.fault(86)
def test_every_line_of_the_log_is_a_record_of_ours_or_marked_as_its_continuation(
    server: MakeServer, storage: Storage
) -> None:
    storage.upsert_recurring_job(RecurringJob.new(f"template {NASTY}", "* * * * * *", METHOD))
    one = server("-w", "1", app=APP).start()

    wait_for_state(storage, storage.enqueue(Job.new(METHOD)), StateName.FAILED)
    wait_until(lambda: "has fired" in one.log())
    running = storage.enqueue(Job.new(METHOD, {"seconds": 60}))
    wait_for_state(storage, running, StateName.PROCESSING)
    one.signal(signal.SIGUSR1)
    wait_until(lambda: "most recent call last" in one.log())
    one.signal(signal.SIGQUIT)
    one.wait()

    log = one.log()
    lines = log.removesuffix("\n").split("\n")
    assert not {char for char in log if char != "\n" and not char.isprintable()}
    assert [line for line in lines if not line.startswith(("qml-mp: ", "  | "))] == []
    assert [line for line in lines if line.startswith("qml-mp: FORGED")] == []
    assert [line for line in lines if line.startswith("  | qml-mp: FORGED \\x1b[2J\\x9b31m\\r\\u202e\\u2028")]


@pytest.mark.fault(86)
def test_the_title_of_a_process_is_one_line_of_printable_text(server: MakeServer, storage: Storage) -> None:
    one = server("-w", "1", app=APP).start()
    storage.enqueue(Job.new(METHOD, {"seconds": 60}))

    (pid,) = one.worker_pids().values()

    title = wait_until(lambda: shown if "evil" in (shown := title_of(pid)) else None)
    assert title.isprintable()
    assert "work evil\\nqml-mp: FORGED \\x1b[2J\\x9b31m\\r\\u202e\\u2028" in title
    one.signal(signal.SIGQUIT)
    one.wait()


def title_of(pid: int) -> str:
    """What `ps` shows of the process."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()
