"""Tests: what the state-change hook and the log are told of each transition."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from qml_mp.storage.values import BY_DEFAULT, CancelResult
from tests.processes.harness import ROOT, Server, wait_for_state, wait_until
from tests.storage.helpers import patient_url

MakeServer = Callable[..., Server]
TOLD = "tests.processes.apps_outcomes:told"
PATIENT = {"QML_MP_CANCEL_GRACE": "0.2", "QML_MP_TERM_GRACE": "600"}
"""A job that gives way is never killed, however late its process gets a processor."""


@pytest.fixture
def told(server: MakeServer, tmp_path: Path) -> Server:
    return server("-w", "1", app=TOLD, TOLD_FILE=str(tmp_path / "told"), QML_MP_MAX_CRASHES="2", **PATIENT)


def enqueue(storage: Storage, what: str, **options: Any) -> str:
    return storage.enqueue(Job.new("do", {"what": what}, **options))


def rows_told(folder: Path) -> list[tuple[list[str], dict[str, Any]]]:
    """The transitions that the hook was told of, each with its row."""
    lines = [json.loads(line) for line in (folder / "told").read_text().splitlines()]
    return [(line["change"], line["job"]) for line in lines]


def lines_about(one: Server, job_id: str) -> list[str]:
    return [
        line.partition(f"job {job_id} (do)")[2].strip(": ")
        for line in one.log().splitlines()
        if f"job {job_id} (do)" in line
    ]


def test_the_hook_gets_the_job_with_its_new_state_at_every_transition(
    told: Server, storage: Storage, tmp_path: Path
) -> None:
    told.start()

    job_id = enqueue(storage, "raise")
    last = wait_for_state(storage, job_id, StateName.FAILED)
    assert told.stop() == 0

    changes, rows = zip(*rows_told(tmp_path), strict=True)
    assert list(changes) == [
        ["enqueued", "processing"],
        ["processing", "awaiting_retry"],
        ["enqueued", "processing"],
        ["processing", "failed"],
    ]
    assert [row["state"] for row in rows] == [new for _, new in changes]
    assert [row["failures"] for row in rows] == [0, 1, 1, 2]
    assert [row["claim_seq"] for row in rows] == [1, 1, 2, 2]
    assert [row["worker"] is not None for row in rows] == [True, False, True, False]
    assert rows[1]["last_error"]["message"] == "no luck"
    assert rows[1]["run_at"] > rows[1]["started_at"]
    assert rows[-1] == {**last.to_json(), "worker": None}  # as it is stored: error, instants, expiry


def test_the_hook_gets_results_and_cancels(told: Server, storage: Storage, tmp_path: Path) -> None:
    told.start()

    done = wait_for_state(storage, enqueue(storage, "return"), StateName.SUCCEEDED)
    cancelled_id = enqueue(storage, "hang")
    wait_until(lambda: any(job["id"] == cancelled_id for _, job in rows_told(tmp_path)), what="its start")
    asked = storage.request_cancel(cancelled_id, reason="not wanted", retention=BY_DEFAULT)
    cancelled = wait_for_state(storage, cancelled_id, StateName.DELETED)
    assert told.stop() == 0

    assert asked is CancelResult.REQUESTED
    told_of = {job["id"]: (change, job) for change, job in rows_told(tmp_path)}
    assert told_of[done.id] == (["processing", "succeeded"], {**done.to_json(), "worker": None})
    assert told_of[cancelled_id] == (["processing", "deleted"], {**cancelled.to_json(), "worker": None})
    about = lines_about(told, cancelled_id)
    assert [line for line in about if line != "attempt 1 started"] == ["cancelled: not wanted"]


def test_a_failure_is_one_warning_when_it_is_retried_and_one_error_at_the_end_with_the_traceback(
    told: Server, storage: Storage
) -> None:
    told.flags += ("-v",)
    told.start()

    job_id = enqueue(storage, "raise")
    wait_for_state(storage, job_id, StateName.FAILED)
    assert told.stop() == 0

    log = told.log()
    assert re.search(
        rf"WARNING .*job {job_id} \(do\): attempt 1 of 2 failed, retry in 50ms: ValueError: no luck", log
    )
    assert re.search(
        rf"ERROR .*job {job_id} \(do\): failed for good at attempt 2 of 2: ValueError: no luck", log
    )
    assert log.count(f"job {job_id}: all frames\n") == 2  # as -v wants it, beside those of the user
    assert log.count('raise ValueError("no luck")') == 2 + 2
    assert log.count(": ValueError: no luck") == 2


def test_a_time_limit_is_called_one(told: Server, storage: Storage) -> None:
    told.start()

    job_id = enqueue(storage, "hang", timeout=timedelta(seconds=0.2))
    wait_for_state(storage, job_id, StateName.FAILED)
    assert told.stop() == 0

    late = "JobTimeout: The attempt exceeded its time limit of 200ms."
    assert [line for line in lines_about(told, job_id) if "started" not in line] == [
        f"attempt 1 of 2 passed its time limit, retry in 50ms: {late}",
        f"failed for good at attempt 2 of 2: {late}",
    ]
    assert "interrupted" not in told.log()


def test_a_crash_is_told_with_its_budget_and_the_last_one_as_failed_for_good(
    told: Server, storage: Storage
) -> None:
    told.flags += ("-v",)
    told.start()

    job_id = enqueue(storage, "die")
    wait_for_state(storage, job_id, StateName.FAILED)
    assert told.stop() == 0

    about = rf"job {job_id} \(do\): "
    died = r"The worker process \(pid \d+\) was killed by SIGKILL\."
    assert re.search(rf"WARNING .*{about}crash 1 of 2, runs again at once: WorkerDied: {died}", told.log())
    assert re.search(rf"ERROR .*{about}failed for good at crash 2 of 2: WorkerCrashed: {died}", told.log())


HOST = """
import sys
from qml_mp import BackgroundJobServer, ServerConfig, open_storage
from tests.processes.apps_outcomes import told

storage = open_storage(sys.argv[1])
with BackgroundJobServer(ServerConfig(worker_count=1), storage, "tests.processes.apps_outcomes:told"):
    job = told.make_job("do", {"what": "raise"})
    storage.enqueue(job)
    while not storage.get(job.id).state_name.is_final:
        pass
"""


def test_in_a_host_that_configures_no_logging_a_failure_still_reaches_standard_error(
    url: str, tmp_path: Path
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", HOST, patient_url(url)],
        cwd=ROOT, env=os.environ | {"TOLD_FILE": str(tmp_path / "told")}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip

    assert ended.returncode == 0, ended.stderr
    assert "attempt 1 of 2 failed, retry in 50ms: ValueError: no luck" in ended.stderr
    assert "failed for good at attempt 2 of 2: ValueError: no luck" in ended.stderr
    assert 'raise ValueError("no luck")' in ended.stderr
    assert "started" not in ended.stderr
