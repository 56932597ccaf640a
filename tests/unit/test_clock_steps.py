"""Tests: when the wall clock counts as set."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from qml_mp.supervisor.loops.clock import ClockSteps

START = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.mark.fault(88)
@pytest.mark.parametrize(
    ("looks", "expected"),
    [
        pytest.param([(0, 0), (1, 1), (2, 2)], [True, False, False], id="it runs"),
        pytest.param([(0, 0), (-3600, 1), (-3599, 2)], [True, True, False], id="an hour back"),
        pytest.param([(0, 0), (172800, 1), (2, 2)], [True, False, True], id="two days ahead, and back"),
        pytest.param([(0, 0), (0.9, 1), (1.8, 2)], [True, False, False], id="slewed"),
        pytest.param([(0, 0), (3600, 1)], [True, False], id="suspended"),
    ],
)
def test_a_clock_was_set_back(looks: list[tuple[float, float]], expected: list[bool]) -> None:
    steps = ClockSteps()

    found = []
    for wall_s, monotonic in looks:
        steps.look(wall=START + timedelta(seconds=wall_s), monotonic=monotonic)
        found.append(steps.went_back)
        steps.forget()

    assert found == expected


def test_a_step_is_remembered_until_it_is_forgotten() -> None:
    steps = ClockSteps()
    steps.forget()
    for wall_s, monotonic in ((0, 0), (-3600, 1), (-3599, 2), (-3598, 3)):
        steps.look(wall=START + timedelta(seconds=wall_s), monotonic=monotonic)

    assert steps.went_back


@pytest.mark.parametrize(
    ("looks", "expected"),
    [
        pytest.param([(0, 0), (1, 1), (2, 2)], [False, False, False], id="it runs"),
        pytest.param([(0, 0), (3600, 1), (3601, 2)], [False, True, False], id="an hour ahead"),
        pytest.param([(0, 0), (-3600, 1), (2, 2)], [False, False, True], id="back, and ahead again"),
        pytest.param([(0, 0), (1.1, 1), (2.2, 2)], [False, False, False], id="slewed"),
    ],
)
def test_a_clock_was_set_ahead(looks: list[tuple[float, float]], expected: list[bool]) -> None:
    steps = ClockSteps()

    found = []
    for wall_s, monotonic in looks:
        steps.look(wall=START + timedelta(seconds=wall_s), monotonic=monotonic)
        found.append(steps.went_ahead)

    assert found == expected
