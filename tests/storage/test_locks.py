"""Tests of the storage: named locks, and `app.lock` on them."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from functools import partial
from pathlib import Path
from threading import Barrier, Event
from typing import NoReturn

import pytest

from qml_mp import LockLost, LockNotAcquired, QmlApp
from qml_mp.errors import ConfigurationError, StorageUnavailable
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Retention
from qml_mp.units import LONGEST
from tests.storage.conftest import Raw
from tests.storage.helpers import HOUR, in_children, open_patiently, patient_url


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


# `app.lock`, as programs use it.


@pytest.fixture
def app(url: str, storage: Storage) -> Iterator[QmlApp]:
    storage.migrate()
    with closing(QmlApp(patient_url(url))) as app:
        yield app


def test_one_holds_it_and_the_token_grows(app: QmlApp) -> None:
    with app.lock("report", ttl="10m") as lock:
        held = lock.is_held
        with pytest.raises(LockNotAcquired), app.lock("report", ttl="10m", timeout=0):
            pass
        with app.lock("another", ttl="10m", timeout=0) as other:
            assert other.token > lock.token
        with pytest.raises(ConfigurationError):
            lock.acquire()

    with app.lock("report", ttl="10m", timeout=0) as again:
        assert not lock.is_held
        assert again.token > other.token
    assert held


def test_an_error_in_the_block_releases_it(app: QmlApp) -> None:
    with pytest.raises(ValueError, match="no"), app.lock("report", ttl="10m"):
        raise ValueError("no")

    with app.lock("report", ttl="10m", timeout=0):
        pass


@pytest.mark.parametrize("since", ["nothing", "a cleanup", "another has taken it"])
def test_one_that_outlived_its_ttl_is_lost_whatever_has_happened_since(
    app: QmlApp, raw: Raw, since: str
) -> None:
    with pytest.raises(LockLost), app.lock("report", ttl="1h") as lock:  # noqa: PT012 - the end of the block
        raw.age("locks", "expires_at", 2 * HOUR)
        if since == "another has taken it":
            app.storage.take_lock("report", "another", HOUR)
        elif since == "a cleanup":
            app.storage.delete_expired_locks(limit=10)
        with pytest.raises(LockLost):
            lock.renew()
        assert not lock.is_held

    assert (app.storage.lock_holder("report") == "another") is (since == "another has taken it")


def test_a_renewed_one_is_held_on(app: QmlApp, raw: Raw) -> None:
    with app.lock("report", ttl="1h") as lock:
        lock.renew("4h")
        raw.age("locks", "expires_at", 2 * HOUR)
        with pytest.raises(LockNotAcquired), app.lock("report", ttl="1h", timeout=0):
            pass


def test_a_coroutine_holds_it_too(app: QmlApp) -> None:
    async def main() -> bool:
        async with app.lock("report", ttl="10m") as lock:
            with pytest.raises(LockNotAcquired):
                async with app.lock("report", ttl="10m", timeout="10ms"):
                    pass
            return lock.is_held

    assert asyncio.run(main())
    assert app.storage.lock_holder("report") is None


def test_the_lock_of_a_killed_process_is_free_at_once_on_its_machine(app: QmlApp) -> None:
    app.close()

    def hold_it() -> None:
        with app.lock("report", ttl="1h"):
            os.kill(os.getpid(), signal.SIGKILL)

    [status] = in_children([hold_it])

    assert os.WTERMSIG(status) == signal.SIGKILL
    assert app.storage.lock_holder("report") is not None
    with app.lock("report", ttl="1h", timeout="30s") as lock:
        assert lock.token == 2


def test_no_two_processes_are_in_the_block_at_a_time(app: QmlApp, tmp_path: Path) -> None:
    app.close()
    marker = tmp_path / "inside"

    def work() -> Callable[[], None]:
        def enter_and_leave() -> None:
            for _ in range(5):
                with app.lock("report", ttl="1h"):
                    marker.touch(exist_ok=False)
                    time.sleep(0.001)  # long enough for another one to come in, were there no lock
                    marker.unlink()
            app.close()

        return enter_and_leave

    assert in_children(work() for _ in range(5)) == [0] * 5


@pytest.mark.parametrize("wrong", [{"ttl": 0}, {"ttl": "soon"}, {"ttl": "1h", "timeout": -1}])
def test_what_no_lock_can_have_is_refused(app: QmlApp, wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        app.lock("report", **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "qml-mp:mine", "x" * 201, "a\0b", 3])
def test_a_name_that_no_lock_can_have_is_refused(app: QmlApp, name: str) -> None:
    with pytest.raises(ConfigurationError):
        app.lock(name, ttl="1h")


def test_threads_that_share_the_object_take_turns(app: QmlApp) -> None:
    lock, inside = app.lock("report", ttl="10m"), _Inside()
    all_there = Barrier(5)

    def work(_: int) -> int:
        all_there.wait()
        with lock:
            inside.enter()
            time.sleep(0.01)  # long enough for another one to come in, were there no lock
            inside.leave()
            return lock.token

    with ThreadPoolExecutor(4) as threads, app.lock("report", ttl="10m"):  # so that all of them wait
        tokens = [threads.submit(work, number) for number in range(4)]
        all_there.wait()

    assert inside.most == 1
    assert len({token.result() for token in tokens}) == 4
    assert app.storage.lock_holder("report") is None


def test_coroutines_that_share_the_object_take_turns(app: QmlApp) -> None:
    lock, inside = app.lock("report", ttl="10m"), _Inside()

    async def work() -> int:
        async with lock:
            inside.enter()
            await asyncio.sleep(0.01)  # long enough for another one to come in, were there no lock
            inside.leave()
            return lock.token

    async def main() -> list[int]:
        return await asyncio.gather(*(work() for _ in range(4)))

    assert len(set(asyncio.run(main()))) == 4
    assert inside.most == 1
    assert app.storage.lock_holder("report") is None


def test_who_would_wait_for_itself_is_told(app: QmlApp) -> None:
    lock = app.lock("report", ttl="10m")

    async def enter_again() -> None:
        async with lock:
            with pytest.raises(ConfigurationError, match="reentrant"):
                await lock.__aenter__()
            with pytest.raises(ConfigurationError, match="reentrant"):
                lock.acquire()

    async def enter() -> None:
        await lock.__aenter__()

    asyncio.run(enter_again())
    with lock:
        with pytest.raises(ConfigurationError, match="reentrant"):
            lock.acquire()
        with pytest.raises(ConfigurationError, match="reentrant"):
            asyncio.run(enter())
        assert lock.is_held

    assert app.storage.lock_holder("report") is None


@pytest.mark.parametrize("is_taken", [False, True], ids=["while it was taken", "while it was released"])
def test_one_that_the_storage_did_not_answer_about_can_be_acquired_again(
    app: QmlApp, monkeypatch: pytest.MonkeyPatch, is_taken: bool
) -> None:
    take = Storage.take_lock

    def take_and_lose_the_reply(storage: Storage, resource: str, owner: str, ttl: timedelta) -> NoReturn:
        take(storage, resource, owner, ttl)
        raise StorageUnavailable("not now")

    def refuse(*_: object) -> NoReturn:
        raise StorageUnavailable("not now")

    with monkeypatch.context() as outage:
        if not is_taken:
            outage.setattr(Storage, "take_lock", take_and_lose_the_reply)
        with pytest.raises(StorageUnavailable), app.lock("report", ttl="1h", timeout=0):
            outage.setattr(Storage, "release_lock", refuse)

    left = app.storage.lock_holder("report")
    with app.lock("report", ttl="1h", timeout=0) as lock:
        assert lock.is_held
    assert left is not None


def test_the_error_of_a_block_is_kept_when_its_end_meets_an_outage(
    app: QmlApp, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise StorageUnavailable("not now")

    with monkeypatch.context() as outage:
        outage.setattr(Storage, "release_lock", refuse)
        with pytest.raises(ValueError, match="no"), app.lock("report", ttl="1h"):
            raise ValueError("no")

    assert "The lock 'report' stays taken until its ttl is over: not now" in caplog.text
    with app.lock("report", ttl="1h", timeout=0):
        pass


def test_a_coroutine_that_is_cancelled_while_it_acquires_leaves_no_lock_behind(
    app: QmlApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = app.lock("report", ttl="1h", timeout=0)
    is_taking, may_take, has_taken = Event(), Event(), Event()
    take = Storage.take_lock

    def take_slowly(storage: Storage, resource: str, owner: str, ttl: timedelta) -> int | None:
        is_taking.set()
        may_take.wait(20)
        token = take(storage, resource, owner, ttl)
        has_taken.set()
        return token

    async def main() -> None:
        entering = asyncio.create_task(lock.__aenter__())
        await asyncio.to_thread(is_taking.wait, 20)
        entering.cancel()
        await asyncio.wait([entering], timeout=0.05)  # long enough to leave without the thread
        may_take.set()
        await asyncio.to_thread(has_taken.wait, 20)
        with pytest.raises(asyncio.CancelledError):
            await entering
        assert app.storage.lock_holder("report") is None
        monkeypatch.undo()
        async with lock:
            assert lock.is_held

    monkeypatch.setattr(Storage, "take_lock", take_slowly)
    asyncio.run(main())


class _Inside:
    """Counts who is within a block."""

    def __init__(self) -> None:
        self.now = 0
        self.most = 0

    def enter(self) -> None:
        self.now += 1
        self.most = max(self.most, self.now)

    def leave(self) -> None:
        self.now -= 1
