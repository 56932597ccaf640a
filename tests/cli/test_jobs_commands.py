"""`enqueue` and `jobs`: what they print and what they change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from qml_mp import StateName, open_storage
from qml_mp.core.outcome import ErrorInfo, Failure, Outcome, Release
from qml_mp.storage.store import Storage
from qml_mp.storage.values import BY_DEFAULT, Fetch
from tests.cli.command import Qml, is_one_error

_NOBODY = "01a20ff2-659c-78a5-9cfb-d95426a19a21"


def enqueue(qml: Qml, *arguments: str) -> str:
    """Enqueue by name and return the id that is printed."""
    ended = qml("enqueue", *arguments)
    assert ended.code == 0, ended.err
    return ended.out.strip()


@pytest.mark.usefixtures("storage")
def test_enqueue_prints_the_id_alone_and_the_job_is_there(qml: Qml) -> None:
    ended = qml("enqueue", "resize", "path=a.png", "width=640", "big=true", 'text="3"', "tags=[1, 2]")

    job = qml("jobs", "show", ended.out.strip(), "--json").value
    assert ended.err == ""
    assert job["method"] == "resize"
    assert job["state"] == "enqueued"
    assert job["payload"] == {"path": "a.png", "width": 640, "big": True, "text": "3", "tags": [1, 2]}
    assert job["attempts"] == []


def test_what_is_no_json_is_text_also_where_python_reads_a_number(qml: Qml) -> None:
    job_id = enqueue(qml, "resize", "path=NaN", "a=Infinity", "b=-Infinity", "c=nan", "d=[NaN]")

    payload = qml("jobs", "show", job_id, "--json").value["payload"]
    assert payload == {"path": "NaN", "a": "Infinity", "b": "-Infinity", "c": "nan", "d": "[NaN]"}


def test_enqueue_takes_the_payload_as_json_or_from_stdin(qml: Qml) -> None:
    first = enqueue(qml, "resize", "--payload", '["a.png", 3]')
    second = qml("enqueue", "resize", "--payload", "-", stdin='{"path": "ü.png"}').out.strip()

    assert qml("jobs", "show", first, "--json").value["payload"] == ["a.png", 3]
    assert qml("jobs", "show", second, "--json").value["payload"] == {"path": "ü.png"}


def test_what_was_given_back_unbegun_is_a_hand_out_and_no_attempt(qml: Qml, storage: Storage) -> None:
    job_id = enqueue(qml, "resize", "path=a.png")
    end_as(storage, Release(reason="stopped", not_begun=True))
    end_as(storage, Failure(error=ErrorInfo(type="ValueError", message="no")))

    page = qml("jobs", "show", job_id).out

    assert "handed out 2, failures 1, crashes 0\nhand-out 2  failure" in page
    assert "attempt" not in page


def end_as(storage: Storage, outcome: Outcome) -> None:
    """Claim the next job, and end that claim so."""
    claim = storage.fetch_and_lock_job(Fetch(worker_id="w", server_id="s#1", queues=()))
    assert claim is not None
    storage.finish(claim, outcome, retention=BY_DEFAULT)


def test_with_an_app_the_methods_own_queue_is_used(qml: Qml) -> None:
    job_id = enqueue(qml, "-A", "tasks:app", "resize", "path=a.png")

    assert qml("jobs", "show", job_id, "--json").value["queue"] == "images"


def test_every_option_of_a_job_can_be_written_in_the_shell(qml: Qml) -> None:
    job_id = enqueue(
        qml, "resize", "-q", "low", "--priority", "-3", "--max-retries", "2", "--max-crashes", "1",
        "--timeout", "90s", "--delay", "1h", "--unique-key", "k", "--metadata", '{"by": "shell"}',
    )  # fmt: skip

    storage = open_storage(f"sqlite:///{qml.folder}/qml.db")
    job = storage.get(job_id)
    storage.close()
    assert job is not None
    assert (job.queue, job.priority, job.max_retries, job.max_crashes) == ("low", -3, 2, 1)
    assert (job.timeout, job.unique_key) == (timedelta(seconds=90), "k")
    assert (job.metadata, job.state_name) == ({"by": "shell"}, StateName.SCHEDULED)


def test_a_job_that_is_replaced_is_kept_as_the_settings_say(qml: Qml) -> None:
    options = ("resize", "--unique-key", "k", "--on-conflict", "replace")
    first = enqueue(qml, *options)

    ended = qml("enqueue", *options, env={"QML_MP_SUCCEEDED_TTL": "3h"})

    assert ended.code == 0, ended.err
    job = qml("jobs", "show", first, "--json").value
    expires, finished = (datetime.fromisoformat(job[name]) for name in ("expires_at", "finished_at"))
    assert expires - finished == timedelta(hours=3)


def test_a_delay_and_a_time_make_a_scheduled_job(qml: Qml) -> None:
    before = datetime.now(UTC)
    delayed = enqueue(qml, "resize", "--delay", "1h")
    timed = enqueue(qml, "resize", "--at", "2130-01-31T09:00+01:00")

    first = qml("jobs", "show", delayed, "--json").value
    second = qml("jobs", "show", timed, "--json").value
    assert first["state"] == second["state"] == "scheduled"
    assert timedelta(hours=1) <= datetime.fromisoformat(first["run_at"]) - before < timedelta(hours=2)
    assert second["run_at"] == "2130-01-31T08:00:00+00:00"


def test_waiting_has_a_limit_and_the_job_goes_on(qml: Qml) -> None:
    ended = qml("enqueue", "resize", "--wait", "--wait-timeout", "50ms")

    assert ended.code == 1
    assert ended.out == ""
    assert "still enqueued" in ended.err
    assert [job["state"] for job in qml("jobs", "list", "--json").lines] == ["enqueued"]


def test_the_list_is_newest_first_and_goes_on_at_the_cursor(qml: Qml) -> None:
    ids = [enqueue(qml, "resize", f"n={number}") for number in range(3)]

    first = qml("jobs", "list", "--json", "--limit", "2")
    cursor = first.err.split("--after ")[1].strip()
    second = qml("jobs", "list", "--json", "--limit", "2", "--after", cursor)

    assert [job["id"] for job in first.lines + second.lines] == ids[::-1]
    assert second.err == ""


def test_the_list_is_restricted_by_state_queue_and_method(qml: Qml) -> None:
    enqueue(qml, "resize", "--queue", "images")
    enqueue(qml, "boom", "--delay", "1h")

    by_state = qml("jobs", "list", "--json", "--state", "scheduled", "--state", "failed").lines
    by_queue = qml("jobs", "list", "--json", "--queue", "images").lines
    by_method = qml("jobs", "list", "--json", "--method", "nothing").lines

    assert [job["method"] for job in by_state] == ["boom"]
    assert [job["method"] for job in by_queue] == ["resize"]
    assert by_method == []


def test_the_table_has_the_jobs_and_escapes_what_would_steer_a_terminal(qml: Qml) -> None:
    job_id = enqueue(qml, "clear\x1b[2J")

    listed = qml("jobs", "list").out
    shown = qml("jobs", "show", job_id).out

    assert job_id in listed
    assert "clear\\x1b[2J" in listed
    assert "\x1b" not in listed + shown


def test_cancel_deletes_a_waiting_job_and_says_so(qml: Qml) -> None:
    job_id = enqueue(qml, "resize")

    ended = qml("jobs", "cancel", job_id, "--reason", "not needed", "--wait")

    assert (ended.code, ended.out) == (0, f"{job_id} deleted\n")
    assert "not needed" in qml("jobs", "show", job_id).out
    job = qml("jobs", "show", job_id, "--json").value
    assert (job["state"], job["reason"]) == ("deleted", "not needed")


def test_a_change_that_the_state_forbids_exits_1_and_changes_nothing(qml: Qml) -> None:
    job_id = enqueue(qml, "resize")
    qml("jobs", "delete", job_id)
    before = qml.dump()

    ended = [qml("jobs", command, job_id) for command in ("cancel", "delete", "retry")]

    assert [end.code for end in ended] == [1, 1, 1]
    assert all(is_one_error(end.err) for end in ended)
    assert qml.dump() == before


def test_of_several_jobs_the_ones_that_can_are_changed_and_the_others_told(qml: Qml) -> None:
    job_id = enqueue(qml, "resize")

    ended = qml("jobs", "delete", _NOBODY, job_id)

    assert ended.code == 1
    assert ended.out == f"{job_id} deleted\n"
    assert _NOBODY in ended.err
    assert "1 of 2" in ended.err


@pytest.mark.parametrize("command", ["show", "cancel"])
def test_a_job_that_is_not_there_exits_1(qml: Qml, command: str) -> None:
    enqueue(qml, "resize")

    ended = qml("jobs", command, _NOBODY)

    assert ended.code == 1
    assert _NOBODY in ended.err
    assert is_one_error(ended.err)
