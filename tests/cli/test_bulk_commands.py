"""`jobs retry|cancel|delete` of many jobs, `jobs errors`, and the options that choose jobs."""

from __future__ import annotations

import os
import pty
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime

import pytest

from qml_mp import host
from qml_mp.core.job import Job
from qml_mp.core.outcome import ErrorInfo, Failure
from qml_mp.core.server_info import ProcessIdentity, ServerInfo
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from qml_mp.storage.values import BY_DEFAULT, Fetch, JobFilter
from tests.bench.million import fill
from tests.cli.command import Qml, is_one_error
from tests.processes.harness import ROOT
from tests.until import PATIENCE_S

COUNT = 6
_GONE = ProcessIdentity(host=host.identity().host, pid=host.identity().pid, started_ticks=1)


def fail(storage: Storage, count: int, *, error: str = "ValueError", method: str = "thumb") -> list[str]:
    ids = storage.enqueue_many(Job.new(method, {"n": n}) for n in range(count))
    which = Fetch(worker_id="w", server_id="s#1", queues=(), methods=(method,))
    claims = storage.exchange((), fetch=which, limit=count, retention=BY_DEFAULT).claims
    trace = '  File "/srv/shop/tasks.py", line 12, in thumb\n'
    failure = Failure(error=ErrorInfo(type=error, message="no\x1b such thing", traceback=trace))
    storage.exchange([(claim, failure) for claim in claims], fetch=None, limit=0, retention=BY_DEFAULT)
    return ids


def ids_in(storage: Storage, state: StateName) -> set[str]:
    return {job.id for job in storage.list_jobs(JobFilter(states=[state])).jobs}


def run_one(storage: Storage, *, server: str, process: ProcessIdentity) -> str:
    """A job that a server runs, alive or gone."""
    now = datetime.now(UTC)
    storage.register_server(
        ServerInfo(
            id=f"{server}#1", name=server, hostname="here", process=process, worker_count=1, queues=(),
            started_at=now, last_heartbeat=now,
        )
    )  # fmt: skip
    job_id = storage.enqueue(Job.new("thumb", queue=server))
    assert storage.fetch_and_lock_job(Fetch(worker_id=server, server_id=f"{server}#1", queues=(server,)))
    return job_id


def test_what_the_options_choose_is_retried_and_nothing_else(qml: Qml, storage: Storage) -> None:
    meant, others = fail(storage, COUNT, error="KeyError"), fail(storage, 2)

    looked = qml("jobs", "retry", "--error", "keyerror: no", "--dry-run", "--json").value
    table = qml("jobs", "retry", "--error", "keyerror: no", "--dry-run").out
    retried = qml("jobs", "retry", "--state", "failed", "--error", "keyerror: no", "--yes", "--json").value

    assert (looked["matched"], looked["states"], len(looked["examples"])) == (COUNT, {"failed": COUNT}, 5)
    assert table.startswith(f"{COUNT} jobs would be enqueued again ({COUNT} failed)\n")
    assert retried == {"matched": COUNT, "changed": COUNT, "left": 0}
    assert ids_in(storage, StateName.ENQUEUED) == set(meant)
    assert ids_in(storage, StateName.FAILED) == set(others)


def test_deleting_and_cancelling_many(qml: Qml, storage: Storage) -> None:
    fail(storage, 2)
    storage.enqueue_many(Job.new("resize", queue="images") for _ in range(3))
    storage.enqueue_many(Job.new("resize") for _ in range(2))

    cancelled = qml("jobs", "cancel", "--queue", "images", "--yes")
    deleted = qml("jobs", "delete", "--all", "-y", "--reason", "not needed")
    nothing = qml("jobs", "delete", "--all", "-y")

    assert cancelled.out == "3 jobs are deleted or asked to end\n"
    assert deleted.out == "4 jobs are deleted\n"
    assert nothing.out == "0 jobs are deleted\n"
    assert storage.job_counts()[StateName.DELETED] == 7


def test_a_running_job_is_asked_to_end_by_its_server_and_ended_where_that_is_gone(
    qml: Qml, storage: Storage
) -> None:
    alive = run_one(storage, server="alive", process=host.identity())
    gone = run_one(storage, server="gone", process=_GONE)

    refused = qml("jobs", "delete", "--state", "processing", "--yes")
    cancelled = qml("jobs", "cancel", "--all", "--yes")

    assert refused.code == 1
    assert refused.out == "1 job is deleted\n"
    assert "Of the running jobs 1 is as before" in refused.err
    assert ids_in(storage, StateName.DELETED) == {gone}
    assert (cancelled.code, cancelled.out) == (0, "1 job is deleted or asked to end\n")
    assert [request.key.job_id for request in storage.cancel_requests("alive#1")] == [alive]


def test_jobs_whose_unique_key_another_has_are_told(qml: Qml, storage: Storage) -> None:
    storage.enqueue(Job.new("thumb", unique_key="k"))
    claim = storage.fetch_and_lock_job(Fetch(worker_id="w", server_id="s#1", queues=()))
    assert claim is not None
    error = ErrorInfo(type="ValueError", message="no")
    storage.finish(claim, Failure(error=error), retention=BY_DEFAULT)
    storage.enqueue(Job.new("thumb", unique_key="k"))

    ended = qml("jobs", "retry", "--all", "--yes")

    assert (ended.code, ended.out) == (1, "0 jobs are enqueued again\n")
    assert "1 job is as before: another job that has not ended carries the same unique_key" in ended.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["retry"], "Say which jobs: their ids, or "),
        (["retry"], "--state, --queue, --method, --error, --since, --until, --kind, --all."),
        (["retry", "01a20ff2-659c-78a5-9cfb-d95426a19a21", "--all"], "not both"),
        (["retry", "--state", "succeeded", "--yes"], "succeeded"),
        (["cancel", "--all", "--wait"], "named by their ids"),
        (["delete", "--since", "yesterday"], "--since is 'yesterday'"),
        (
            ["list", "--since", "10000000d"],
            "--since is '10000000d'; it must be a duration such as 90s, 2h or 1d (36525d at most)",
        ),
        (["retry", "--method", "thumb", "--error", "", "--yes"], "error is empty"),
        (["delete", "--since", "20261127", "--yes"], "--since is '20261127', which may be a date or seconds"),
        (["delete", "--all"], "repeat it with --yes"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_changed(
    qml: Qml, storage: Storage, arguments: list[str], told: str
) -> None:
    fail(storage, 1)
    before = qml.dump()

    ended = qml("jobs", *arguments)

    assert ended.code == 2
    assert is_one_error(ended.err)
    assert told in ended.err
    assert qml.dump() == before


def test_since_restricts_a_list_and_a_change(qml: Qml, storage: Storage) -> None:
    fail(storage, 2)

    hour = qml("jobs", "list", "--since", "1h", "--json").lines
    seconds = qml("jobs", "list", "--since", "3600", "--json").lines
    later = qml("jobs", "list", "--since", "2130-01-01", "--json").lines
    retried = qml("jobs", "retry", "--since", "2130-01-01", "--yes")

    assert (len(hour), len(seconds), later, retried.out) == (2, 2, [], "0 jobs are enqueued again\n")


def test_until_and_kind_restrict_a_list_and_a_change(qml: Qml, storage: Storage) -> None:
    fail(storage, 2)
    fail(storage, 1, error="KeyError")
    kind = qml("jobs", "errors", "--json").lines[1]["kind"]

    of_kind = qml("jobs", "list", "--kind", kind, "--json").lines
    earlier = qml("jobs", "list", "--until", "1h", "--json").lines
    retried = qml("jobs", "retry", "--kind", kind, "--yes")

    assert [job["last_error"]["type"] for job in of_kind] == ["KeyError"]
    assert (earlier, retried.out) == ([], "1 job is enqueued again\n")


def test_a_list_says_how_far_it_has_looked_and_goes_on_from_there(qml: Qml, storage: Storage) -> None:
    fill(storage.url, 20_010, states="'succeeded'")

    first = qml("jobs", "list", "--method", "tasks.rare", "--json")
    told, _, cursor = first.err.strip().partition("; look further with --after ")
    second = qml("jobs", "list", "--method", "tasks.rare", "--json", "--after", cursor)

    assert told.startswith("qml-mp: looked at jobs that were created since ")
    assert [len(first.lines), len(second.lines)] == [2, 1]
    assert second.err == ""


def test_failures_are_counted_by_kind_and_fit_a_terminal(qml: Qml, storage: Storage) -> None:
    first, second = fail(storage, 3), fail(storage, 1, error="KeyError")

    kinds = qml("jobs", "errors", "--json").lines
    table = qml("jobs", "errors", "--method", "thumb").out
    nothing = qml("jobs", "errors", "--state", "awaiting_retry", "--json").lines

    assert [(kind["count"], kind["type"], kind["frame"]) for kind in kinds] == [
        (3, "ValueError", "shop/tasks.py:12 in thumb"), (1, "KeyError", "shop/tasks.py:12 in thumb"),
    ]  # fmt: skip
    assert kinds[0]["example"] in first
    assert "ValueError: no\\x1b such thing\n  shop/tasks.py:12 in thumb  e.g. " in table
    assert second[0] in table
    assert nothing == []


MANY = 1200
_IN_BATCHES = ("jobs", "retry", "--all", "--yes")
"""Jobs are changed 500 at a time."""


def start_armed(qml: Qml, failpoint: str, *arguments: str) -> subprocess.Popen[str]:
    """The command, in which something happens at that point."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.failpoints", failpoint, *arguments], cwd=qml.folder,
        env=qml.environment({"PYTHONPATH": str(ROOT)}), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def test_the_first_ctrl_c_ends_it_between_two_batches_and_says_how_many_are_done(
    qml: Qml, storage: Storage
) -> None:
    fail(storage, MANY)
    for commit in range(1, 20):
        with start_armed(qml, f"storage.committed=stop:{commit}", *_IN_BATCHES) as process:
            _, status = os.waitpid(process.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status)
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGCONT)
            _, told = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 130
        if done := storage.job_counts()[StateName.ENQUEUED]:
            break

    assert done == 500
    assert "qml-mp: 500 of 1200 jobs are enqueued again; the others are as before" in told


def test_a_storage_that_goes_away_leaves_what_is_done_and_says_so(qml: Qml, storage: Storage) -> None:
    fail(storage, MANY)
    with closing(sqlite3.connect(qml.database)) as connection, connection:
        connection.execute(
            "CREATE TRIGGER away BEFORE UPDATE ON qml_jobs "
            f"WHEN (SELECT count(*) FROM qml_jobs WHERE state = 'enqueued') >= {MANY - 100} "
            "BEGIN SELECT RAISE(ABORT, 'gone'); END"
        )

    ended = qml(*_IN_BATCHES)

    assert ended.code == 4
    assert "1000 of 1200 jobs are enqueued again" in ended.err
    assert storage.job_counts()[StateName.ENQUEUED] == 1000


def test_a_command_that_is_killed_at_any_commit_leaves_whole_batches_and_the_next_one_does_the_rest(
    qml: Qml, storage: Storage
) -> None:
    fail(storage, MANY)
    seen = list[int]()
    for commit in range(1, 20):
        with start_armed(qml, f"storage.committed=kill:{commit}", *_IN_BATCHES) as process:
            process.communicate(timeout=PATIENCE_S)
        seen.append(storage.job_counts()[StateName.ENQUEUED])
        if process.returncode != -signal.SIGKILL:
            break

    assert process.returncode == 0
    assert set(seen) <= {0, 500, 1000, MANY}
    assert 500 in seen
    assert seen[-1] == MANY


@pytest.mark.parametrize(("answer", "code", "left"), [("n", 1, 2), ("y", 0, 0)])
def test_a_person_is_asked_and_may_say_no(
    qml: Qml, storage: Storage, answer: str, code: int, left: int
) -> None:
    fail(storage, 2)
    leader, follower = pty.openpty()
    os.write(leader, f"{answer}\n".encode())

    ended = subprocess.run(
        [sys.executable, "-m", "qml_mp", "jobs", "retry", "--all"], cwd=qml.folder, env=qml.environment(),
        stdin=follower, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    os.close(leader)
    os.close(follower)

    assert "2 jobs will be enqueued again (2 failed). Go on?" in ended.stderr
    assert ended.returncode == code
    assert storage.job_counts()[StateName.FAILED] == left
    # Older versions of click write the blank behind their question to stdout.
    assert ended.stdout.removeprefix(" ") == ("2 jobs are enqueued again\n" if answer == "y" else "")
