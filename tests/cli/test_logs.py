"""`qml-mp start`: what it logs, and how."""

from __future__ import annotations

import json

import pytest

from tests.cli.command import Qml

_APP = """
import logging

from qml_mp import QmlApp, RetryPolicy

app = QmlApp()
log = logging.getLogger("pictures")


@app.job(retry=RetryPolicy.none())
def thumb(n: int) -> None:
    log.debug("a detail")
    log.info("makes %s", n)
    if n == 2:
        raise ValueError("no such picture")
"""


def logged(qml: Qml, *flags: str, app: str = _APP) -> tuple[list[str], list[str]]:
    """Ids of two jobs, of which the second fails, and the lines that their server wrote to stderr."""
    (qml.folder / "tasks.py").write_text(app)
    ids = [qml("-A", "tasks:app", "enqueue", "thumb", f"n={n}").out.strip() for n in (1, 2)]
    ended = qml("-A", "tasks:app", "start", "-w", "1", "--burst", *flags)
    assert ended.code == 0, ended.err
    assert ended.out == ""
    return ids, ended.err.splitlines()


@pytest.mark.parametrize("flags", [(), ("--preload",)], ids=["", "--preload"])
def test_an_app_that_disables_all_loggers_that_are_there_does_not_silence_failures(
    qml: Qml, flags: tuple[str, ...]
) -> None:
    configured = _APP + '\nimport logging.config\nlogging.config.dictConfig({"version": 1})\n'

    (_, two), lines = logged(qml, *flags, app=configured)

    assert [line for line in lines if f"job {two} (thumb): failed for good" in line], lines


def test_what_a_job_logs_is_shown_with_its_job_and_its_failure_with_its_own_frames(qml: Qml) -> None:
    (one, two), lines = logged(qml)

    assert f"qml-mp: job {one} (thumb): pictures: makes 1" in lines
    at = lines.index(
        f"qml-mp: ERROR job {two} (thumb): failed for good at attempt 1 of 1: ValueError: no such picture"
    )
    assert lines[at + 1 : at + 5 : 3] == [
        "  | Traceback (most recent call last):",
        "  | ValueError: no such picture",
    ]
    assert "tasks.py" in lines[at + 2]
    assert not [line for line in lines if "a detail" in line]


def test_as_json_every_line_is_an_object_and_those_of_a_job_name_it(qml: Qml) -> None:
    (one, two), lines = logged(qml, "--log-format", "json")

    records = [json.loads(line) for line in lines]
    of_jobs = [each for each in records if each["logger"] == "pictures"]
    assert [(each["job_id"], each["method"], each["attempt"]) for each in of_jobs] == [
        (one, "thumb", 1),
        (two, "thumb", 1),
    ]
    (failure,) = [each for each in records if each["level"] == "ERROR"]
    assert (failure["job_id"], failure["attempt"]) == (two, 1)
    assert failure["message"].endswith("failed for good at attempt 1 of 1: ValueError: no such picture")
    assert failure["traceback"].splitlines()[0] == "Traceback (most recent call last):"
    assert failure["traceback"].splitlines()[-1] == "ValueError: no such picture"


def test_the_level_bounds_what_is_logged(qml: Qml) -> None:
    _, only_failures = logged(qml, "--log-level", "error")
    _, all_of_it = logged(qml, "--log-level", "DEBUG")

    assert [line for line in only_failures if not line.startswith("  | ")] == only_failures[:1]
    assert "failed for good" in only_failures[0]
    assert len([line for line in all_of_it if "pictures: a detail" in line]) == 2
    assert qml("-A", "tasks:app", "start", "--log-level", "loud").code == 2
