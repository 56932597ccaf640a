"""What `enqueue --wait` and `jobs show` say of a job whose result could not be stored."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta

from qml_mp.core.job import Claim, Job
from qml_mp.core.outcome import Success
from qml_mp.storage.store import Storage
from qml_mp.storage.values import BY_DEFAULT, Fetch
from tests.cli.command import TASKS, Qml, is_one_error
from tests.cli.test_start_command import has_a_ready_worker
from tests.until import PATIENCE_S, wait_until

LARGE = """
@app.job()
def large() -> str:
    return "x" * 2_000_000
"""


def test_an_awaited_result_that_was_not_stored_is_an_error_with_the_reason(qml: Qml) -> None:
    (qml.folder / "tasks.py").write_text(TASKS + LARGE)
    with qml.started("-w", "1", "-q", "*") as process:
        qml.until("status", shows=has_a_ready_worker, server=process)

        ended = qml("-A", "tasks:app", "enqueue", "large", "--wait")
        (job,) = qml("jobs", "list", "--json").lines
        page = qml("jobs", "show", job["id"]).out

    assert (ended.code, ended.out) == (1, "")
    waiting, error = ended.err.splitlines(keepends=True)
    assert "waiting for" in waiting
    assert is_one_error(error)
    assert f"The job {job['id']} (large) succeeded, but its result was not stored: InvalidJob" in error
    assert (job["state"], job["result"]) == ("succeeded", None)
    assert "2,000,002 bytes of JSON; the limit is 1,048,576" in job["result_not_stored"]
    assert "not stored: InvalidJob" in page


def test_the_result_of_another_methods_job_is_not_printed_as_ones_own(qml: Qml, storage: Storage) -> None:
    sent = Job.new("mail", unique_key="user-5", unique_for=timedelta(hours=1))
    storage.enqueue(sent)
    outcome = Success(result={"sent": 1}, duration=timedelta(0))
    storage.finish(claim_one(storage), outcome, retention=BY_DEFAULT)
    same_key = ("--unique-key", "user-5", "--unique-for", "1h")

    ended = qml("enqueue", "resize", "path=a.png", *same_key, "--wait")

    assert (ended.code, ended.out) == (1, "")
    assert f"The job {sent.id} is one of 'mail', and this handle of it comes from 'resize'" in ended.err


# Takes 5 s: so long the command waits before it says that no server is alive.
def test_who_waits_without_a_limit_beside_no_server_is_told_so_and_then_gets_the_result(
    qml: Qml, storage: Storage
) -> None:
    told = qml.folder / "told"
    command = [sys.executable, "-m", "qml_mp", "enqueue", "resize", "path=a.png", "--wait"]
    with told.open("wb") as stderr, subprocess.Popen(
        command, cwd=qml.folder, env=qml.environment(), stdout=subprocess.PIPE, stderr=stderr
    ) as waiting:  # fmt: skip
        try:
            wait_until(lambda: told.read_text().count("\n") == 2, what=told.read_text)
            claim = claim_one(storage)
            storage.finish(claim, Success(result={"width": 1}, duration=timedelta()), retention=BY_DEFAULT)
            out, _ = waiting.communicate(timeout=PATIENCE_S)
        finally:
            waiting.kill()

    assert told.read_text().splitlines()[1] == "qml-mp: 1 job waits, and no server is alive; still waiting"
    assert (waiting.returncode, json.loads(out)) == (0, {"width": 1})


def claim_one(storage: Storage) -> Claim:
    claim = storage.fetch_and_lock_job(Fetch(worker_id="w", server_id="s", queues=()))
    assert claim is not None
    return claim
