"""Tests: the transition table, against the reference's own words."""

from __future__ import annotations

from typing import get_args

import pytest

from qml_mp.core.state import FINAL_STATES, TRANSITIONS, JobState, StateName

S = StateName
REFERENCE = {
    S.ENQUEUED: {S.PROCESSING, S.DELETED, S.SCHEDULED, S.FAILED},
    S.SCHEDULED: {S.ENQUEUED, S.DELETED},
    S.PROCESSING: {S.SUCCEEDED, S.FAILED, S.AWAITING_RETRY, S.DELETED, S.ENQUEUED},
    S.AWAITING_RETRY: {S.ENQUEUED, S.DELETED},
    S.FAILED: {S.ENQUEUED, S.AWAITING_RETRY, S.DELETED},
    S.SUCCEEDED: {S.DELETED},
    S.DELETED: set[StateName](),
}


@pytest.mark.parametrize("old", list(StateName))
def test_a_state_leads_where_the_reference_says_and_nowhere_else(old: StateName) -> None:
    assert TRANSITIONS[old] == REFERENCE[old]


def test_every_state_has_a_row_and_a_class() -> None:
    assert set(TRANSITIONS) == set(StateName)
    assert {kind.name for kind in get_args(JobState)} == set(StateName)


def test_three_states_are_final() -> None:
    assert (
        {state for state in StateName if state.is_final} == FINAL_STATES == {S.SUCCEEDED, S.FAILED, S.DELETED}
    )
