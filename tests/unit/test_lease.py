"""Tests: when a server may judge its peers by their silence."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from qml_mp.supervisor.recovery.judging import Lease, Reading

START = datetime(2026, 3, 1, tzinfo=UTC)


def read_at(wall_s: float, monotonic: float | None = None, *, reply_s: float = 0.0) -> Reading:
    """Both clocks go alike unless the second is given. The reply comes so late that storage has looked at its
    clock when it was asked."""
    asked = wall_s if monotonic is None else monotonic
    return Reading(now=START + timedelta(seconds=wall_s), asked=asked, told=asked + reply_s)


def lease_after(*beats_s: float) -> Lease:
    """A lease with heartbeats every 10 s and a timeout of 60 s, renewed at these instants."""
    return lease_renewed(*map(read_at, beats_s))


def lease_renewed(*readings: Reading) -> Lease:
    """The same, with what each heartbeat read."""
    lease = Lease(interval=timedelta(seconds=10), timeout=timedelta(seconds=60))
    for reading in readings:
        lease.renew(reading)
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
        lease.renew(read_at(beat * 32))

    assert lease.is_old_enough


@pytest.mark.fault(88)
@pytest.mark.parametrize(
    ("newest", "expected"),
    [
        pytest.param(
            read_at(75, 80), False, id="a step back that is shorter than the time since the last one"
        ),
        pytest.param(read_at(78, 80), False, id="by two seconds"),
        pytest.param(read_at(70.5, 120), False, id="while this server was stopped"),
        pytest.param(read_at(79.2, 80), True, id="slewed"),
        pytest.param(read_at(85, 80), True, id="a short step ahead"),
        pytest.param(read_at(80, 80, reply_s=5), True, id="a slow reply"),
    ],
)
def test_a_clock_that_is_set_back_between_two_beats_begins_a_lease_anew(
    newest: Reading, expected: bool
) -> None:
    assert lease_renewed(*map(read_at, (0, 20, 40, 60, 70)), newest).is_old_enough is expected


def test_replies_that_are_slow_now_and_then_are_no_steps() -> None:
    replies_s = (0, 5, 0, 5, 0, 5, 0)

    lease = lease_renewed(*(read_at(10 * n, reply_s=reply_s) for n, reply_s in enumerate(replies_s)))

    assert lease.is_old_enough


def test_a_lease_tells_how_much_longer_it_has_to_last() -> None:
    leases = [lease_after(*beats_s) for beats_s in ((), (0, 20), (0, 35, 70))]

    assert [lease.remaining(timedelta(seconds=60)).total_seconds() for lease in leases] == [60, 40, 0]
