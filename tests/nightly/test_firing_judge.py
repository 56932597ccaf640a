"""Tests: the judge of firings finds each kind of mistake, and nothing in a good run."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from qml_mp.core.recurring import RecurringJob
from tests.nightly.firing_judge import Made, Moment, judge_firings

BEGIN = datetime(2025, 3, 29, 22, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
MOMENTS = [Moment(wall=BEGIN, is_watched=False)] + [
    Moment(wall=BEGIN + 10 * n * MINUTE, is_watched=True) for n in range(1, 4)
]
"""Firings at ten past, twenty past and half past ten, each looked at when it was due."""


def template(**options: Any) -> RecurringJob:
    return RecurringJob.new("t", "*/10 * * * *", "work", now=BEGIN, **options)


def job(minutes: int, *, late: int = 0, lasts: int = 1) -> Made:
    fire_at = BEGIN + minutes * MINUTE
    return Made(
        fire_at=fire_at,
        created_at=fire_at + late * MINUTE,
        finished_at=fire_at + (late + lasts) * MINUTE,
    )


GOOD = [job(10), job(20), job(30)]


@pytest.mark.parametrize("misfire", ["fire_once", "skip", "catch_up(9)"])
@pytest.mark.parametrize("overlap", ["allow", "skip", "queue"])
def test_one_job_for_each_firing_is_right_by_every_policy(misfire: str, overlap: str) -> None:
    assert judge_firings(template(misfire=misfire, overlap=overlap), GOOD, MOMENTS) == []


@pytest.mark.parametrize(
    ("options", "made", "problem"),
    [
        ({"misfire": "catch_up(9)"}, [job(10), job(30)], "missed"),
        ({"misfire": "catch_up(9)"}, [job(10), job(10), job(20), job(30)], "fired 2 times"),
        ({}, [job(10), job(15), job(20), job(30)], "no firing time"),
        ({}, [job(10), job(30)], "missed"),
        ({}, [job(10, late=10), job(20), job(30)], "more than once"),
        ({"misfire": "skip"}, [job(10), job(20, late=2), job(30)], "fired for"),
        ({"overlap": "skip"}, [job(10, lasts=15), job(20), job(30)], "had ended"),
        ({"overlap": "skip"}, [job(10), job(30)], "skipped"),
        ({"overlap": "skip"}, [job(20), job(30)], "began with"),
        ({"overlap": "queue"}, [job(10), job(30)], "came"),
        ({"overlap": "queue"}, [job(10), job(20)], "at the end"),
    ],
)
def test_what_is_wrong_is_found(options: dict[str, str], made: list[Made], problem: str) -> None:
    assert any(problem in found for found in judge_firings(template(**options), made, MOMENTS))


@pytest.mark.parametrize(
    ("options", "made"),
    [
        ({}, [job(10, late=10), job(30)]),
        ({"overlap": "skip"}, [job(10, lasts=11), job(30)]),
        ({"overlap": "queue"}, [job(10, lasts=11), job(20, late=10)]),
    ],
)
def test_what_a_policy_allows_is_no_problem(options: dict[str, str], made: list[Made]) -> None:
    assert judge_firings(template(**options), made, MOMENTS) == []


AGAIN = [*MOMENTS, *(Moment(wall=BEGIN + n * MINUTE, is_watched=True) for n in (15, 20, 30))]
"""The clock is set back, and comes to two of the firings once more."""


@pytest.mark.parametrize(("cron", "wrong"), [("*/10 * * * *", 0), ("*/10 22 * * *", 2)])
def test_only_what_fires_in_each_hour_may_fire_again_for_a_time_that_came_twice(
    cron: str, wrong: int
) -> None:
    found = judge_firings(replace(template(), cron=cron), [*GOOD, job(20), job(30)], AGAIN)

    assert ["fired 2 times" in each for each in found] == [True] * wrong
