"""Tests: when a server may take a silent peer for dead."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from qml_mp import host
from qml_mp.core.server_info import ProcessIdentity, ServerInfo
from qml_mp.settings import ServerConfig
from qml_mp.supervisor.recovery.judging import Judging, Lease, Reading, Silences, orphan_grace_of

START = datetime(2026, 3, 1, tzinfo=UTC)
HERE = host.identity().host
IN_A_CONTAINER = ProcessIdentity(host=f"{HERE.partition(':')[0]}:pid:[1]", pid=1, started_ticks=1)
BEFORE_A_REBOOT = replace(IN_A_CONTAINER, host=f"another-boot:{HERE.partition(':')[2]}")


def seconds(value: float) -> timedelta:
    return timedelta(seconds=value)


def read_after(duration: timedelta) -> Reading:
    """Both clocks go alike."""
    return read_at(duration, duration.total_seconds())


def read_at(wall: timedelta, monotonic: float) -> Reading:
    return Reading(now=START + wall, asked=monotonic, told=monotonic)


def heard_for(judging: Judging, duration: timedelta) -> Judging:
    """A server that has been heard for so long, with every heartbeat in time."""
    beat = timedelta()
    while beat < duration:
        judging.renew(read_after(beat))
        beat += judging.beat
    judging.renew(read_after(duration))
    return judging


def silence_that_proves_death(judging: Judging, peer: ProcessIdentity) -> timedelta | None:
    """None: this server may not judge the peer yet."""
    lease = judging.lease_for(peer)
    return lease.timeout if lease.is_old_enough else None


@pytest.mark.fault(74)
@pytest.mark.parametrize(
    ("config", "container", "earlier_boot"),
    [
        pytest.param(ServerConfig(), 60, 8, id="by default"),
        pytest.param(ServerConfig(stale_processing_after=seconds(20)), 20, 8, id="claims are stale sooner"),
        pytest.param(ServerConfig(stale_processing_after=seconds(0)), 8, 8, id="never before four beats"),
        pytest.param(
            ServerConfig(stale_processing_after=seconds(0), orphan_grace=seconds(30)), 32, 32,
            id="never before orphans are gone",
        ),
        pytest.param(
            ServerConfig(heartbeat_interval=seconds(1), dead_server_timeout=seconds(3)), 3, 3,
            id="as short as a person says",
        ),
        pytest.param(
            ServerConfig(heartbeat_interval=seconds(2), dead_server_timeout=seconds(5)), 5, 5,
            id="with heartbeats as rare as may be set",
        ),
    ],
)  # fmt: skip
def test_on_one_machine_a_short_silence_tells(
    config: ServerConfig, container: float, earlier_boot: float
) -> None:
    judging = heard_for(Judging(config, on_one_machine=True), seconds(120))

    assert judging.beat <= seconds(2)
    assert judging.may_judge_by_age
    assert silence_that_proves_death(judging, IN_A_CONTAINER) == seconds(container)
    assert silence_that_proves_death(judging, BEFORE_A_REBOOT) == seconds(earlier_boot)
    assert judging.shortest_silence == seconds(earlier_boot)


@pytest.mark.fault(4)
@pytest.mark.parametrize(
    ("grace_s", "timeout_s", "expected_s"), [(5, 60, 5), (600, 60, 40), (5, 3, 2), (0, 60, 0)]
)
def test_orphans_end_before_anybody_may_judge_their_server(
    grace_s: float, timeout_s: float, expected_s: float
) -> None:
    config = ServerConfig(
        orphan_grace=seconds(grace_s), heartbeat_interval=seconds(1), dead_server_timeout=seconds(timeout_s)
    )

    assert orphan_grace_of(config) == seconds(expected_s)


def test_across_machines_only_the_timeout_counts_and_another_boot_proves_nothing() -> None:
    config = ServerConfig(stale_processing_after=seconds(0))

    judging = heard_for(Judging(config, on_one_machine=False), seconds(120))

    assert judging.beat == config.heartbeat_interval
    for peer in (IN_A_CONTAINER, BEFORE_A_REBOOT):
        assert silence_that_proves_death(judging, peer) == config.dead_server_timeout


@pytest.mark.parametrize(
    ("on_one_machine", "told", "expected"),
    [
        pytest.param(False, None, 60, id="none is told"),
        pytest.param(False, seconds(8), 60, id="a shorter one"),
        pytest.param(False, seconds(600), 600, id="a longer one"),
        pytest.param(True, seconds(600), 300, id="all claims are stale before"),
    ],
)
def test_of_the_own_timeout_and_that_of_the_peer_the_longer_one_counts(
    on_one_machine: bool, told: timedelta | None, expected: float
) -> None:
    judging = Judging(ServerConfig(), on_one_machine=on_one_machine)

    assert judging.lease_for(IN_A_CONTAINER).timeout_of(told) == seconds(expected)


@pytest.mark.fault(8)
@pytest.mark.fault(74)
@pytest.mark.parametrize("on_one_machine", [True, False])
def test_nobody_is_judged_by_a_server_that_was_not_heard_for_as_long_itself(on_one_machine: bool) -> None:
    judging = Judging(ServerConfig(), on_one_machine=on_one_machine)

    heard_for(judging, seconds(7))

    assert silence_that_proves_death(judging, IN_A_CONTAINER) is None
    assert silence_that_proves_death(judging, BEFORE_A_REBOOT) is None
    assert not judging.may_judge_by_age

    heard_for(judging, seconds(120))
    judging.renew(read_after(seconds(180)))  # it slept

    assert silence_that_proves_death(judging, IN_A_CONTAINER) is None
    assert silence_that_proves_death(judging, BEFORE_A_REBOOT) is None


@pytest.mark.fault(49)
@pytest.mark.parametrize(
    ("wall_s", "monotonic", "reply_s", "expected"),
    [
        pytest.param(30, 30, 0, False, id="as much as has passed"),
        pytest.param(32, 30, 0, False, id="slewed"),
        pytest.param(35, 30, 5, False, id="told late by a slow reply"),
        pytest.param(40, 30, 0, True, id="by ten seconds"),
        pytest.param(3, 0, 0, True, id="in no time"),
    ],
)
def test_a_clock_that_is_set_ahead_is_told_from_a_slow_reply(
    wall_s: float, monotonic: float, reply_s: float, expected: bool
) -> None:
    reading = Reading(now=START + seconds(wall_s), asked=monotonic, told=monotonic + reply_s)

    assert reading.is_ahead_of(read_at(seconds(0), 0)) is expected


def heard_at(heartbeat: timedelta) -> ServerInfo:
    return ServerInfo(
        id="peer#1", name="peer", hostname="h", process=IN_A_CONTAINER, worker_count=1, queues=(),
        started_at=START, last_heartbeat=START + heartbeat, heartbeat_enabled=True,
    )  # fmt: skip


def silence_after(*looks: tuple[float, float, float]) -> float:
    """Seconds, by the last of the looks: wall time, that of the newest heartbeat, monotonic time."""
    silences = Silences()
    for wall_s, heartbeat_s, monotonic in looks:
        peer = heard_at(seconds(heartbeat_s))
        found = silences.look([peer], read_at(seconds(wall_s), monotonic), seen=monotonic)
    return found[peer.id].total_seconds()


@pytest.mark.fault(88)
@pytest.mark.parametrize(
    ("looks", "expected"),
    [
        pytest.param([(70, 10, 70)], 60, id="in the past"),
        pytest.param([(10, 20, 70)], 0, id="in the future at the first look"),
        pytest.param([(10, 20, 70), (12, 20, 72), (14, 20, 74)], 4, id="the same one"),
        pytest.param([(10, 20, 70), (12, 20, 72), (14, 21, 74)], 0, id="another one"),
        pytest.param([(10, 20, 70), (0, 20, 130)], 60, id="the clock is set back once more"),
        pytest.param([(10, 20, 70), (21, 20, 81)], 1, id="the clock has caught up"),
        pytest.param([(10, 20, 70), (21, 20, 81), (11, 20, 82)], 0, id="and is set back again"),
    ],
)
def test_a_heartbeat_in_the_future_is_silence_only_while_it_stays_the_newest(
    looks: list[tuple[float, float, float]], expected: float
) -> None:
    assert silence_after(*looks) == expected


@pytest.mark.fault(88)
def test_of_a_heartbeat_in_the_future_no_time_counts_in_which_nobody_has_looked() -> None:
    silences, peer = Silences(), heard_at(seconds(3600))

    silences.look([peer], read_after(seconds(0)), seen=100.0)  # stopped between the clock and the look
    found = silences.look([peer], read_after(seconds(102)), seen=200.0)
    assert found[peer.id] == seconds(2)

    silences.look([], read_after(seconds(104)), seen=104.0)  # it was heard, and forgotten
    assert silences.look([peer], read_after(seconds(300)), seen=300.0)[peer.id] == seconds(0)


def read_late(wall_s: float, monotonic: float | None = None, *, reply_s: float = 0.0) -> Reading:
    """Both clocks go alike unless the second is given. The reply comes so late that storage has looked at its
    clock when it was asked."""
    asked = wall_s if monotonic is None else monotonic
    return Reading(now=START + timedelta(seconds=wall_s), asked=asked, told=asked + reply_s)


def lease_after(*beats_s: float) -> Lease:
    """A lease with heartbeats every 10 s and a timeout of 60 s, renewed at these instants."""
    return lease_renewed(*map(read_late, beats_s))


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
        lease.renew(read_late(beat * 32))

    assert lease.is_old_enough


@pytest.mark.fault(88)
@pytest.mark.parametrize(
    ("newest", "expected"),
    [
        pytest.param(
            read_late(75, 80), False, id="a step back that is shorter than the time since the last one"
        ),
        pytest.param(read_late(78, 80), False, id="by two seconds"),
        pytest.param(read_late(70.5, 120), False, id="while this server was stopped"),
        pytest.param(read_late(79.2, 80), True, id="slewed"),
        pytest.param(read_late(85, 80), True, id="a short step ahead"),
        pytest.param(read_late(80, 80, reply_s=5), True, id="a slow reply"),
    ],
)
def test_a_clock_that_is_set_back_between_two_beats_begins_a_lease_anew(
    newest: Reading, expected: bool
) -> None:
    assert lease_renewed(*map(read_late, (0, 20, 40, 60, 70)), newest).is_old_enough is expected


def test_replies_that_are_slow_now_and_then_are_no_steps() -> None:
    replies_s = (0, 5, 0, 5, 0, 5, 0)

    lease = lease_renewed(*(read_late(10 * n, reply_s=reply_s) for n, reply_s in enumerate(replies_s)))

    assert lease.is_old_enough


def test_a_lease_tells_how_much_longer_it_has_to_last() -> None:
    leases = [lease_after(*beats_s) for beats_s in ((), (0, 20), (0, 35, 70))]

    assert [lease.remaining(timedelta(seconds=60)).total_seconds() for lease in leases] == [60, 40, 0]
