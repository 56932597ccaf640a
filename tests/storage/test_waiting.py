"""Tests: a process that does other things while its storage has not replied."""

from __future__ import annotations

import select
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta

import pytest

from qml_mp.errors import StorageError, StorageUnavailable, StorageUnreachable
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from tests.storage.flaky_proxy import FlakyProxy
from tests.storage.helpers import in_children
from tests.until import PATIENCE_S


class Patient:
    """Waits as it should, calls `meanwhile` each time before, and gives up when told to."""

    def __init__(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        self.give_up_at = float("inf")
        self.waits = self.calls = 0
        self._meanwhile = meanwhile

    def wait(self, fd: int, *, reading: bool, writing: bool, until: float) -> tuple[bool, bool]:
        self.waits += 1
        self._meanwhile()
        timeout_s = max(0.0, min(until, self.give_up_at) - time.monotonic())
        readable, writable, _ = select.select([fd] * reading, [fd] * writing, [], timeout_s)
        return bool(readable), bool(writable)

    def call_blocking(self, call: Callable[[], str], *, until: float) -> str:
        self.calls += 1
        return '"no such host"'  # as told by `call`; no test asks real name servers

    def pause(self, seconds: float) -> None:
        self.waits += 1
        self._meanwhile()
        time.sleep(seconds)  # the pause that the storage asks for


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[FlakyProxy]:
    with FlakyProxy.before(postgres_url) as running:
        yield running


@pytest.fixture
def through_proxy(url: str, proxy: FlakyProxy) -> Iterator[Storage]:
    """A storage that is reached through the proxy."""
    with closing(open_storage(proxy.through(url))) as storage:
        yield storage


only_postgres = pytest.mark.parametrize("url", ["postgres"], indirect=True)


def test_a_storage_works_as_usual_while_somebody_else_waits_for_it(storage: Storage) -> None:
    patient = Patient()
    storage.wait_with(patient)

    assert storage.list_servers() == []
    assert storage.acquire_lock("one", "me", timedelta(seconds=60))
    storage.close()
    assert not storage.acquire_lock("one", "you", timedelta(seconds=60))

    waits = patient.waits
    storage.wait_with(None)
    assert storage.release_lock("one", "me")
    assert patient.waits == waits


@only_postgres
def test_connecting_and_each_reply_are_waited_for_by_somebody_else(storage: Storage) -> None:
    storage.migrate()
    storage.close()
    patient = Patient()
    storage.wait_with(patient)

    storage.list_servers()
    connecting = patient.waits
    storage.list_servers()

    assert 0 < patient.waits - connecting < connecting


@only_postgres
def test_a_reply_that_does_not_come_is_given_up_at_the_instant_that_was_named(
    through_proxy: Storage, proxy: FlakyProxy
) -> None:
    patient = Patient()
    through_proxy.wait_with(patient)
    through_proxy.list_servers()
    proxy.go_silent()

    patient.give_up_at = time.monotonic() + 0.1
    with pytest.raises(StorageUnreachable, match="no time left"):
        through_proxy.list_servers()


@only_postgres
def test_nothing_is_sent_once_it_has_been_given_up(storage: Storage) -> None:
    patient = Patient()
    storage.wait_with(patient)
    storage.list_servers()
    waits = patient.waits

    patient.give_up_at = time.monotonic()
    with pytest.raises(StorageUnreachable, match="no time left"):
        storage.acquire_lock("one", "me", timedelta(seconds=60))

    assert patient.waits == waits
    patient.give_up_at = float("inf")
    assert storage.acquire_lock("one", "you", timedelta(seconds=60))  # nobody has it


@only_postgres
def test_a_connection_that_is_not_answered_is_bounded_while_somebody_else_waits(
    through_proxy: Storage, proxy: FlakyProxy
) -> None:
    proxy.go_silent()
    patient = Patient()
    through_proxy.wait_with(patient)

    with pytest.raises(StorageUnreachable, match=r"did not reply in time.*connect_timeout"):
        through_proxy.list_servers()


@pytest.mark.usefixtures("time_for_work")
def test_in_a_forked_copy_of_the_process_nobody_else_waits(
    url: str, connect: Callable[[], sqlite3.Connection]
) -> None:
    patient = Patient()
    with closing(open_storage(url, patience=timedelta(seconds=0.05))) as storage:
        storage.migrate()
        storage.close()
        storage.wait_with(patient)

        def use_it() -> None:
            if url.startswith("sqlite"):  # which waits for somebody else's lock alone
                other = connect()
                other.isolation_level = None
                other.execute("BEGIN IMMEDIATE")
                with pytest.raises(StorageUnavailable):
                    storage.acquire_lock("one", "me", timedelta(seconds=60))
            else:
                storage.list_servers()
            assert patient.waits == 0

        assert in_children([use_it]) == [0]


def test_who_waits_must_not_use_the_storage_that_it_waits_for(
    storage: Storage, url: str, connect: Callable[[], sqlite3.Connection]
) -> None:
    refused: list[StorageError] = []

    def use_it() -> None:
        try:
            storage.list_servers()
        except StorageError as error:
            refused.append(error)

    storage.migrate()
    storage.list_servers()
    storage.wait_with(Patient(meanwhile=use_it))
    if url.startswith("sqlite"):  # which waits for somebody else's lock alone
        impatient = open_storage(url, patience=timedelta(seconds=PATIENCE_S))

        def use_it_and_give_up() -> None:
            use_it()
            waiting.give_up_at = time.monotonic()

        waiting = Patient(meanwhile=use_it_and_give_up)
        impatient.wait_with(waiting)
        storage = impatient
        storage.list_servers()
        other = connect()
        other.isolation_level = None
        other.execute("BEGIN IMMEDIATE")
        with closing(impatient), pytest.raises(StorageUnavailable):
            impatient.acquire_lock("one", "me", timedelta(seconds=60))
    else:
        storage.list_servers()

    assert {str(error) for error in refused} == {
        "A storage operation was started inside another one of the same thread."
    }


@pytest.mark.parametrize(
    ("place", "host", "address", "is_looked_up"),
    [
        ("db.invalid:1/x", "", "", True),
        ("127.0.0.1:1,db.invalid:1/x", "", "", True),
        ("/x", "db.invalid", "", True),
        ("db.invalid:1/x?hostaddr=127.0.0.1", "", "", False),
        ("db.invalid:1/x", "", "127.0.0.1", False),
        ("127.0.0.1:1,[::1]:1/x", "db.invalid", "", False),
        ("/x?host=/nowhere", "db.invalid", "", False),
        ("/x", "/nowhere", "", False),
        ("/x?port=1", "", "", False),
    ],
)
def test_a_name_is_looked_up_where_nobody_waits_and_an_address_is_not(
    place: str, host: str, address: str, is_looked_up: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("PGHOST", host), ("PGHOSTADDR", address)):
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    patient = Patient()
    with closing(open_storage(f"postgresql://{place}")) as storage:
        storage.wait_with(patient)

        with pytest.raises(StorageUnreachable):
            storage.list_servers()

    assert (patient.calls > 0) is is_looked_up


def test_no_name_is_looked_up_once_it_has_been_given_up() -> None:
    patient = Patient()
    patient.give_up_at = time.monotonic()
    with closing(open_storage("postgresql://db.invalid/x")) as storage:
        storage.wait_with(patient)

        with pytest.raises(StorageUnreachable, match="no time left"):
            storage.list_servers()

    assert patient.calls == 0
