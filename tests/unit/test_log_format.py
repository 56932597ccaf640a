"""Tests: the lines of the log, and what a record that is made inside a job says of it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from threading import Thread
from typing import IO, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qml_mp.core.job import Job
from qml_mp.embedding.log import StderrHandler
from qml_mp.embedding.log_format import JsonFormatter, TextFormatter
from qml_mp.processing.job_records import JobRecords, note_running
from tests.unit.processor_case import claim_of, run

JOB = Job.new("resize")


def record(text: str, *values: object, name: str = "tasks", **fields: object) -> logging.LogRecord:
    made = logging.LogRecord(name, logging.INFO, "path", 1, text, values, None)
    vars(made).update(fields)
    return made


@pytest.mark.fault(86)
@given(text=st.text(), name=st.text(min_size=1))
def test_every_record_is_one_line_of_json_that_says_what_it_said(text: str, name: str) -> None:
    line = JsonFormatter().format(record("%s", text, name=name))

    assert line.isprintable()
    assert (json.loads(line)["message"], json.loads(line)["logger"]) == (text, name)


def test_json_has_what_is_known_of_the_job_the_traceback_and_the_stack() -> None:
    try:
        raise ValueError("no")
    except ValueError:
        made = record("it failed", job_id="j-1", attempt=2, claim_seq=7, worker_id=None, payload="secret")
        made.exc_info = sys.exc_info()
        made.stack_info = "Stack (most recent call last):\n  here"

    line = json.loads(JsonFormatter().format(made))

    trace = line.pop("traceback")
    assert line.pop("stack") == "Stack (most recent call last):\n  here"
    when = datetime.fromisoformat(line.pop("time"))
    assert trace.endswith("ValueError: no")
    assert abs(when.timestamp() - made.created) < 0.001
    assert when.tzinfo == UTC
    assert line == {
        "level": "INFO", "logger": "tasks", "pid": made.process, "message": "it failed", "job_id": "j-1",
        "attempt": 2, "claim_seq": 7,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), "nan"), (float("-inf"), "-inf"), ([float("nan")], "[nan]"),
        ({(1, 2): 3}, "{(1, 2): 3}"), (0.25, 0.25),
    ],
)  # fmt: skip
def test_what_json_has_not_is_its_text(value: object, expected: object) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    line = JsonFormatter().format(record("said", duration_s=value, attempt=2))

    read = json.loads(line, parse_constant=refuse)
    assert (read["duration_s"], read["attempt"], read["message"]) == (expected, 2, "said")


@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        ("qml_mp.events.log", {"job_id": "j", "method": "m"}, "qml-mp: said"),
        ("tasks", {"job_id": "j", "method": "m"}, "qml-mp: job j (m): tasks: said"),
        ("root", {"job_id": "j", "method": "m"}, "qml-mp: job j (m): said"),
        ("tasks", {}, "qml-mp: tasks: said"),
        ("qml_mpx", {}, "qml-mp: qml_mpx: said"),
    ],
)
def test_text_says_whose_a_record_is_unless_it_is_ours(
    name: str, fields: dict[str, Any], expected: str
) -> None:
    assert TextFormatter(detailed=False).format(record("said", name=name, **fields)) == expected


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (logging.INFO, "qml-mp: said"),
        (logging.WARNING, "qml-mp: WARNING said"),
        (logging.ERROR, "qml-mp: ERROR said"),
    ],
)
def test_a_line_of_text_begins_with_its_level_when_something_is_wrong(level: int, expected: str) -> None:
    made = record("said", name="qml_mp.events.log")
    made.levelno, made.levelname = level, logging.getLevelName(level)

    assert TextFormatter(detailed=False).format(made) == expected
    assert TextFormatter(detailed=True).format(made).endswith(": said")


def filtered(**fields: Any) -> dict[str, object]:
    """What the filter adds to a record that is made now."""
    made = record("said", **fields)
    assert JobRecords().filter(made)
    return {name: vars(made)[name] for name in ("job_id", "method", "attempt") if name in vars(made)}


def test_a_record_inside_a_job_carries_it_and_one_outside_none() -> None:
    claim = claim_of(failures=1, crashes=1)
    seen: list[dict[str, object]] = []

    run(lambda: seen.append(filtered()), claim)

    assert seen == [{"job_id": claim.job.id, "method": "f", "attempt": 3}]
    assert filtered() == {}


def test_a_record_that_names_its_job_keeps_it_and_tasks_have_the_jobs_that_threads_of_their_own_lack() -> (
    None
):
    async def in_a_task() -> dict[str, object]:
        return await asyncio.create_task(asyncio.to_thread(filtered))

    note_running(JOB)
    in_a_thread: list[dict[str, object]] = []
    try:
        named, in_task = filtered(job_id="another"), asyncio.run(in_a_task())
        thread = Thread(target=lambda: in_a_thread.append(filtered()))
        thread.start()
        thread.join()
    finally:
        note_running(None)

    assert named == {"job_id": "another"}
    assert in_task == {"job_id": JOB.id, "method": "resize", "attempt": 1}
    assert in_a_thread == [{}]


@pytest.mark.fault(86)
@given(texts=st.lists(st.text(), min_size=1, max_size=5))
def test_each_record_has_one_line_at_the_margin_and_no_raw_control_character(texts: list[str]) -> None:
    lines = logged(texts)

    assert sum(line.startswith("qml-mp: ") for line in lines) == len(texts)
    assert all(line.startswith(("qml-mp: ", "  | ")) for line in lines)
    assert all(line.isprintable() for line in lines)


def test_what_is_printable_and_the_shape_of_a_traceback_stay_as_they_are() -> None:
    text = 'Grüße 🎉 "quoted" \\ it failed:\nTraceback:\n  File "x.py"\n\tindented by a tab\n'

    assert logged([text]) == [
        'qml-mp: Grüße 🎉 "quoted" \\ it failed:',
        "  | Traceback:",
        '  |   File "x.py"',
        "  |     indented by a tab",
    ]


def test_lines_that_a_full_file_does_not_take_whole_are_counted_and_it_is_said_why() -> None:
    handler = StderrHandler()
    handler.setFormatter(logging.Formatter("qml-mp: %(message)s"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    with standard_error() as file:
        try:
            for size in (0, 5):
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
                handler.emit(record("lost"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        handler.emit(record("kept"))

        file.seek(0)
        assert file.read().decode() == (
            "qml-m\n"  # all that there was room for
            "qml-mp: (2 lines were dropped here, because they could not be written (File too large))\n"
            "qml-mp: kept\n"
        )


def logged(texts: list[str]) -> list[str]:
    """What the handler writes to descriptor 2 for one record per text; its lines."""
    handler = StderrHandler()
    handler.setFormatter(logging.Formatter("qml-mp: %(message)s"))
    with standard_error() as file:
        for text in texts:
            handler.emit(record(text))
        file.seek(0)
        return file.read().decode().removesuffix("\n").split("\n")


@contextmanager
def standard_error() -> Iterator[IO[bytes]]:
    """A file that is descriptor 2 within the block."""
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield file
        finally:
            os.dup2(kept, 2)
            os.close(kept)
