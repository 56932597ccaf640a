"""Tests: what a server makes of the refused jobs of a dead one, over all its tries."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import count

import pytest

from qml_mp.errors import StorageUnavailable
from qml_mp.storage.store import Storage
from qml_mp.supervisor.recovery.giving_back import GivingBack
from qml_mp.supervisor.run import Run
from tests.storage.conftest import Raw
from tests.storage.helpers import server_run
from tests.storage.test_exchange import before_query, interrupt
from tests.storage.test_reclaim_refused import (
    MINUTE,
    assert_all_are_given_back_uncharged,
    hold,
    refuse,
)
from tests.unit.hand_clock import HandClock


@pytest.fixture
def run(storage: Storage, clock: HandClock) -> Iterator[Run]:
    with server_run(storage, clock=clock) as run:
        yield run


@pytest.mark.fault(75)
def test_a_silent_servers_refused_job_is_remembered_whenever_an_outage_ends_the_next_try(
    storage: Storage, raw: Raw, run: Run, clock: HandClock, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO)

    for number in count(1):
        raw.run("DELETE FROM {jobs}")
        claims = hold(storage, raw, 2)
        refuse(raw, claims[:1])
        mine, is_through = GivingBack(run), False
        assert mine.reclaim(storage, "server#1", silent_for=MINUTE) == 1
        assert storage.list_servers() == []
        raw.allow("jobs")
        clock.seconds += 60
        caplog.clear()
        with monkeypatch.context() as patched:
            before_query(storage, number, interrupt, patched)
            try:
                mine.reclaim(storage, "server#1", silent_for=None)
                is_through = True
            except StorageUnavailable:
                assert (len(storage.claims()), mine.unfinished) == (1, ["server#1"])
                assert "are given back now" not in caplog.text
        mine.reclaim(storage, "server#1", silent_for=None)
        assert mine.unfinished == []
        assert caplog.text.count("are given back now") == 1
        assert_all_are_given_back_uncharged(storage, raw, claims)
        if is_through:
            break

    assert number > 5
