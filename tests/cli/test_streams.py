"""Standard streams that are closed, or of an encoding that cannot write all of our text."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from qml_mp.storage.values import JobFilter
from tests.cli.command import TASKS, Ended, Qml, is_one_error


def in_a_shell(qml: Qml, line: str) -> Ended:
    """The line, in which `qml-mp` is the command."""
    ended = subprocess.run(
        ["sh", "-c", line.replace("qml-mp", f"'{sys.executable}' -m qml_mp")],
        cwd=qml.folder, env=qml.environment(), capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    return Ended(code=ended.returncode, out=ended.stdout.decode(), err=ended.stderr.decode())


def unread(qml: Qml, *arguments: str, unbuffered: str = "") -> int:
    """The exit code of the command, when the reader of its stdout is gone, as after `| head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, "-m", "qml_mp", *arguments], cwd=qml.folder,
        env=qml.environment({"PYTHONUNBUFFERED": unbuffered}),
        stdout=writer, stderr=subprocess.PIPE, timeout=120, check=False,
    )  # fmt: skip
    os.close(writer)
    assert not ended.stderr, ended.stderr
    return ended.returncode


def test_what_the_encoding_of_stdout_does_not_have_is_written_as_an_escape(
    qml: Qml, storage: Storage
) -> None:
    storage.enqueue(Job.new("thumb", "xx…"))

    listed = qml("jobs", "list", env={"PYTHONIOENCODING": "latin-1"})
    as_wanted = qml("jobs", "list", env={"PYTHONIOENCODING": "latin-1:replace"})

    assert (listed.code, listed.err) == (0, "")
    assert listed.out.endswith('"xx\\u2026"\n')
    assert as_wanted.out.endswith('"xx?"\n')


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_jobs_are_changed_whichever_streams_are_closed(qml: Qml, storage: Storage, closed: str) -> None:
    storage.enqueue_many(Job.new("thumb") for _ in range(3))

    ended = in_a_shell(qml, f"qml-mp jobs cancel --all --yes {closed}")

    assert (ended.code, ended.err) == (0, "")
    assert storage.job_counts()[StateName.DELETED] == 3


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize(("command", "unbuffered"), [("--version", ""), ("jobs list --json", "1")])
def test_a_disk_that_has_no_room_for_what_is_printed_is_said_to_be_that(
    qml: Qml, storage: Storage, command: str, unbuffered: str
) -> None:
    storage.enqueue(Job.new("thumb"))

    ended = in_a_shell(qml, f"PYTHONUNBUFFERED={unbuffered} qml-mp {command} >/dev/full")

    assert ended.code == 1
    assert is_one_error(ended.err)
    assert "cannot be written to stdout: No space left on device." in ended.err


def test_nobody_is_asked_where_stdin_is_closed(qml: Qml, storage: Storage) -> None:
    storage.enqueue(Job.new("thumb"))

    unasked = in_a_shell(qml, "qml-mp jobs cancel --all <&-")
    unread = in_a_shell(qml, "qml-mp enqueue thumb --payload - <&-")

    assert (unasked.code, unread.code) == (2, 2)
    assert "Nobody can be asked here: repeat it with --yes" in unasked.err
    assert "The payload on stdin is not JSON" in unread.err
    assert is_one_error(unasked.err)
    assert is_one_error(unread.err)
    assert storage.job_counts()[StateName.ENQUEUED] == 1


@pytest.mark.parametrize("command", [("enqueue", "resize", "path=a"), ("jobs", "list"), ("check",)])
def test_what_the_app_prints_at_its_import_is_not_taken_for_data(
    qml: Qml, storage: Storage, command: tuple[str, ...]
) -> None:
    """Nor what a program prints that the import calls."""
    tasks = TASKS.replace("QmlApp()", 'QmlApp(str("sqlite:///qml.db"))')  # not plain: it has to be imported
    prints = "import subprocess\nprint('loaded', flush=True)\nsubprocess.run(['echo', 'v1.2.3'])\n"
    (qml.folder / "tasks.py").write_text(prints + tasks)
    storage.enqueue(Job.new("resize"))

    ended = qml("-A", "tasks:app", *command, *(() if command[0] == "enqueue" else ("--json",)))

    assert (ended.code, ended.err) == (0, "loaded\nv1.2.3\n")
    assert len(ended.out.split()) == 1 if command[0] == "enqueue" else ended.lines


def test_a_command_does_not_wait_for_threads_that_the_import_has_started(qml: Qml, storage: Storage) -> None:
    thread = """
import threading

def run() -> None:
    threading.main_thread().join()  # which has ended when the interpreter waits for this thread
    open("waited", "w").close()

threading.Thread(target=run).start()
"""
    (qml.folder / "tasks.py").write_text(thread + TASKS)

    ended = in_a_shell(qml, "qml-mp -A tasks:app enqueue resize path=a")

    assert (ended.code, ended.err) == (0, "")
    assert [job.id for job in storage.list_jobs(JobFilter()).jobs] == [ended.out.strip()]
    assert not (qml.folder / "waited").exists()


@pytest.mark.parametrize(("form", "unbuffered"), [((), "1"), (("--json",), "")])
def test_all_jobs_are_changed_though_nobody_reads_of_the_first(
    qml: Qml, storage: Storage, form: tuple[str, ...], unbuffered: str
) -> None:
    ids = storage.enqueue_many(Job.new("thumb") for _ in range(3))

    code = unread(qml, "jobs", "cancel", *ids, *form, unbuffered=unbuffered)

    assert code == 0
    assert storage.job_counts()[StateName.DELETED] == 3


def test_health_and_check_end_with_their_code_though_nobody_reads_them(qml: Qml, storage: Storage) -> None:
    (qml.folder / "tasks.py").write_text("import no_such_library\n" + TASKS)

    health, check = unread(qml, "health"), unread(qml, "check", "-A", "tasks:app", "--json")

    assert storage.list_servers() == []
    assert (health, check) == (1, 3)
