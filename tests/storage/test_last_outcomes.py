"""Tests of the storage: of what dead workers of a killed server have left, no outcome keeps another."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import pytest

from qml_mp import failpoints
from qml_mp.core.job import Claim
from qml_mp.core.outcome import Release
from qml_mp.core.state import StateName
from qml_mp.errors import StorageUnavailable
from qml_mp.ipc.ended import EndedTable
from qml_mp.storage.store import Storage
from qml_mp.supervisor.recovery import last_outcomes
from qml_mp.supervisor.recovery.last_outcomes import LastOutcomes
from tests.storage.conftest import Raw
from tests.storage.helpers import DONE, KEEP, claim_new, present
from tests.until import wait_until

pytestmark = pytest.mark.fault(4)


def left_by(worker_id: str, claims: Sequence[Claim], url: str) -> LastOutcomes:
    """What came of these is in the memory of this worker, which is dead."""
    table = EndedTable(1)
    region = table.region(0, worker_id=worker_id)
    for claim in claims:
        assert region.append(claim.key, DONE)
    return LastOutcomes(table, url=url, retention=KEEP)


def write(outcomes: LastOutcomes, storage: Storage) -> None:
    """Until nobody tries any more."""
    storage.close()  # no handle crosses a fork
    reading, sign = os.pipe()  # to be read to its end once nobody has the sign open
    assert outcomes.write(is_dead=lambda _: True, sign=(sign,))
    os.close(sign)
    assert os.read(reading, 1) == b""
    os.close(reading)


def told_by(
    outcomes: LastOutcomes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> list[str]:
    """What the process that writes tells, which is this one for once."""

    def run(write: Callable[[], int], **_: object) -> None:
        assert write() == 0

    monkeypatch.setattr(last_outcomes, "fork_child", run)
    caplog.set_level(logging.INFO)
    assert outcomes.write(is_dead=lambda _: True, sign=())
    return caplog.messages


def states(storage: Storage, claims: Sequence[Claim]) -> list[StateName]:
    return [present(storage, claim).state_name for claim in claims]


@pytest.mark.parametrize("place", ["storage.call", "storage.committed"])
@pytest.mark.parametrize("number", [None, *range(1, 7)])
def test_one_that_the_database_refuses_keeps_no_other(
    storage: Storage, url: str, raw: Raw, monkeypatch: pytest.MonkeyPatch, place: str, number: int | None
) -> None:
    """Nor does a storage that is not to be had for once meanwhile."""
    claims = [claim_new(storage, worker="w") for _ in range(3)]
    raw.refuse(
        "UPDATE", "jobs", saying="no", when=f"NEW.state = 'succeeded' AND NEW.id = '{claims[1].job.id}'"
    )
    outcomes, passes = left_by("w", claims, url), list[str]()

    def hit(name: str) -> None:
        passes.extend([name] * (name == place))
        if name == place and len(passes) == number:
            raise StorageUnavailable("once")

    storage.close()
    with monkeypatch.context() as patch:
        patch.setattr(failpoints, "hit", hit)
        write(outcomes, storage)

    assert states(storage, claims) == [StateName.SUCCEEDED, StateName.PROCESSING, StateName.SUCCEEDED]
    raw.allow("jobs")


@pytest.mark.parametrize("url", ["postgres"], indirect=True)  # SQLite locks no rows
def test_those_whose_rows_are_locked_keep_no_other_and_are_written_once_they_are_not(
    storage: Storage, url: str, connect: Callable[[], Any], raw: Raw
) -> None:
    """The oldest ones, of which the guardian would have no time left after waiting a while for each."""
    claims = [claim_new(storage, worker="w") for _ in range(5)]
    locked, others = claims[:3], claims[3:]
    outcomes = left_by("w", claims, url)
    storage.close()
    with closing(connect()) as somebody:
        somebody.autocommit = False
        jobs, ids = raw.name("jobs"), [claim.job.id for claim in locked]
        somebody.execute(f"SELECT 1 FROM {jobs} WHERE id = ANY(%s) FOR UPDATE", [ids])

        assert outcomes.write(is_dead=lambda _: True, sign=())
        wait_until(lambda: states(storage, others) == [StateName.SUCCEEDED] * 2, what="what is not locked")
        assert states(storage, locked) == [StateName.PROCESSING] * 3
        somebody.rollback()

    wait_until(lambda: states(storage, claims) == [StateName.SUCCEEDED] * 5, what="the locked ones")


def test_a_claim_of_the_same_number_that_another_worker_has_is_left_to_that(
    storage: Storage, url: str
) -> None:
    """As there may be after a restore or a failover."""
    claims = [claim_new(storage, worker="another"), claim_new(storage, worker="w")]

    write(left_by("w", claims, url), storage)

    assert states(storage, claims) == [StateName.PROCESSING, StateName.SUCCEEDED]


def test_what_is_refused_and_written_as_a_failure_is_told_so(
    storage: Storage, url: str, raw: Raw, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    claims = [claim_new(storage, worker="w") for _ in range(2)]
    if raw.is_sqlite:  # takes no constraint afterwards, but an index
        raw.run("CREATE UNIQUE INDEX one ON qml_jobs (state) WHERE state = 'succeeded'")
    else:
        raw.run(f"ALTER TABLE {{jobs}} ADD CHECK (state <> 'succeeded' OR id <> '{claims[1].job.id}')")

    told = told_by(left_by("w", claims, url), monkeypatch, caplog)

    assert states(storage, claims) == [StateName.SUCCEEDED, StateName.FAILED]
    assert told == [
        f"Job {claim.job.id} had ended when the server was killed: {what} is written"
        for claim, what in zip(claims, ("Success", "Failure"), strict=True)
    ]


@pytest.mark.parametrize("together", [True, False])
def test_nothing_is_told_of_a_claim_that_a_peer_gives_away_meanwhile(
    storage: Storage,
    url: str,
    opened: Callable[[], Storage],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    together: bool,
) -> None:
    claims, peer, calls = [claim_new(storage, worker="w") for _ in range(2)], opened(), list[str]()
    given_away, kept = claims

    def hit(name: str) -> None:
        if name != "storage.call":
            return
        calls.append(name)
        if len(calls) == 2:  # it has read the claims
            with monkeypatch.context() as patch:
                patch.setattr(failpoints, "hit", lambda _: None)
                back = Release(reason="its server is gone", not_begun=True)
                assert peer.finish(given_away, back, retention=KEEP).accepted
            if not together:
                raise StorageUnavailable("once")

    monkeypatch.setattr(failpoints, "hit", hit)
    told = told_by(left_by("w", claims, url), monkeypatch, caplog)

    assert states(storage, claims) == [StateName.ENQUEUED, StateName.SUCCEEDED]
    assert told == [f"Job {kept.job.id} had ended when the server was killed: Success is written"]
