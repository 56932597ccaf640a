"""What `enqueue --wait` and `jobs show` say of a job whose result could not be stored."""

from __future__ import annotations

import pytest

from tests.cli.command import TASKS, Qml, is_one_error
from tests.cli.test_start_command import has_a_ready_worker

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


@pytest.mark.usefixtures("storage")
def test_a_job_that_is_waited_for_needs_no_setting_of_what_is_kept_how_long(qml: Qml) -> None:
    """It is committed by then."""
    arguments = ("enqueue", "resize", "path=a.png", "--wait", "--wait-timeout", "0.1")

    ended = qml(*arguments, env={"QML_MP_FAILED_TTL": "abc"})

    assert (ended.code, ended.out) == (1, "")
    waiting, error = ended.err.splitlines()
    assert waiting.startswith("qml-mp: waiting for ")
    assert "is still enqueued after 100ms" in error
