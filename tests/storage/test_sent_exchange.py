"""Tests of the storage: an exchange that is sent, and whose reply is read later. PostgreSQL alone has it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from qml_mp.core.job import Claim, Job
from qml_mp.core.limits import LimitKind
from qml_mp.core.state import StateName
from qml_mp.errors import StorageUnavailable
from qml_mp.storage.store import Storage
from qml_mp.storage.values import UNREAD_BYTES, Exchanged, Fetch
from tests.storage.claimer import FETCH, register
from tests.storage.conftest import Raw
from tests.storage.helpers import DONE, KEEP, claim_some, fetch, in_children, present, set_limit, states
from tests.until import wait_until


@pytest.fixture
def peer(storage: Storage, opened: Callable[[], Storage]) -> Iterator[Storage]:
    """Another process's view of the storage under test."""
    with closing(opened()) as peer:
        yield peer


def send(
    storage: Storage, held: tuple[Claim, ...], limit: int, *, which: Fetch | None = None
) -> Callable[[], Exchanged]:
    """Send their successes and a claim."""
    assert storage.can_send_exchange
    return storage.send_exchange(
        [(claim, DONE) for claim in held], fetch=which or fetch(), limit=limit, retention=KEEP
    )


def wait_for_claims(peer: Storage, count: int) -> None:
    """Until so many claims are committed."""
    wait_until(lambda: len(peer.claims()) == count, what=f"{count} claims")


pytestmark = pytest.mark.parametrize("url", ["postgres"], indirect=True)


@pytest.mark.parametrize("finished", [3])
@pytest.mark.parametrize("times", [0, 8], ids=["new statement", "prepared statement"])
def test_the_server_commits_before_the_reply_is_read(
    storage: Storage, peer: Storage, finished: int, times: int
) -> None:
    held = claim_some(storage, 3)
    for _ in range(times):
        storage.enqueue_many(Job.new("work") for _ in range(3))
        done = [(claim, DONE) for claim in held]
        held = storage.exchange(done[:finished], fetch=fetch(), limit=3, retention=KEEP).claims
        storage.exchange(done[finished:], fetch=None, limit=0, retention=KEEP)
    following = storage.enqueue_many(Job.new("work") for _ in range(2))

    read_reply = send(storage, held[:finished], 2)
    wait_for_claims(peer, 3 - finished + 2)
    assert states(peer, held[:finished]) == [StateName.SUCCEEDED] * finished
    exchanged = read_reply()

    assert [claim.job.id for claim in exchanged.claims] == following
    assert [done.job for done in exchanged.finished] == [present(peer, one) for one in held[:finished]]


@pytest.mark.parametrize("times", [0], ids=["any job"])
def test_more_than_a_socket_holds_is_not_claimed_ahead(storage: Storage, peer: Storage, times: int) -> None:
    """The server would wait, in mid-transaction, until the reply is read."""
    held = claim_some(storage, 1)
    for _ in range(times):
        storage.enqueue(Job.new("work"))
        held = storage.exchange([(held[0], DONE)], fetch=fetch(), limit=1, retention=KEEP).claims
    large = storage.enqueue_many(Job.new("work", {"text": "x" * (UNREAD_BYTES // 2)}) for _ in range(2))

    read_reply = send(storage, held, 2)
    wait_until(lambda: states(peer, held) == [StateName.SUCCEEDED], what="the outcome")
    by_peer = peer.exchange((), fetch=fetch(worker="worker-2"), limit=1, retention=KEEP).claims
    exchanged = read_reply()

    assert [claim.job.id for claim in by_peer] == large[:1]
    assert [done.accepted for done in exchanged.finished] == [True]


@pytest.mark.fault(36)
def test_what_was_committed_before_its_reply_was_lost_is_found(storage: Storage, peer: Storage) -> None:
    register(storage)
    held = claim_some(storage, 2, which=FETCH)
    storage.enqueue(Job.new("work"))

    read_reply = send(storage, held, 1, which=FETCH)
    wait_for_claims(peer, 1)
    storage.close()
    with pytest.raises(StorageUnavailable):
        read_reply()
    again = storage.exchange([(claim, DONE) for claim in held], fetch=None, limit=0, retention=KEEP)
    renewed = storage.renew_epoch("w-1")

    assert [done.was_written for done in again.finished] == [True, True]
    assert renewed is not None
    assert len(renewed.claims) == 1


@pytest.mark.fault(35)
def test_a_session_that_ends_before_it_commits_has_done_nothing(
    storage: Storage, connect: Callable[[], Any], raw: Raw
) -> None:
    held = claim_some(storage, 2)
    storage.enqueue(Job.new("work"))
    other = connect()
    other.execute("BEGIN")
    other.execute(f"SELECT FROM {raw.name('jobs')} FOR UPDATE")  # the exchange waits for these rows

    read_reply = send(storage, held, 1)
    waiting = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE ? = ANY(pg_blocking_pids(pid))"
    wait_until(lambda: raw.run(waiting, other.info.backend_pid), what="an exchange that waits for the rows")
    with pytest.raises(StorageUnavailable):
        read_reply()
    other.execute("ROLLBACK")

    assert states(storage, held) == [StateName.PROCESSING] * 2
    assert len(storage.claims()) == 2


@pytest.mark.fault(87)
def test_a_child_that_is_forked_in_between_leaves_the_reply_to_its_parent(
    storage: Storage, peer: Storage
) -> None:
    held = claim_some(storage, 2)
    storage.enqueue(Job.new("work"))
    read_reply = send(storage, held, 1)

    def look() -> None:
        assert states(storage, held) == [StateName.SUCCEEDED] * 2

    wait_for_claims(peer, 1)
    assert in_children([look]) == [0]
    exchanged = read_reply()

    assert [done.accepted for done in exchanged.finished] == [True, True]
    assert len(exchanged.claims) == 1


def test_where_there_are_limits_it_is_not_of_use(storage: Storage) -> None:
    held = claim_some(storage, 1)
    set_limit(storage, LimitKind.QUEUE, "default", max_running=5)
    [following] = storage.enqueue_many([Job.new("work")])

    exchanged = send(storage, held, 1)()

    assert [claim.job.id for claim in exchanged.claims] == [following]
    assert not storage.can_send_exchange
