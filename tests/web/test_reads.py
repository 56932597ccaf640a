"""Tests: what is read for all browsers is read once, and only when there may be something new."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime

import pytest

from qml_mp.core.job import Job
from qml_mp.core.payload import JsonValue
from qml_mp.errors import StorageUnavailable
from qml_mp.storage.open import open_storage
from qml_mp.web import dashboard
from qml_mp.web.changes import Changes
from qml_mp.web.reads import Reads
from tests.web.asgi import Visitor


class Clock:
    """Stands still unless it is set."""

    def __init__(self) -> None:
        self.at = 1000.0

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.at, UTC)

    def monotonic(self) -> float:
        return self.at


class Question:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> int:
        self.asked += 1
        return self.asked


@pytest.fixture
def changes(file_url: str) -> Iterator[Changes]:
    """As if its listener ran."""
    with closing(open_storage(file_url)) as storage:
        changes = Changes(storage)
        changes.is_listening = True
        yield changes


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def reads(changes: Changes, clock: Clock) -> Reads:
    return Reads(changes, clock)


def test_an_answer_is_shared_until_something_is_committed(
    reads: Reads, changes: Changes, clock: Clock
) -> None:
    question = Question()

    first = [reads.get("jobs", question) for _ in range(50)]
    clock.at += 5
    unchanged = reads.get("jobs", question)
    changes.version += 1
    changed = reads.get("jobs", question)

    assert {*first, unchanged} == {1}
    assert changed == 2


def test_commits_without_an_end_have_it_read_once_in_its_interval(
    reads: Reads, changes: Changes, clock: Clock
) -> None:
    question = Question()

    for _ in range(100):
        clock.at += 0.1
        changes.version += 1
        reads.get("jobs", question, every_s=2.0)

    assert question.asked == 5


def test_questions_that_would_cost_too_much_together_are_asked_less_often(
    reads: Reads, changes: Changes, clock: Clock
) -> None:
    questions = {name: Question() for name in "abcdefghij"}

    for _ in range(100):
        clock.at += 0.1
        changes.version += 1
        for name, question in questions.items():
            reads.get(name, question, statements=3, every_s=1.0)

    sent = 3 * sum(question.asked for question in questions.values())
    assert all(question.asked for question in questions.values())
    assert sent <= 5 * 10 + 3 * len(questions)  # in ten seconds, and the first look of each


def test_a_read_within_which_the_process_stood_still_is_made_again_half_a_minute_later(
    reads: Reads, changes: Changes, clock: Clock
) -> None:
    question = Question()

    def stand_still() -> int:
        clock.at += 60
        return question()

    reads.get("jobs", stand_still)
    changes.version += 1
    clock.at += 29
    before = reads.get("jobs", question)  # the storage may be what was slow
    clock.at += 1

    assert (before, reads.get("jobs", question)) == (1, 2)


def test_who_has_changed_something_reads_it_at_once(reads: Reads, clock: Clock) -> None:
    question = Question()
    reads.get("jobs", question)

    reads.forget()

    assert reads.get("jobs", question) == 2


def test_while_nobody_listens_an_answer_is_only_as_old_as_its_interval(
    reads: Reads, changes: Changes, clock: Clock
) -> None:
    changes.is_listening = False
    question = Question()
    reads.get("jobs", question)
    clock.at += 1

    assert reads.get("jobs", question) == 2


def test_what_changes_without_a_commit_is_read_again_after_a_while(reads: Reads, clock: Clock) -> None:
    question = Question()
    reads.get("servers", question)
    clock.at += 11

    assert reads.get("servers", question) == 2


def test_there_is_nothing_newer_before_the_first_of_all_intervals_is_over(
    reads: Reads, changes: Changes, clock: Clock
) -> None:
    began = clock.at
    reads.get("jobs", Question(), every_s=4.0)
    reads.get("queues", Question(), every_s=6.0)

    changes.version += 1

    assert changes.new_at() == began + 4
    clock.at += 4
    reads.get("jobs", Question(), every_s=4.0)
    assert changes.new_at() == began + 6


def test_what_nobody_has_read_may_be_new_at_any_time(reads: Reads, changes: Changes, clock: Clock) -> None:
    unread = changes.new_at()
    reads.get("jobs", Question())
    clock.at += 20  # whoever looked has gone

    assert unread == changes.new_at() == float("-inf")


def test_a_storage_that_is_away_is_asked_once_a_second(reads: Reads, clock: Clock) -> None:
    asked = 0

    def fail() -> int:
        nonlocal asked
        asked += 1
        raise StorageUnavailable("It is away.")

    for _ in range(20):
        clock.at += 0.1
        with pytest.raises(StorageUnavailable, match="away"):
            reads.get("jobs", fail)

    assert asked == 2


def test_a_storage_that_is_silent_is_left_alone_for_a_second_after_it_was_given_up(
    reads: Reads, clock: Clock
) -> None:
    asked = 0

    def give_up() -> int:
        nonlocal asked
        asked += 1
        clock.at += 3
        raise StorageUnavailable("It is silent.")

    for _ in range(3):
        with pytest.raises(StorageUnavailable, match="silent"):
            reads.get("jobs", give_up)
        clock.at += 0.4

    assert asked == 1


def test_a_mistake_of_the_page_itself_is_not_kept(reads: Reads) -> None:
    with pytest.raises(ZeroDivisionError):
        reads.get("jobs", lambda: 1 // 0)

    assert reads.get("jobs", lambda: 7) == 7


class Answer:
    """Of which one can see that it is kept."""


def test_an_answer_that_nobody_has_asked_for_in_a_minute_is_not_kept(reads: Reads, clock: Clock) -> None:
    old = weakref.ref(reads.get("jobs", Answer))
    clock.at += 50
    newer = weakref.ref(reads.get("queues", Answer))

    clock.at += 50
    reads.get("servers", Question())
    gc.collect()

    assert (old() is None, newer() is None) == (True, False)


def test_of_jobs_that_were_looked_at_no_payload_stays_in_memory(file_url: str) -> None:
    payload: JsonValue = {"numbers": [*range(10_000, 110_000)]}
    with closing(open_storage(file_url)) as storage:
        visitor = Visitor(dashboard(storage))
        job_ids = [storage.enqueue(Job.new("crunch", payload)) for _ in range(4)]
        visitor.get(f"/jobs/{job_ids[0]}")  # what the first page loads is kept, and not meant
        gc.collect()
        tracemalloc.start()
        try:
            pages = [visitor.get(f"/jobs/{job_id}") for job_id in job_ids[1:]]
            gc.collect()
            kept_bytes, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    assert all("10000," in page.text for page in pages)
    assert kept_bytes < 2 * 2**20
