"""Tests: outcomes that wait for company are all written, whatever storage says to one of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

import qml_mp.child.outcomes
from qml_mp.child.outcomes import Outcomes
from qml_mp.core.history import Ending, tally_of
from qml_mp.core.job import Claim, ClaimKey, Job
from qml_mp.core.outcome import Extras, Failure, Outcome, Release, RetryWhenKilled, Success
from qml_mp.core.payload import MAX_PAYLOAD_BYTES
from qml_mp.core.state import StateName
from qml_mp.errors import OutcomeRefused, StorageError, StorageUnavailable, StorageUnreachable
from qml_mp.ipc.ended import REGION_BYTES, EndedOutcomes, EndedTable
from qml_mp.processing.program import Execution, Terms
from qml_mp.processing.retry import RetryPolicy
from qml_mp.storage.values import Finished
from qml_mp.supervisor.workers.totals import EndTotals

DONE = Success(result=None, duration=timedelta())
TERMS = Terms(
    method="m",
    call=None,
    policy=RetryPolicy.none(),
    limit=timedelta(seconds=1),
    max_crashes=None,
    max_retries=None,
    max_attempts=1,
    when_killed=RetryWhenKilled(),
)


@dataclass(kw_only=True)
class Worker:
    """What is around the outcomes: a storage that answers as a test wants, and what came of it."""

    answer: Callable[[Sequence[tuple[Claim, Outcome]], int], None] = lambda *_: None
    written: dict[ClaimKey, Outcome] = field(default_factory=dict)
    limits: list[int] = field(default_factory=list)
    """Of the exchanges."""
    pauses: int = 0
    orphaned: bool = False
    told: dict[ClaimKey, bool] = field(default_factory=dict)
    written_before: set[ClaimKey] = field(default_factory=set)
    """What the storage finds written already."""
    lost: set[ClaimKey] = field(default_factory=set)
    """Claims that are others' by now."""
    recorded: dict[ClaimKey, Ending] = field(default_factory=dict)
    """What storage knows of these."""
    looks: list[int] = field(default_factory=list)
    """For how many it was asked that."""

    def exchange(self, finished: Sequence[tuple[Claim, Outcome]], *, limit: int) -> tuple[Finished, ...]:
        self.limits.append(limit)
        self.answer(finished, limit)
        self.written.update({claim.key: outcome for claim, outcome in finished})
        return tuple(
            Finished(accepted=False, state=None)
            if claim.key in self.lost
            else Finished(
                accepted=True, state=StateName.SUCCEEDED, was_written=claim.key in self.written_before
            )
            for claim, _ in finished
        )

    can_send: bool = True
    sent: list[tuple[Claim, Outcome]] = field(default_factory=list)

    def send(
        self, finished: list[tuple[Claim, Outcome]], *, in_hand: ClaimKey, limit: int, patience_s: float
    ) -> bool:
        self.limits.append(limit)
        self.sent = finished
        return self.can_send

    def receive(self) -> tuple[Finished, ...]:
        limit = self.limits.pop()
        return self.exchange(self.sent, limit=limit)

    @property
    def tries(self) -> Worker:
        return self

    def worked(self) -> None: ...

    def failed(self, what: str, error: Exception) -> float:
        self.pauses += 1
        return 0.0

    def wait(self, seconds: float) -> None: ...

    def before_storage(self) -> None: ...

    def check_transaction(self, *, before_exit: Callable[[], None]) -> None: ...

    def recorded_endings(self, keys: Collection[ClaimKey]) -> Mapping[ClaimKey, Ending]:
        self.looks.append(len(keys))
        return {key: self.recorded[key] for key in keys if key in self.recorded}

    def finished(self, execution: Execution, finished: Finished, *, is_told: bool) -> None:
        self.told[execution.claim.key] = is_told


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
def shared() -> EndedOutcomes:
    return EndedTable(1).region(0)


@pytest.fixture
def outcomes(worker: Worker, shared: EndedOutcomes, monkeypatch: pytest.MonkeyPatch) -> Outcomes:
    """No time passes: however slow this process is, they have waited for none."""
    monkeypatch.setattr(qml_mp.child.outcomes, "time", SimpleNamespace(monotonic=lambda: 1000.0))
    stub = cast(Any, worker)
    return Outcomes(stub, shared=shared, changes=stub, commands=stub, hygiene=stub)


def executions(count: int) -> list[Execution]:
    jobs = [replace(Job.new("m", now=datetime.now(UTC)), claim_seq=1) for _ in range(count)]
    return [Execution(claim=Claim(job=job, worker_id="w", server_id="s"), terms=TERMS) for job in jobs]


def add(outcomes: Outcomes, count: int) -> list[ClaimKey]:
    done = executions(count)
    for execution in done:
        outcomes.add(execution, DONE, ran_s=0.0)
    return [execution.claim.key for execution in done]


def send(outcomes: Outcomes, *, limit: int = 1) -> None:
    (in_hand,) = executions(1)
    outcomes.send(in_hand=in_hand.claim.key, limit=limit, patience_s=0.1)


def refuse(*keys: ClaimKey, always: bool = False) -> Callable[[Sequence[tuple[Claim, Outcome]], int], None]:
    """Refuse the successes of these claims; with `always` whatever comes of them."""

    def answer(finished: Sequence[tuple[Claim, Outcome]], _: int) -> None:
        for claim, outcome in finished:
            if claim.key in keys and (always or isinstance(outcome, Success)):
                raise OutcomeRefused("no", job_id=claim.key.job_id, claim_seq=claim.key.claim_seq)

    return answer


def test_all_that_wait_are_written_at_once_with_the_next_claims(
    outcomes: Outcomes, worker: Worker, shared: EndedOutcomes
) -> None:
    keys = add(outcomes, 5)
    assert list(shared.read()[1]) == keys

    assert outcomes.write(limit=7)

    assert (list(worker.written), worker.limits) == (keys, [7])
    assert not shared.has_unwritten
    assert not outcomes


def test_what_somebody_else_has_written_in_the_same_moment_is_told_by_him(
    outcomes: Outcomes, worker: Worker
) -> None:
    (key,) = add(outcomes, 1)
    worker.written_before = {key}

    assert outcomes.write(limit=0)

    assert worker.told == {key: True}


def test_what_was_written_by_a_try_whose_reply_was_lost_is_told(outcomes: Outcomes, worker: Worker) -> None:
    def lose_the_reply(*_: object) -> None:
        worker.answer, worker.written_before = lambda *_: None, {key}
        raise StorageUnavailable("gone")

    (key,) = add(outcomes, 1)
    worker.answer = lose_the_reply

    assert outcomes.write(limit=0)

    assert (worker.pauses, worker.told) == (1, {key: False})


def test_what_came_of_lost_ones_is_asked_at_once_and_only_what_was_written_is_counted(
    outcomes: Outcomes, worker: Worker, shared: EndedOutcomes
) -> None:
    def lose_the_reply(*_: object) -> None:
        worker.answer, worker.lost = lambda *_: None, {*keys[1:]}
        raise StorageUnreachable("gone")

    totals = EndTotals()
    totals.follow("w", shared.counts)
    keys = add(outcomes, 4)
    worker.answer = lose_the_reply
    worker.recorded = {keys[1]: Ending.SUCCEEDED, keys[2]: Ending.RETRIED}

    assert outcomes.write(limit=0)

    totals.look()
    counted = {key.ending: tally_of(numbers).count for key, numbers in totals.numbers.items()}
    assert counted == {Ending.SUCCEEDED: 2, Ending.RETRIED: 1}
    assert worker.looks == [3]


def test_one_that_is_refused_fails_and_the_others_are_written_as_they_came(
    outcomes: Outcomes, worker: Worker
) -> None:
    keys = add(outcomes, 5)
    worker.answer = refuse(keys[1], keys[3])

    assert outcomes.write(limit=7)

    kinds = [type(worker.written[key]) for key in keys]
    assert kinds == [Success, Failure, Success, Failure, Success]
    assert worker.limits[1:] == [0] * (len(worker.limits) - 1)  # no claim once something has gone wrong
    assert worker.pauses == 0


def test_what_stands_for_a_refused_one_is_what_a_supervisor_finds(
    outcomes: Outcomes, worker: Worker, shared: EndedOutcomes
) -> None:
    key, other = add(outcomes, 2)
    found: list[type[Outcome]] = []

    def answer(finished: Sequence[tuple[Claim, Outcome]], limit: int) -> None:
        found.append(type(shared.read()[1][key]))
        refuse(key)(finished, limit)

    worker.answer = answer
    outcomes.write(limit=0)

    assert found == [Success, Failure]
    assert isinstance(worker.written[other], Success)


def test_one_that_is_always_refused_keeps_only_itself(outcomes: Outcomes, worker: Worker) -> None:
    keys = add(outcomes, 4)
    worker.answer = refuse(keys[2], always=True)
    pauses_until_given_up = 3

    def wait(_: float) -> None:
        worker.orphaned = worker.pauses >= pauses_until_given_up

    worker.wait = wait  # type: ignore[assignment, method-assign]

    assert not outcomes.write(limit=1)

    assert set(worker.written) == {*keys} - {keys[2]}
    assert len(outcomes) == 1


def test_an_error_of_the_claim_keeps_no_outcome(outcomes: Outcomes, worker: Worker) -> None:
    keys = add(outcomes, 3)

    def answer(_: object, limit: int) -> None:
        if limit:
            raise StorageError("no claim today")

    worker.answer = answer

    assert outcomes.write(limit=9)
    assert (list(worker.written), worker.limits, worker.pauses) == (keys, [9, 0], 0)


def test_a_row_that_somebody_has_locked_keeps_only_itself(outcomes: Outcomes, worker: Worker) -> None:
    keys = add(outcomes, 4)
    written_beside_it = set[ClaimKey]()

    def answer(finished: Sequence[tuple[Claim, Outcome]], _: int) -> None:
        if keys[1] in {claim.key for claim, _ in finished} and worker.pauses < 3:
            written_beside_it.update(worker.written)
            raise StorageUnavailable("a lock")

    worker.answer = answer

    assert outcomes.write(limit=9)

    assert written_beside_it == {*keys} - {keys[1]}
    assert {*worker.written} == {*keys}


def test_where_each_waits_for_a_lock_no_more_than_two_are_tried_by_themselves(
    outcomes: Outcomes, worker: Worker
) -> None:
    add(outcomes, 10)

    def answer(*_: object) -> None:
        if worker.pauses < 3:
            raise StorageUnavailable("a lock")

    worker.answer = answer

    assert outcomes.write(limit=9)

    # With a claim; then all of them, and two alone.
    assert worker.limits == [9, *[0] * 3, *[0] * 3, 0]


def test_an_outage_is_waited_for(outcomes: Outcomes, worker: Worker) -> None:
    keys = add(outcomes, 3)
    errors = [StorageUnreachable("away")] * 4

    def answer(*_: object) -> None:
        if errors:
            raise errors.pop()

    worker.answer = answer

    assert outcomes.write(limit=9)
    assert (list(worker.written), worker.pauses) == (keys, 4)


def test_of_what_the_supervisor_has_written_the_worker_tells_nothing(
    outcomes: Outcomes, worker: Worker, shared: EndedOutcomes
) -> None:
    first = add(outcomes, 2)
    shared.note_written(shared.read()[0])
    worker.written_before = set(first)
    later = add(outcomes, 1)

    outcomes.write(limit=0)

    assert worker.told == {first[0]: True, first[1]: True, later[0]: False}


def test_that_a_success_was_lost_is_told_though_the_supervisor_has_noted_it(
    outcomes: Outcomes, worker: Worker, shared: EndedOutcomes
) -> None:
    (key,) = add(outcomes, 1)
    shared.note_written(shared.read()[0])  # it has found no such claim
    worker.lost = {key}

    outcomes.write(limit=0)

    assert worker.told == {key: False}


def test_what_the_supervisor_has_found_written_by_the_worker_the_worker_tells(
    outcomes: Outcomes, worker: Worker, shared: EndedOutcomes
) -> None:
    (key,) = add(outcomes, 1)
    worker.answer = lambda *_: shared.note_written(shared.read()[0])  # between our commit and its reply

    outcomes.write(limit=0)

    assert worker.told == {key: False}


@pytest.mark.parametrize(
    "outcome",
    [Release(reason="told"), Success(result="x" * REGION_BYTES, duration=timedelta())],
    ids=["no success", "too large to be kept"],
)
def test_only_a_success_that_is_kept_waits_for_company(outcomes: Outcomes, outcome: Outcome) -> None:
    add(outcomes, 1)
    assert not outcomes.must_go()
    assert outcomes.must_go(within_s=None)
    assert outcomes.must_go(within_s=0.06)

    (execution,) = executions(1)
    outcomes.add(execution, outcome, ran_s=0.0)

    assert outcomes.must_go()


def test_no_job_is_begun_before_there_is_room_for_its_result_however_large(
    outcomes: Outcomes, shared: EndedOutcomes
) -> None:
    result = "x" * (MAX_PAYLOAD_BYTES - 2)
    (execution,) = executions(1)
    outcomes.add(execution, Success(result=result, duration=timedelta()), ran_s=0.0)

    assert execution.claim.key in shared.read()[1]
    assert outcomes.must_go(within_s=0.0)
    assert not outcomes.can_be_sent


def test_what_is_sent_is_unwritten_until_its_reply_is_read(
    outcomes: Outcomes, worker: Worker, shared: EndedOutcomes
) -> None:
    sent = add(outcomes, 3)
    send(outcomes, limit=7)
    [between] = add(outcomes, 1)
    assert list(shared.read()[1]) == [*sent, between]
    assert worker.told == {}

    outcomes.receive()

    assert (list(worker.written), worker.limits) == (sent, [7])
    assert worker.told == dict.fromkeys(sent, False)
    assert list(shared.read()[1]) == [between]
    assert len(outcomes) == 1
    assert not outcomes.must_go(within_s=0.04)


@pytest.mark.parametrize("error", [StorageUnavailable("gone"), StorageError("no")])
def test_what_is_sent_and_whose_reply_is_lost_is_written_anew_and_told_once(
    outcomes: Outcomes, worker: Worker, shared: EndedOutcomes, error: StorageError
) -> None:
    def lose_the_reply(*_: object) -> None:
        worker.answer, worker.written_before = lambda *_: None, set(sent)
        raise error

    sent = add(outcomes, 2)
    send(outcomes)
    worker.answer = lose_the_reply
    [between] = add(outcomes, 1)
    outcomes.receive()
    assert list(shared.read()[1]) == [*sent, between]

    assert outcomes.write(limit=0)

    assert list(worker.written) == [*sent, between]
    assert worker.told == dict.fromkeys([*sent, between], False)
    assert not outcomes


def test_one_that_is_refused_when_it_was_sent_fails_and_the_others_are_written(
    outcomes: Outcomes, worker: Worker
) -> None:
    keys = add(outcomes, 3)
    send(outcomes)
    worker.answer = refuse(keys[1])
    keys += add(outcomes, 1)

    outcomes.receive()
    outcomes.write(limit=0)

    assert [type(worker.written[key]) for key in keys] == [Success, Failure, Success, Success]


def test_what_could_not_be_sent_is_written(outcomes: Outcomes, worker: Worker) -> None:
    keys = add(outcomes, 2)
    worker.can_send = False

    send(outcomes)

    assert not outcomes.are_sent
    assert outcomes.write(limit=0)
    assert list(worker.written) == keys


FOLLOWED = Success(result=None, duration=timedelta(), extras=Extras(follow_ups=(Job.new("next"),)))


@pytest.mark.parametrize(
    "outcome",
    [Release(reason="told"), FOLLOWED, Success(result="x" * REGION_BYTES, duration=timedelta())],
    ids=["no success", "with a job that follows", "too large to be kept"],
)
def test_only_plain_successes_that_are_kept_are_sent(outcomes: Outcomes, outcome: Outcome) -> None:
    add(outcomes, 1)
    assert outcomes.can_be_sent

    (execution,) = executions(1)
    outcomes.add(execution, outcome, ran_s=0.0)

    assert not outcomes.can_be_sent
