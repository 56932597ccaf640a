"""`recurring`: templates added, previewed, switched and run by hand."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise

import pytest

from tests.cli.command import Qml, is_one_error


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
    assert list(template) == [
        "id", "cron", "tz", "method", "payload", "queue", "misfire", "overlap", "jitter_s", "source", "app",
        "enabled", "next_run_at", "waiting_for", "last_run_at", "last_job_id", "last_job_state",
        "disabled_reason", "method_known",
    ]  # fmt: skip
    assert (template["tz"], template["queue"], template["payload"]) == ("Europe/Berlin", "low", {"path": "a"})
    assert qml("recurring", "list", "--json").lines == []


def test_with_an_app_a_template_uses_the_methods_own_queue(qml: Qml) -> None:
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

    assert qml("recurring", "list", "--json").lines[0]["queue"] == "images"


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


@pytest.mark.parametrize("command", ["remove", "run", "preview", "enable", "disable"])
def test_a_template_that_is_not_there_exits_1(qml: Qml, command: str) -> None:
    qml("recurring", "add", "r", "0 9 * * *", "resize")

    ended = qml("recurring", command, "other")

    assert ended.code == 1
    assert "'other'" in ended.err
    assert is_one_error(ended.err)
