"""`jobs retry|cancel|delete` of many jobs, `jobs errors`, and the options that choose jobs."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest

from qml_mp import host, job_selection
from qml_mp.cli import bulk
from qml_mp.core.job import Job
from qml_mp.core.outcome import ErrorInfo, Failure
from qml_mp.core.server_info import ProcessIdentity, ServerInfo
from qml_mp.core.state import StateName
from qml_mp.errors import QmlError, StorageUnavailable
from qml_mp.job_selection import BulkChange, JobSelection
from qml_mp.storage.store import Storage
from qml_mp.storage.values import BY_DEFAULT, Fetch, JobFilter, JobPage
from tests.bench.million import fill
from tests.cli.command import Qml, is_one_error
from tests.storage.helpers import in_children

COUNT = 6
_GONE = ProcessIdentity(host=host.identity().host, pid=host.identity().pid, started_ticks=1)


def fail(storage: Storage, count: int, *, error: str = "ValueError", method: str = "thumb") -> list[str]:
    ids = storage.enqueue_many(Job.new(method, {"n": n}) for n in range(count))
    which = Fetch(worker_id="w", server_id="s#1", queues=(), methods=(method,))
    claims = storage.exchange((), fetch=which, limit=count, retention=BY_DEFAULT).claims
    for claim in claims:
        trace = '  File "/srv/shop/tasks.py", line 12, in thumb\n'
        info = ErrorInfo(type=error, message="no\x1b such thing", traceback=trace)
        storage.finish(claim, Failure(error=info), retention=BY_DEFAULT)
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
        (["delete", "01a20ff2-659c-78a5-9cfb-d95426a19a21", "--dry-run"], "not both"),
        (["retry", "--state", "succeeded", "--yes"], "succeeded"),
        (["cancel", "--all", "--wait"], "named by their ids"),
        (["delete", "--since", "yesterday"], "--since is 'yesterday'"),
        (
            ["list", "--since", "10000000d"],
            "--since is '10000000d'; it must be a duration such as 90s, 2h or 1d (36525d at most)",
        ),
        (
            ["delete", "--until", "10000000d"],
            "--until is '10000000d'; it must be a duration such as 90s, 2h or 1d (36525d at most)",
        ),
        (["retry", "--method", "thumb", "--error", "", "--yes"], "error is empty"),
        (["delete", "--since", "20261127", "--yes"], "--since is '20261127', which may be a date or seconds"),
        (["list", "--until", "2026"], "--until is '2026', which may be a date or seconds: write 2026s, or"),
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


def test_since_now_and_until_now_are_said_of_a_change(qml: Qml, storage: Storage) -> None:
    fail(storage, 2)

    told = [qml("jobs", "retry", option, "0s", "--yes").out for option in ("--since", "--until")]

    assert told == ["0 jobs are enqueued again\n", "2 jobs are enqueued again\n"]


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

    assert [list(kind) for kind in kinds] == [
        ["count", "method", "type", "message", "frame", "last_at", "example", "kind"]
    ] * 2
    assert [(kind["count"], kind["type"], kind["frame"]) for kind in kinds] == [
        (3, "ValueError", "shop/tasks.py:12 in thumb"), (1, "KeyError", "shop/tasks.py:12 in thumb"),
    ]  # fmt: skip
    assert kinds[0]["example"] in first
    assert "ValueError: no\\x1b such thing\n  shop/tasks.py:12 in thumb  e.g. " in table
    assert second[0] in table
    assert nothing == []


ASKED = bulk.Asked(change=BulkChange.RETRY, reason="r", force=False, yes=True, dry_run=False, as_json=False)


def test_what_is_told_of_a_change_has_those_that_were_refused_and_those_that_changed_since(
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = bulk._Done(asked=ASKED, wanted=10, changed=7, refused=2)

    with pytest.raises(QmlError) as told:
        done.tell(left=1)

    counts = re.findall(r"(\d+) (?:jobs? )?(?:is|are)", f"{capsys.readouterr().out} {told.value}")
    assert counts == ["7", "2", "1"]


def test_examples_of_a_dry_run_are_looked_for_a_bounded_number_at_a_time(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    meant, really, looks = fail(storage, 1, error="KeyError"), storage.list_jobs, []
    fail(storage, 20)

    def look(where: JobFilter, **options: Any) -> JobPage:
        looks.append(options.get("among"))
        return really(where, **options)

    monkeypatch.setattr(storage, "list_jobs", look)
    monkeypatch.setattr(bulk, "AMONG", 6)
    asked = replace(ASKED, dry_run=True, as_json=True)
    bulk.change_many(storage, JobFilter(error="KeyError"), asked, retention=BY_DEFAULT)

    assert json.loads(capsys.readouterr().out)["examples"] == meant
    assert looks == [6, 6, 6, 6]


def after_batches(
    monkeypatch: pytest.MonkeyPatch, storage: Storage, number: int, then: Callable[[], object]
) -> None:
    """Batches of two jobs; something happens when so many of them are committed."""
    monkeypatch.setattr(job_selection, "_BATCH", 2)
    retry_many, done = storage.retry_many, []

    def retried(job_ids: list[str], *, until: datetime) -> list[str]:
        ids = retry_many(job_ids, until=until)
        done.append(ids)
        if len(done) == number:
            then()
        return ids

    monkeypatch.setattr(storage, "retry_many", retried)


def test_the_first_ctrl_c_ends_it_between_two_batches_and_says_how_many_are_done(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail(storage, COUNT)
    after_batches(monkeypatch, storage, 2, lambda: os.kill(os.getpid(), signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)

    with pytest.raises(click.Abort):
        bulk.change_many(storage, JobFilter(), ASKED, retention=BY_DEFAULT)

    assert "4 of 6 jobs are enqueued again; the others are as before" in capsys.readouterr().err
    assert len(ids_in(storage, StateName.ENQUEUED)) == 4
    assert signal.getsignal(signal.SIGINT) is before


def test_a_storage_that_goes_away_leaves_what_is_done_and_says_so(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def go_away() -> None:
        raise StorageUnavailable("gone")

    fail(storage, COUNT)
    after_batches(monkeypatch, storage, 2, go_away)

    with pytest.raises(StorageUnavailable):
        bulk.change_many(storage, JobFilter(), ASKED, retention=BY_DEFAULT)

    assert "2 of 6 jobs are enqueued again" in capsys.readouterr().err


def test_a_killed_command_leaves_whole_batches(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(storage, COUNT)
    after_batches(monkeypatch, storage, 2, lambda: os.kill(os.getpid(), signal.SIGKILL))
    storage.close()

    statuses = in_children([lambda: bulk.change_many(storage, JobFilter(), ASKED, retention=BY_DEFAULT)])

    assert statuses == [signal.SIGKILL]
    assert len(ids_in(storage, StateName.ENQUEUED)) == 4
    assert JobSelection(storage, JobFilter(), retention=BY_DEFAULT).retry() == 2


def test_a_person_is_asked_and_may_say_no(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail(storage, 2)
    asked: list[str] = []

    def says_yes_the_second_time(text: str, **_: bool) -> bool:
        asked.append(text)
        return len(asked) > 1

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr(click, "confirm", says_yes_the_second_time)

    with pytest.raises(QmlError, match="Nothing was changed"):
        bulk.change_many(storage, JobFilter(), replace(ASKED, yes=False), retention=BY_DEFAULT)
    assert ids_in(storage, StateName.ENQUEUED) == set()

    bulk.change_many(storage, JobFilter(), replace(ASKED, yes=False), retention=BY_DEFAULT)

    assert len(ids_in(storage, StateName.ENQUEUED)) == 2
    assert asked == ["2 jobs will be enqueued again (2 failed). Go on?"] * 2
    assert capsys.readouterr().out == "2 jobs are enqueued again\n"


def test_the_commands_of_the_readme_run(qml: Qml, storage: Storage) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    section = readme.partition("### Lists, errors and bulk work\n")[2].partition("\n### ")[0]
    commands = re.findall(r"^\$ qml-mp (.*)$", section, re.MULTILINE)
    fail(storage, 2, error="UnidentifiedImageError")

    asking = [command for command in commands if "retry" in command and "--dry-run" not in command]
    ended = {command: qml(*shlex.split(command)) for command in commands if command not in asking}

    assert [command for command, end in ended.items() if end.code != 0] == []
    assert len(asking) == 1
    assert qml(*shlex.split(asking[0]), "--yes").out == "2 jobs are enqueued again\n"
