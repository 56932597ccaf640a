"""Tests: which deaths are laid to the kernel's OOM killer."""

from __future__ import annotations

from qml_mp.clock import SystemClock
from qml_mp.supervisor.workers.death import OomWatch


class Kernel(SystemClock):
    """A clock and a count of OOM kills that are set by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.kills: int | None = 7

    def monotonic(self) -> float:
        return self.now_s

    def count(self) -> int | None:
        return self.kills


def watch_for(watch: OomWatch, kernel: Kernel, *, seconds: int) -> None:
    """Let time pass, with a look ten times a second."""
    for _ in range(seconds * 10):
        kernel.now_s += 0.1
        watch.look()


def test_kills_before_the_watch_began_do_not_count() -> None:
    kernel = Kernel()

    watch = OomWatch(kernel, count=kernel.count)

    assert not watch.struck()


def test_a_strike_counts_at_once() -> None:
    kernel = Kernel()
    watch = OomWatch(kernel, count=kernel.count)
    watch_for(watch, kernel, seconds=60)

    kernel.kills = 8

    assert watch.struck()


def test_a_strike_still_counts_when_a_look_falls_between_it_and_the_death() -> None:
    kernel = Kernel()
    watch = OomWatch(kernel, count=kernel.count)
    watch_for(watch, kernel, seconds=60)

    kernel.kills = 8
    watch_for(watch, kernel, seconds=1)

    assert watch.struck()


def test_a_strike_of_long_ago_is_no_reason_for_a_death_of_now() -> None:
    kernel = Kernel()
    watch = OomWatch(kernel, count=kernel.count)

    kernel.kills = 8
    watch_for(watch, kernel, seconds=60)

    assert not watch.struck()


def test_a_kernel_that_does_not_tell_has_not_struck() -> None:
    kernel = Kernel()
    kernel.kills = None

    assert not OomWatch(kernel, count=kernel.count).struck()
