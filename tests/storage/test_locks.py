"""Tests of the storage: named locks."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from qml_mp.errors import ConfigurationError
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Retention
from qml_mp.units import LONGEST
from tests.storage.conftest import Raw
from tests.storage.helpers import HOUR, in_children, open_patiently


def test_a_lock_is_held_by_one_owner(storage: Storage) -> None:
    acquired = [storage.acquire_lock("cleanup", owner, HOUR) for owner in ("a", "b", "a")]

    assert acquired == [True, False, True]
    assert storage.acquire_lock("another", "b", HOUR)


def test_a_lock_for_longer_than_a_hundred_years_is_refused(storage: Storage) -> None:
    storage.acquire_lock("cleanup", "a", LONGEST)
    too_long = LONGEST + HOUR

    for take in (storage.acquire_lock, storage.take_lock, storage.renew_lock):
        with pytest.raises(ConfigurationError, match=r"ttl is .* at most 36525d"):
            take("cleanup", "a", too_long)
    with pytest.raises(ConfigurationError, match=r"Retention\.failed_ttl is .* at most 36525d"):
        Retention(succeeded_ttl=LONGEST, failed_ttl=too_long)


def test_only_its_owner_releases_a_lock(storage: Storage) -> None:
    storage.acquire_lock("cleanup", "a", HOUR)

    released = [storage.release_lock("cleanup", owner) for owner in ("b", "a", "a")]

    assert released == [False, True, False]
    assert storage.acquire_lock("cleanup", "b", HOUR)


def test_an_expired_lock_is_taken_over(storage: Storage, raw: Raw) -> None:
    storage.acquire_lock("cleanup", "a", HOUR)
    raw.age("locks", "expires_at", 2 * HOUR)

    assert storage.acquire_lock("cleanup", "b", HOUR)
    assert not storage.acquire_lock("cleanup", "a", HOUR)
    assert not storage.release_lock("cleanup", "a")


def test_an_expired_lock_is_neither_renewed_nor_said_to_be_held(storage: Storage, raw: Raw) -> None:
    storage.acquire_lock("cleanup", "a", HOUR)
    raw.age("locks", "expires_at", 2 * HOUR)

    renewed = storage.renew_lock("cleanup", "a", HOUR)

    assert not renewed
    assert not storage.release_lock("cleanup", "a")
    assert raw.run("SELECT resource FROM {locks}") == []
    assert storage.acquire_lock("cleanup", "a", HOUR)
    assert storage.renew_lock("cleanup", "a", HOUR)


def test_acquiring_again_prolongs_the_lock(storage: Storage, raw: Raw) -> None:
    storage.acquire_lock("cleanup", "a", HOUR)
    storage.acquire_lock("cleanup", "a", 4 * HOUR)
    raw.age("locks", "expires_at", 2 * HOUR)

    assert not storage.acquire_lock("cleanup", "b", HOUR)


def test_expired_locks_are_deleted(storage: Storage, raw: Raw) -> None:
    for name in ("one", "two"):
        storage.acquire_lock(name, "a", HOUR)
    raw.age("locks", "expires_at", 2 * HOUR)
    storage.acquire_lock("three", "a", HOUR)

    assert [storage.delete_expired_locks(limit=1) for _ in range(3)] == [1, 1, 0]
    assert not storage.acquire_lock("three", "b", timedelta(seconds=1))


def test_one_of_several_processes_gets_the_lock(storage: Storage, url: str, tmp_path: Path) -> None:
    storage.migrate()
    storage.close()

    def try_to_acquire(owner: str) -> None:
        if open_patiently(url).acquire_lock("cleanup", owner, HOUR):
            (tmp_path / f"acquired-{owner}").touch()

    statuses = in_children(partial(try_to_acquire, str(number)) for number in range(6))

    assert statuses == [0] * 6
    assert len(list(tmp_path.glob("acquired-*"))) == 1
