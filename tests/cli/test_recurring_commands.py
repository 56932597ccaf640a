"""`recurring`: templates added, previewed, switched and run by hand."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise

import pytest

from qml_mp.core.recurring import RecurringJob
from qml_mp.storage.store import Storage
from tests.cli.command import TASKS, Qml, is_one_error


def test_a_template_is_added_listed_and_removed(qml: Qml) -> None:
    added = qml(
        "recurring", "add", "digest", "0 9 * * MON-FRI", "resize", "--payload", '{"path": "a"}', "--tz",
        "Europe/Berlin", "--queue", "low",
    )  # fmt: skip
    (template,) = qml("recurring", "list", "--json").lines
    removed = qml("recurring", "remove", "digest")

    assert added.code == removed.code == 0
    assert added.out.startswith("digest fires at 09:00 on Monday to Friday (Europe/Berlin), next at ")
    assert "09:00:00 CE" in added.out
    assert (template["tz"], template["queue"], template["payload"]) == ("Europe/Berlin", "low", {"path": "a"})
    assert qml("recurring", "list", "--json").lines == []


def test_the_payload_of_a_template_is_given_as_that_of_a_job_is(qml: Qml) -> None:
    added = qml("recurring", "add", "r", "@daily", "resize", "path=a.png", "width=640", "-A", "tasks:app")
    twice = qml("recurring", "add", "r", "@daily", "resize", "path=b.png", "--payload", "{}")
    wrong = qml("recurring", "add", "r", "@daily", "resize", "width=640", "-A", "tasks:app")

    (template,) = qml("recurring", "list", "--json").lines
    assert (added.code, template["payload"]) == (0, {"path": "a.png", "width": 640})
    assert (twice.code, wrong.code) == (2, 2)
    assert "either as --payload or as key=value" in twice.err
    assert "missing a required argument: 'path'" in wrong.err


def test_an_expression_that_was_not_quoted_gets_the_hint_to_quote_it(qml: Qml) -> None:
    """The shell has put files in place of the stars."""
    refused = qml("recurring", "add", "digest", "0", "9", "tasks.py", "tasks.py", "MON-FRI", "resize")

    assert refused.code == 2
    assert is_one_error(refused.err)
    assert 'Quote an expression of several fields: "0 9 * * MON-FRI".' in refused.err


def test_the_policies_of_a_template_are_shown(qml: Qml) -> None:
    qml(
        "recurring", "add", "digest", "@daily", "resize", "--misfire", "catch_up(3)", "--overlap", "queue",
        "--jitter", "90s", "--priority", "9",
    )  # fmt: skip

    shown = qml("recurring", "show", "digest", "--json").value
    page = qml("recurring", "show", "digest").out

    assert (shown["misfire"], shown["overlap"], shown["jitter_s"]) == ("catch_up(3)", "queue", 90)
    assert (shown["source"], shown["app"], shown["last_job_state"]) == ("person", None, None)
    assert shown["words"] == "at 00:00 every day (UTC)"
    assert "fires     @daily: at 00:00 every day (UTC)\n" in page
    assert "queue     default, priority 9\n" in page
    assert "misfire   catch_up(3)\noverlap   queue\njitter    1m30s\nsource    person\n" in page


@pytest.mark.parametrize(
    ("flag", "value"), [("--misfire", "never"), ("--overlap", "forbid"), ("--jitter", "2d")]
)
def test_a_policy_that_cannot_be_exits_2_and_stores_nothing(qml: Qml, flag: str, value: str) -> None:
    refused = qml("recurring", "add", "digest", "@daily", "resize", flag, value)

    assert refused.code == 2
    assert value in refused.err


def test_the_list_fits_in_80_columns_with_source_next_firing_and_newest_job(
    qml: Qml, storage: Storage
) -> None:
    long = RecurringJob.new("digest-of-the-week", "0 0 0 1-31/2 JAN-MAR,APR MON#1 2027", "resize")
    storage.follow_code("shop", [long])
    qml("recurring", "add", "r", "0 9 * * *", "resize")
    job_id = qml("recurring", "run", "r").out.strip()
    qml("jobs", "cancel", job_id)

    lines = qml("recurring", "list").out.splitlines()

    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["ID", "CRON", "SOURCE", "NEXT", "LAST", "JOB"]
    assert lines[1].split()[0] == "digest-of-the-week"
    assert " code " in lines[1]
    assert " person " in lines[2]
    assert lines[2].endswith("  deleted")


def test_a_template_that_is_switched_off_and_added_again_is_said_to_be_off(qml: Qml) -> None:
    qml("recurring", "add", "digest", "0 9 * * *", "resize")
    qml("recurring", "disable", "digest")

    added = qml("recurring", "add", "digest", "0 10 * * *", "resize")
    enabled = qml("recurring", "enable", "digest")
    again = qml("recurring", "add", "digest", "0 10 * * *", "resize")

    assert added.out == "digest is disabled; `qml-mp recurring enable digest` switches it on\n"
    assert enabled.code == 0
    assert again.out.startswith("digest fires at 10:00 every day (UTC), next at ")


def test_what_code_declares_is_not_replaced_and_comes_back_when_it_is_removed(
    qml: Qml, storage: Storage
) -> None:
    storage.follow_code("shop", [RecurringJob.new("digest", "0 9 * * *", "resize")])

    added = qml("recurring", "add", "digest", "0 10 * * *", "resize")
    removed = qml("recurring", "remove", "digest")

    assert added.code == 2
    assert "declared by the code of the app shop" in added.err
    assert removed.code == 0
    assert "the code of shop adds it again at the next start" in removed.err


def test_with_an_app_a_template_uses_the_methods_own_queue_and_priority(qml: Qml) -> None:
    sooner = TASKS.replace('@app.job(queue="images")', '@app.job(queue="images", priority=9)')
    (qml.folder / "tasks.py").write_text(sooner)
    qml(
        "-A",
        "tasks:app",
        "recurring",
        "add",
        "r",
        "0 0 * * *",
        "resize",
        "--payload",
        '{"path": "a"}',
    )

    (template,) = qml("recurring", "list", "--json").lines
    assert (template["queue"], template["priority"]) == ("images", 9)


def test_running_a_template_by_hand_enqueues_one_job(qml: Qml) -> None:
    qml("recurring", "add", "r", "0 9 * * *", "resize", "--payload", '{"path": "a"}')
    before = qml("recurring", "list", "--json").lines[0]["next_run_at"]

    job_id = qml("recurring", "run", "r").out.strip()

    assert qml("jobs", "show", job_id, "--json").value["payload"] == {"path": "a"}
    assert qml("recurring", "list", "--json").lines[0]["next_run_at"] == before


def test_a_template_is_switched_off_and_on(qml: Qml) -> None:
    qml("recurring", "add", "r", "0 9 * * *", "resize")

    qml("recurring", "disable", "r")
    off = qml("recurring", "list", "--json").lines[0]
    qml("recurring", "enable", "r")
    on = qml("recurring", "list", "--json").lines[0]

    assert (off["enabled"], on["enabled"]) == (False, True)
    assert on["next_run_at"] is not None


def test_a_cron_expression_is_previewed_without_a_storage(qml: Qml) -> None:
    before = qml.files()

    firings = qml("recurring", "preview", "*/10 * * * * *", "-n", "4", "--json").lines
    text = qml("recurring", "preview", "0 9 * * *", "--tz", "Europe/Berlin").out

    instants = [datetime.fromisoformat(firing["at"]) for firing in firings]
    assert [(after - first).total_seconds() for first, after in pairwise(instants)] == [10, 10, 10]
    assert text.startswith("at 09:00 every day (Europe/Berlin)\n")
    assert text.count(" 09:00:00 CE") == 5
    assert qml("recurring", "preview", "@weekly").out.startswith("at 00:00 on Sunday (UTC)\n")
    assert qml.files() == before


def test_a_template_is_previewed_in_its_own_zone(qml: Qml) -> None:
    qml("recurring", "add", "r", "30 6 * * *", "resize", "--tz", "America/New_York")

    (firing,) = qml("recurring", "preview", "r", "-n", "1", "--json").lines

    assert "T06:30:00-0" in firing["local"]
    assert firing["at"].endswith("+00:00")


def test_a_template_in_a_zone_that_is_not_known_here_is_shown_in_utc(qml: Qml, storage: Storage) -> None:
    template = RecurringJob.new("digest", "0 9 * * *", "resize")
    storage.upsert_recurring_job(
        replace(template, tz="Mars/Olympus", next_run_at=datetime(2040, 1, 2, tzinfo=UTC))
    )

    shown, listed = qml("recurring", "show", "digest"), qml("recurring", "list")
    previewed = qml("recurring", "preview", "digest")

    assert (shown.code, listed.code, shown.err) == (0, 0, "")
    assert "fires     0 9 * * * in the zone Mars/Olympus; it cannot be read here\n" in shown.out
    assert "next      2040-01-02 00:00:00 UTC (the zone Mars/Olympus is not known here)\n" in shown.out
    assert previewed.code == 2
    assert "The zone 'Mars/Olympus' is not known here" in previewed.err


@pytest.mark.parametrize("command", ["show", "run", "disable"])
def test_a_template_that_is_not_there_exits_1(qml: Qml, command: str) -> None:
    qml("recurring", "add", "r", "0 9 * * *", "resize")

    ended = qml("recurring", command, "other")

    assert ended.code == 1
    assert "'other'" in ended.err
    assert is_one_error(ended.err)
