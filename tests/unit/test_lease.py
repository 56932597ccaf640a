"""Tests: when a server may judge its peers by their silence."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from qml_mp.supervisor.recovery.judging import Lease

START = datetime(2026, 3, 1, tzinfo=UTC)


def lease_after(*beats_s: float) -> Lease:
    """A lease with heartbeats every 10 s and a timeout of 60 s, renewed at these instants."""
    lease = Lease(interval=timedelta(seconds=10), timeout=timedelta(seconds=60))
    for beat_s in beats_s:
        lease.renew(START + timedelta(seconds=beat_s))
    return lease


@pytest.mark.parametrize(
    ("beats_s", "expected"),
    [
        pytest.param((), False, id="never heard"),
        pytest.param((0,), False, id="just begun"),
        pytest.param((0, 20, 40, 59), False, id="not yet for the whole timeout"),
        pytest.param((0, 20, 40, 60), True, id="for the whole timeout"),
        pytest.param((0, 35, 70), True, id="with the longest gaps that are none"),
        pytest.param((0, 20, 40, 60, 96), False, id="a gap begins it anew"),
        pytest.param((0, 20, 40, 60, 96, 116, 136, 156), True, id="old again after a gap"),
        pytest.param((0, 20, 40, 60, 59), False, id="a clock that went back begins it anew"),
        pytest.param((0, 20, 40, 60, 3660), False, id="a clock that jumped ahead begins it anew"),
    ],
)
@pytest.mark.fault(8)
def test_a_lease_is_old_enough(beats_s: tuple[float, ...], expected: bool) -> None:
    assert lease_after(*beats_s).is_old_enough is expected


@pytest.mark.fault(8)
def test_heartbeats_as_rare_as_may_be_set_make_a_lease_too() -> None:
    lease = Lease(interval=timedelta(seconds=30), timeout=timedelta(seconds=60))
    for beat in range(4):
        lease.renew(START + beat * timedelta(seconds=32))

    assert lease.is_old_enough


def test_a_lease_tells_how_much_longer_it_has_to_last() -> None:
    seconds = [lease_after(*beats_s).remaining.total_seconds() for beats_s in ((), (0, 20), (0, 35, 70))]

    assert seconds == [60, 40, 0]
