"""The table of jobs: what it tells of each state, in whatever width."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qml_mp.cli.fitting import fitted
from qml_mp.cli.job_table import table_of
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

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ERROR = ErrorInfo(type="ValueError", message="no such\npicture", traceback=None)
REFUSED = ErrorInfo(type="ConnectionRefusedError", message="by mail.example.com", traceback=None)
WAITS = AwaitingRetry(scheduled_at=NOW, retry_at=NOW, retry_count=1, last_exception=REFUSED)
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


@pytest.mark.parametrize(("width", "left"), [(200, 7), (115, 6), (105, 5), (90, 4), (80, 4)])
def test_a_narrow_terminal_has_fewer_columns(width: int, left: int) -> None:
    headers, _ = table_of([job_in(state) for state, _ in STATES], width=width, now=NOW)

    assert len(headers) == left
    assert {"ID", "STATE", "METHOD", "DETAILS"} <= set(headers)


@pytest.mark.parametrize(
    "state",
    [
        Failed(failed_at=NOW, exception=REFUSED, retry_count=1),
        WAITS,
    ],
    ids=["failed", "awaiting_retry"],
)
@pytest.mark.parametrize("method", ["f", "generate_monthly_report"])
def test_at_80_columns_the_error_can_still_be_told(state: JobState, method: str) -> None:
    _, [row] = table_of([job_in(state, method=method)], width=80, now=NOW)

    assert row[2].startswith(method[:10])
    assert row[-1].startswith("ConnectionR")


@pytest.mark.parametrize(
    ("beside", "width", "told"),
    [
        ([], 80, "due %m-%d %H:%M"),
        ([WAITS], 80, "%m-%d %H:%M"),
        ([], 115, "due %m-%d %H:%M"),
        ([], 250, 'due %Y-%m-%d %H:%M:%S {"n": 1}'),
    ],
    ids=["alone", "beside a longer state", "beside more columns", "with room for all"],
)
def test_in_whatever_width_the_time_of_day_at_which_a_job_is_due_can_be_told(
    beside: list[JobState], width: int, told: str
) -> None:
    due_at = datetime(2026, 12, 2, 1, 0, 19, tzinfo=UTC)
    states = [Scheduled(scheduled_at=due_at - timedelta(days=300), enqueue_at=due_at), *beside]

    jobs = [job_in(state, method="generate_monthly_report") for state in states]
    _, rows = table_of(jobs, width=width, now=due_at - timedelta(hours=5))

    assert rows[0][-1] == due_at.astimezone().strftime(told)


@pytest.mark.parametrize(
    "due_at",
    [
        datetime(2028, 3, 1, 12, tzinfo=UTC),
        datetime(2027, 2, 27, tzinfo=UTC),
        datetime(2025, 4, 1, tzinfo=UTC),
    ],
)
def test_of_a_job_that_is_due_in_another_year_the_year_is_told_before_the_time_of_day(
    due_at: datetime,
) -> None:
    """Or was: without it what is due just short of a year from now looked overdue by days."""

    _, [row] = table_of(
        [job_in(Scheduled(scheduled_at=NOW, enqueue_at=due_at), method="f" * 20)], width=80, now=NOW
    )

    assert row[-1] == due_at.astimezone().strftime("due %Y-%m-%d")


def test_the_last_column_is_cut_below_its_least_only_when_all_others_are_at_theirs() -> None:
    columns = {"A": ["a" * 30], "B": ["b" * 30], "C": ["c" * 30]}

    cut = {
        width: [len(cell) for cell in fitted(columns, width=width, shrink={"C": 16, "B": 12})[1][0]]
        for width in (80, 64, 62, 50)
    }

    assert cut == {80: [30, 30, 16], 64: [30, 14, 16], 62: [30, 12, 16], 50: [30, 12, 4]}


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
