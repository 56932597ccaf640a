"""Tests: tables with text of any script, as a terminal shows them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qml_mp.cli.fitting import fitted
from qml_mp.cli.job_table import table_of
from qml_mp.cli.output import print_table
from qml_mp.cli.text_width import width_of
from qml_mp.core.job import Job
from qml_mp.core.outcome import ErrorInfo
from qml_mp.core.state import (
    AwaitingRetry,
    Deleted,
    Failed,
    JobState,
    Processing,
    Scheduled,
    Succeeded,
)

METHODS = ["thumb", "画像を縮小する", "이미지", "send 🚀", "cafe\u0301", "한국"]


def test_columns_stand_under_their_headers_whatever_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("METHOD", "QUEUE"), [(method, "default") for method in METHODS])

    screen = pyte.Screen(40, len(METHODS) + 2)
    pyte.Stream(screen).feed(capsys.readouterr().out.replace("\n", "\r\n"))
    second = len("画像を縮小する") * 2 + 2
    rows = [screen.buffer[row] for row in range(len(METHODS) + 1)]
    assert [row[second].data for row in rows] == ["Q", *"d" * len(METHODS)]
    assert {row[second - 1].data for row in rows} == {" "}


@given(method=st.sampled_from(METHODS), width=st.integers(12, 40))
def test_a_row_that_is_fitted_stays_on_its_line(method: str, width: int) -> None:
    columns = {"METHOD": [method * 5], "ARGUMENTS": [method * 9]}

    _, rows = fitted(columns, width=width, shrink={"METHOD": 6})

    screen = pyte.Screen(width, 2)
    pyte.Stream(screen).feed(f"{rows[0][0]}  {rows[0][1]}")
    assert screen.cursor.y == 0


NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ERROR = ErrorInfo(type="ValueError", message="no such\npicture", traceback=None)
STATES: list[tuple[JobState | None, str]] = [
    (None, '{"n": 1}'),
    (Scheduled(scheduled_at=NOW, enqueue_at=NOW), "due 2026-"),
    (
        Processing(started_at=NOW, worker_id="blue#9f:worker:3.17", server_name="blue#9f"),
        "worker 3 of blue since",
    ),
    (AwaitingRetry(scheduled_at=NOW, retry_at=NOW, retry_count=1, last_exception=ERROR), ", retry 2026-"),
    (Succeeded(succeeded_at=NOW, duration=timedelta(seconds=1.5), result=None), "took 1.5s"),
    (
        Succeeded(succeeded_at=NOW, duration=timedelta(seconds=1), result=None, not_stored="x"),
        "(result not stored)",
    ),
    (Failed(failed_at=NOW, exception=ERROR, retry_count=1), "ValueError: no such\\npicture"),
    (Failed(failed_at=NOW, exception=None, retry_count=1), "no error is known"),
    (Deleted(deleted_at=NOW, reason="not needed"), "not needed"),
    (Deleted(deleted_at=NOW, reason=None), '{"n": 1}'),
]


def job_in(state: JobState | None, **options: str) -> Job:
    job = Job.new(options.get("method", "thumb"), {"n": 1}, queue=options.get("queue", "default"))
    return job if state is None else replace(job, state=state)


@pytest.mark.parametrize(("state", "expected"), STATES)
def test_the_last_column_has_what_one_looks_for_in_that_state(state: JobState | None, expected: str) -> None:
    headers, [row] = table_of([job_in(state)], width=None, now=NOW)

    assert headers == ["ID", "STATE", "METHOD", "QUEUE", "PRIO", "CREATED", "DETAILS"]
    assert expected in row[-1]


@given(
    width=st.integers(78, 300),
    names=st.lists(st.tuples(st.text(min_size=1, max_size=60), st.text(min_size=1, max_size=60)), max_size=4),
)
def test_no_line_is_wider_than_the_terminal_and_every_id_is_whole(
    width: int, names: list[tuple[str, str]]
) -> None:
    jobs = [
        replace(job_in(state), method=method, queue=queue) for method, queue in names for state, _ in STATES
    ]

    headers, rows = table_of(jobs, width=width, now=NOW)

    widths = [max(map(width_of, column)) for column in zip(headers, *rows, strict=True)]
    assert sum(widths) + 2 * (len(widths) - 1) <= width
    assert [row[0] for row in rows] == [job.id for job in jobs]
