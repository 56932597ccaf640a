"""Tests of how long the supervisor waits between two tries of what fails."""

from __future__ import annotations

import random

import pytest

from qml_mp.errors import StorageUnavailable
from qml_mp.supervisor.retrying import Retrying

LOCKED = StorageUnavailable("somebody keeps a lock")


@pytest.mark.fault(76)
def test_however_long_it_has_failed_the_next_try_comes_within_five_seconds() -> None:
    tries = Retrying(fails="The scheduler loop failed", works="It works again", rng=random.Random(7))

    pauses_s = []
    for _ in range(200):
        tries.failed(LOCKED, now=100.0)
        pauses_s.append(tries.not_before - 100.0)

    assert max(pauses_s) < 5
    assert pauses_s[0] < pauses_s[3] < pauses_s[5]
