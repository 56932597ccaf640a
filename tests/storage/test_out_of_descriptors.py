"""Tests: a storage in a process that has no descriptors left says so as a storage, and leaves none open."""

from __future__ import annotations

import gc
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from qml_mp.errors import StorageUnavailable
from qml_mp.storage.sqlite.opening import open_descriptors
from qml_mp.storage.store import Storage


@contextmanager
def free_descriptors(count: int) -> Iterator[None]:
    """So many can be opened, and not one more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    filling: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(open_descriptors()) + 1 + count, hard))
    try:
        with suppress(OSError):
            while True:
                filling.append(os.dup(0))
        for fd in filling[len(filling) - count :]:
            os.close(fd)
        del filling[len(filling) - count :]
        yield
    finally:
        for fd in filling:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.fault(84)
def test_wake_ups_that_cannot_be_opened_are_unavailable_and_leave_nothing_open(storage: Storage) -> None:
    gc.collect()  # what earlier tests have left could close its own meanwhile
    before = open_descriptors()
    refused = 0

    for count in range(10):
        storage.job_counts()
        with free_descriptors(count):
            try:
                waker = storage.open_waker()
            except StorageUnavailable:
                refused += 1
            else:
                assert waker is not None
                waker.close()
        storage.close()  # SQLite closes a file only when no other connection of the process has it locked
        assert open_descriptors() == before

    assert 0 < refused < 10


@pytest.mark.fault(84)
def test_a_connection_that_cannot_be_opened_is_unavailable_and_leaves_nothing_open(storage: Storage) -> None:
    storage.job_counts()
    storage.close()
    gc.collect()  # what earlier tests have left could close its own meanwhile
    before = open_descriptors()
    refused = 0

    for count in range(10):
        with free_descriptors(count):
            try:
                storage.job_counts()
            except StorageUnavailable:
                refused += 1
            storage.close()
        assert open_descriptors() == before

    assert 0 < refused < 10
