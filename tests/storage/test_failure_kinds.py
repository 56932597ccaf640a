"""Tests of the storage: failures counted by kind."""

from __future__ import annotations

from typing import Any

from qml_mp.core.outcome import ErrorInfo, Failure, Retry
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from qml_mp.storage.values import JobFilter
from tests.storage.conftest import Raw
from tests.storage.helpers import DONE, HOUR, KEEP, claim_new, present


def error(line: int = 1, *, type: str = "ValueError", message: str = "no") -> ErrorInfo:
    return ErrorInfo(type=type, message=message, traceback=f'  File "tasks.py", line {line}, in thumb\n')


def failed(storage: Storage, why: ErrorInfo, *, again: bool = False, **options: Any) -> str:
    claim = claim_new(storage, **options)
    storage.finish(claim, Retry(error=why, delay=HOUR) if again else Failure(error=why), retention=KEEP)
    return claim.job.id


def test_failures_are_counted_by_method_type_and_line(storage: Storage) -> None:
    failed(storage, error(1, message="a"))
    newest = failed(storage, error(1, message="b"), again=True)
    others = [failed(storage, error(2)), failed(storage, error(1, type="KeyError"))]
    storage.finish(claim_new(storage), DONE, retention=KEEP)

    first, *rest = storage.failure_kinds()

    assert (first.count, first.newest.id) == (2, newest)
    assert first.newest.last_error == error(1, message="b")
    assert first.last_at >= first.newest.created_at
    assert [kind.newest.id for kind in rest] == others[::-1]  # the newer one first
    assert [kind.count for kind in rest] == [1, 1]
    assert len(storage.failure_kinds(limit=2)) == 2


def test_what_a_job_was_given_is_no_part_of_the_kind_that_it_stands_for(storage: Storage) -> None:
    failed(storage, error(), metadata={"for": "ada"})

    for kinds in (storage.failure_kinds(), storage.failure_kinds(among=9)):
        assert [(kind.newest.payload, kind.newest.metadata) for kind in kinds] == [(None, {})]
        assert [kind.newest.last_error for kind in kinds] == [error()]


def test_the_newest_kinds_are_given_where_there_are_too_many(storage: Storage) -> None:
    for line in (1, 1, 2, 2):
        failed(storage, error(line))
    newest = failed(storage, error(3))

    most = storage.failure_kinds(limit=2)
    last = storage.failure_kinds(limit=2, newest_first=True)

    assert [kind.count for kind in most] == [2, 2]
    assert [kind.newest.id for kind in last] == [newest, most[0].newest.id]
    assert storage.failure_kinds(limit=2, among=9) == most
    assert storage.failure_kinds(limit=2, among=9, newest_first=True) == last


def test_kinds_can_be_limited_as_a_listing(storage: Storage) -> None:
    final, waiting = failed(storage, error(1)), failed(storage, error(1), again=True)

    def newest(**filters: Any) -> list[str]:
        return [kind.newest.id for kind in storage.failure_kinds(JobFilter(**filters))]

    assert newest(states=[StateName.FAILED]) == [final]
    assert newest(states=[StateName.AWAITING_RETRY, StateName.SUCCEEDED]) == [waiting]
    assert newest(states=[StateName.SUCCEEDED]) == []
    assert newest(queue=present(storage, final).queue) == [final]
    assert newest(method="none") == []
    assert newest(since=storage.now()) == []


def test_the_newest_is_one_that_was_asked_for_among_others_of_the_same_instant(storage: Storage) -> None:
    claims = [claim_new(storage) for _ in range(2)]
    outcomes = [(claim, Failure(error=error(1))) for claim in claims]
    storage.exchange(outcomes, fetch=None, limit=0, retention=KEEP)

    for claim in claims:
        [kind] = storage.failure_kinds(JobFilter(queue=claim.job.queue))
        assert (kind.count, kind.newest.id) == (1, claim.job.id)


def test_failures_that_another_program_has_written_are_one_kind(storage: Storage, raw: Raw) -> None:
    now = raw.instant(storage.now())
    for method, last_error in (("a", None), ("b" * 3000, "Odd")):
        raw.add_job(state="failed", method=method, last_error_type=last_error, finished_at=now)

    kinds = storage.failure_kinds()

    assert [kind.count for kind in kinds] == [2]


def test_an_error_of_any_size_is_counted(storage: Storage) -> None:
    failed(storage, error(1, type="E" * 5000))

    assert [kind.count for kind in storage.failure_kinds()] == [1]
