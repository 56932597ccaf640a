"""Tests: when each rung of the ladder is due."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qml_mp.supervisor.workers.ladder import Graces, Rung

durations = st.floats(min_value=0, max_value=1e6).map(lambda seconds: timedelta(seconds=seconds))


def graces(*, shutdown_timeout: timedelta, term_grace: timedelta = timedelta(seconds=5)) -> Graces:
    return Graces(cancel_grace=timedelta(seconds=2), term_grace=term_grace, shutdown_timeout=shutdown_timeout)


@pytest.mark.fault(92)
@pytest.mark.parametrize(
    ("promised_s", "interrupted_after_s"),
    [(0, 0), (1, 0.75), (3, 2.25), (4, 3), (5, 3.75), (6, 4.5), (20, 15), (30, 25), (600, 595)],
)
def test_a_stop_interrupts_in_the_last_part_of_the_time_that_was_promised(
    promised_s: float, interrupted_after_s: float
) -> None:
    plan = graces(shutdown_timeout=timedelta(seconds=promised_s)).shutdown(stopped=100.0)

    assert plan.ask_at == 100.0
    assert plan.interrupt_at == pytest.approx(100.0 + interrupted_after_s)
    assert plan.kill_at == pytest.approx(100.0 + promised_s)


@pytest.mark.fault(92)
@given(promised=durations, term_grace=durations, share=st.floats(min_value=0, max_value=0.74))
def test_a_job_that_uses_less_than_three_quarters_of_the_promised_time_is_only_asked(
    promised: timedelta, term_grace: timedelta, share: float
) -> None:
    plan = graces(shutdown_timeout=promised, term_grace=term_grace).shutdown(stopped=0.0)

    assert plan.ask_at <= plan.interrupt_at <= plan.dump_stack_at <= plan.kill_at
    if promised:
        assert plan.rung(share * promised.total_seconds()) is Rung.ASK
