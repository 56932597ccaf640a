"""Tests of the PostgreSQL backend: threads of one process, of which one waits for a row of somebody else."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest

from qml_mp.core.job import Job
from qml_mp.storage.store import Storage
from qml_mp.storage.values import CancelResult
from tests.storage.conftest import Raw
from tests.storage.helpers import KEEP, WAITING, open_patiently
from tests.until import wait_until

pytestmark = pytest.mark.parametrize("url", ["postgres"], indirect=True)


def test_a_thread_that_waits_for_a_row_holds_up_no_other_storage_of_its_process(
    storage: Storage, url: str, raw: Raw, connect: Callable[[], Any]
) -> None:
    job_id = storage.enqueue(Job.new("work"))
    somebody, name = connect(), f"waiter-{uuid.uuid4()}"
    somebody.execute(f"SELECT 1 FROM {raw.name('jobs')} WHERE id = %s FOR UPDATE", [job_id])
    with closing(open_patiently(url, application_name=name)) as waiter:
        with ThreadPoolExecutor(1) as thread:
            waits = thread.submit(waiter.request_cancel, job_id, reason="not wanted", retention=KEEP)
            wait_until(lambda: raw.run(WAITING, name), what="a session that waits for the row")

            storage.enqueue(Job.new("work"))
            has_waited = not waits.done()
            somebody.rollback()

        assert has_waited
        assert waits.result() is CancelResult.DELETED
