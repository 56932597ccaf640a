"""Tests of the storage: no retry, so many, and "the policy decides" are three things in one column."""

from __future__ import annotations

import pytest

from qml_mp.storage.store import Storage
from tests.storage.conftest import Raw
from tests.storage.helpers import claim_new, present


@pytest.mark.parametrize("max_retries", [None, 0, 1, 2**31 - 1])
def test_max_retries_is_read_back_as_it_was_written(storage: Storage, max_retries: int | None) -> None:
    claim = claim_new(storage, max_retries=max_retries)

    assert claim.job.max_retries == max_retries
    assert present(storage, claim).max_retries == max_retries


@pytest.mark.parametrize(("column", "meant"), [(0, None), (-1, 0), (3, 3), (-7, None)])
def test_a_row_of_another_program_means_what_it_does_in_the_reference(
    storage: Storage, raw: Raw, column: int, meant: int | None
) -> None:
    job_id = raw.add_job(max_retries=column)

    assert present(storage, job_id).max_retries == meant
