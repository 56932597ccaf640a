"""Tests: the lines of the log about facts."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import timedelta

import pytest

from qml_mp.core.answers import ReloadedCode
from qml_mp.core.job import Job
from qml_mp.core.outcome import (
    AttemptKind,
    Cancelled,
    Crash,
    ErrorInfo,
    Failure,
    Outcome,
    ProcessFacts,
    Release,
    Retry,
)
from qml_mp.core.recurring import Followed
from qml_mp.core.state import StateName
from qml_mp.errors import StorageUnavailable
from qml_mp.events.claims import ended
from qml_mp.events.facts import (
    CancelStarted,
    ClaimFacts,
    ClaimFound,
    ClaimLost,
    ClaimReclaimed,
    Event,
    JobsReclaimed,
    ServerDeclaredDead,
    ServerReloaded,
    ServerStopped,
    ServerStopping,
    StorageBack,
    StorageLost,
    TemplateDisabled,
    TemplateFired,
    TemplatesFollowed,
    TryFailed,
    TryWorked,
    WorkerReady,
    WorkersCannotBoot,
    WorkerStarted,
    WorkerStopped,
)
from qml_mp.events.log import log_event
from qml_mp.storage.row_change import applied, row_change
from qml_mp.storage.values import BY_DEFAULT
from tests.unit.processor_case import NOW, claim_of, keys_of

CLAIM = claim_of({"password": "hunter2"}, failures=1, crashes=1)
BAD = ErrorInfo(type="ValueError", message="bad", traceback='Traceback:\n  File "x.py"\nValueError: bad\n')
LATE = ErrorInfo(type="JobTimeout", message="The attempt exceeded its time limit of 2s.")
DEAD = ErrorInfo(type="WorkerDied", message="The worker process (pid 7) was killed by SIGKILL.")
TRACE = '\nTraceback:\n  File "x.py"\nValueError: bad'
SOON = timedelta(seconds=2.1)


def after(outcome: Outcome) -> Job:
    return applied(CLAIM.job, row_change(CLAIM.job, outcome, BY_DEFAULT), now=NOW)


def told(outcome: Outcome, caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    event = ended(CLAIM, after(outcome), attempts=5, crashes=3)
    assert event is not None
    with caplog.at_level(logging.DEBUG):
        log_event(event)
    start = f"job {CLAIM.job.id} (f): "
    assert all(record.getMessage().startswith(start) for record in caplog.records)
    return [(record.levelname, record.getMessage().removeprefix(start)) for record in caplog.records]


@pytest.mark.parametrize(
    ("outcome", "level", "line"),
    [
        (
            Retry(error=BAD, delay=SOON),
            "WARNING",
            f"attempt 2 of 5 failed, retry in 2.1s: ValueError: bad{TRACE}",
        ),
        (
            Retry(error=LATE, delay=timedelta(0), kind=AttemptKind.TIMEOUT),
            "WARNING",
            "attempt 2 of 5 passed its time limit, retry at once: "
            "JobTimeout: The attempt exceeded its time limit of 2s.",
        ),
        (Failure(error=BAD), "ERROR", f"failed for good at attempt 2 of 5: ValueError: bad{TRACE}"),
        (
            Failure(error=LATE, kind=AttemptKind.TIMEOUT),
            "ERROR",
            "failed for good at attempt 2 of 5: JobTimeout: The attempt exceeded its time limit of 2s.",
        ),
        (
            Crash(error=DEAD, rerun_after=timedelta(0)),
            "WARNING",
            "crash 2 of 3, runs again at once: "
            "WorkerDied: The worker process (pid 7) was killed by SIGKILL.",
        ),
        (
            Crash(error=DEAD, rerun_after=SOON),
            "WARNING",
            "crash 2 of 3, runs again in 2.1s: "
            "WorkerDied: The worker process (pid 7) was killed by SIGKILL.",
        ),
        (
            Crash(error=replace(DEAD, type="WorkerCrashed"), rerun_after=None),
            "ERROR",
            "failed for good at crash 2 of 3: "
            "WorkerCrashed: The worker process (pid 7) was killed by SIGKILL.",
        ),
        (Cancelled(reason="not wanted"), "INFO", "cancelled: not wanted"),
        (Release(reason="shutdown"), "INFO", "given back, uncharged"),
    ],
)  # fmt: skip
def test_the_line_says_what_happened_and_what_happens_next(
    outcome: Outcome, level: str, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert told(outcome, caplog) == [(level, line)]


def test_the_record_carries_its_keys_and_never_the_payload(caplog: pytest.LogCaptureFixture) -> None:
    told(Failure(error=BAD), caplog)

    [record] = caplog.records
    fields = vars(record)
    assert (fields["job_id"], fields["worker_id"], fields["attempt"], fields["method"]) == (
        CLAIM.job.id, "w-1", 3, "f",
    )  # fmt: skip
    assert fields["traceback"] == TRACE.strip()
    assert "hunter2" not in str(fields)


def test_a_long_error_is_cut_to_its_head_and_the_tail_of_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    error = ErrorInfo(type="E", message="m" * 9_000, traceback="head" + "t" * 60_000 + "tail")

    [(_, line)] = told(Failure(error=error), caplog)

    assert len(line) < 5_200
    assert line.endswith("tail")


def test_a_budget_that_is_not_known_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    event = ended(CLAIM, after(Retry(error=LATE, delay=SOON)))
    assert event is not None
    log_event(event)

    assert "attempt 2 failed" not in caplog.text
    assert ": attempt 2 passed its time limit, retry in 2.1s:" in caplog.text


ABOUT = ClaimFacts.of(CLAIM)
KILLED = WorkerStopped(
    worker_id="w-1",
    number=2,
    pid=7,
    process=ProcessFacts(pid=7, signal=9),
    how="was killed by SIGKILL",
    was_orderly=False,
)
REFUSED = StorageUnavailable("refused")
NOTHING = Followed(added=(), changed=(), removed=(), refused={})


@pytest.mark.parametrize(
    ("event", "level", "line"),
    [
        (
            ClaimFound(claim=ABOUT),
            "INFO",
            f"Found the claim of job {ABOUT.job_id}, whose reply had been lost",
        ),
        (
            ClaimLost(claim=ABOUT),
            "WARNING",
            f"The claim of job {ABOUT.job_id} was lost; its outcome was not written",
        ),
        (
            ClaimReclaimed(claim=ABOUT, state=StateName.ENQUEUED),
            "WARNING",
            f"Job {ABOUT.job_id} of worker w-1, which is gone, is enqueued",
        ),
        (
            ClaimLost(claim=ABOUT, dead_worker=KILLED),
            "WARNING",
            f"Job {ABOUT.job_id} of worker 2 (pid 7), which was killed by SIGKILL, is somebody else's now",
        ),
        (CancelStarted(claim=ABOUT), "INFO", f"Cancelling job {ABOUT.job_id}"),
        (
            TemplateFired(template_id="t", job_id="j", method="f", queue="default"),
            "INFO",
            "Recurring template t has fired: job j (f) is enqueued",
        ),
        (
            TemplatesFollowed(
                followed=Followed(added=("two",), changed=("digest",), removed=("old",), refused={}), kept={}
            ),
            "INFO",
            "recurring: +two ~digest -old",
        ),
        (
            TemplatesFollowed(followed=replace(NOTHING, over=("once",)), kept={}),
            "INFO",
            "Recurring template once never fires again: its last firing has passed",
        ),
        (
            TemplatesFollowed(followed=replace(NOTHING, lacking={"two": "Europe/Berlni"}), kept={}),
            "WARNING",
            "Recurring template two: the zone 'Europe/Berlni' is not known here, so that it fires only on "
            "machines that know it. Did you mean Europe/Berlin?",
        ),
        (
            TemplatesFollowed(followed=NOTHING, kept={}, misfits={"two": "send: the argument 'day' is none"}),
            "WARNING",
            "Recurring template two does not fit its function: send: the argument 'day' is none",
        ),
        (
            TemplatesFollowed(followed=replace(NOTHING, refused={"digest": "shop"}), kept={}),
            "ERROR",
            "Recurring template digest is left as the app shop has made it. Give that of the code another "
            "id=, or end the stored one with `qml-mp recurring remove`: that of the code is stored some "
            "seconds later",
        ),
        (
            TemplatesFollowed(followed=NOTHING, kept={"old": "tasks:app in /1"}),
            "INFO",
            "Recurring template old stays, which tasks:app in /1 has declared and this code does not. If "
            "that is an older release of this app, `qml-mp recurring remove` ends it, and QmlApp(name=...) "
            "spares you that; if it is another app, the template is in use: give each app a name",
        ),
        (
            TemplatesFollowed(followed=replace(NOTHING, taken={"digest": "tasks:app in /1"}), kept={}),
            "INFO",
            "Recurring template digest was declared by tasks:app in /1 and is this app's now. If that is "
            "another app and no older release of this one, give each a QmlApp(name=...), or they take it "
            "from each other",
        ),
        (
            TemplateDisabled(template_id="t", reason="The queue 'a b' is none."),
            "ERROR",
            "Recurring template t is disabled: The queue 'a b' is none.",
        ),
        (WorkerStarted(worker_id="w-1", number=2, pid=7), "INFO", "Worker 2 started (pid 7)"),
        (
            WorkerReady(worker_id="w-1", number=2, pid=7, replaces=None),
            "INFO",
            "Worker 2 is ready (pid 7)",
        ),
        (KILLED, "WARNING", "Worker 2 stopped (pid 7): it was killed by SIGKILL"),
        (
            replace(KILLED, how="left as told", was_orderly=True),
            "INFO",
            "Worker 2 stopped (pid 7): it left as told",
        ),
        (
            WorkersCannotBoot(error="E", old_ones_stay=True),
            "ERROR",
            "A new worker cannot boot, so the old ones stay and work on:\nE",
        ),
        (
            WorkersCannotBoot(error="E", old_ones_stay=False),
            "ERROR",
            "Workers cannot boot; trying again, ever more slowly:\nE",
        ),
        (
            JobsReclaimed(jobs=3, server_id=None),
            "WARNING",
            "Stranded jobs that are enqueued again, or ended as was asked: 3",
        ),
        (
            JobsReclaimed(jobs=3, server_id="s"),
            "WARNING",
            "Server s is dead; jobs of it that are enqueued again, or ended as was asked: 3",
        ),
        (
            JobsReclaimed(jobs=3, server_id="s", was_silent=True),
            "WARNING",
            "Server s is silent; jobs of it that are enqueued again, or ended as was asked: 3",
        ),
        (
            ServerReloaded(queues=("a", "b"), methods=("f",)),
            "INFO",
            "Replacing the workers one by one. Queues: a, b. Methods: f",
        ),
        (
            ServerReloaded(code=ReloadedCode.OF_START),
            "INFO",
            "Replacing the workers one by one; they run the code that was loaded at the start; restart the "
            "server to change it",
        ),
        (
            ServerReloaded(queues=("a",), methods=("f",), code=ReloadedCode.CELLS_OF_START),
            "INFO",
            "Replacing the workers one by one; they import modules anew, and run the cells as they were at "
            "the start; restart the server to change those. Queues: a. Methods: f",
        ),
        (ServerStopping(why="SIGTERM", allowed=SOON), "INFO", "Stopping (SIGTERM): running jobs have 2.1s"),
        (ServerStopping(why="SIGQUIT", allowed=None), "WARNING", "Stopping now (SIGQUIT)"),
        (ServerStopped(), "INFO", "Stopped"),
        (
            TryFailed(what="The cleanup loop failed", error=REFUSED, retry_in=SOON, is_repeated=False),
            "WARNING",
            "The cleanup loop failed and is tried again in 2.1 s: refused",
        ),
        (
            StorageLost(
                what="Cannot claim a job", error=REFUSED, retry_in=SOON, is_repeated=True, worker_id="w"
            ),
            "DEBUG",
            "Cannot claim a job, will try again: refused",
        ),
        (TryWorked(what="The cleanup loop works again"), "INFO", "The cleanup loop works again"),
        (StorageBack(), "INFO", "Storage answers again"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_fact_that_has_a_line_has_this_one(
    event: Event, level: str, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        log_event(event)

    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [(level, line)]


@pytest.mark.parametrize(
    "event",
    [
        ClaimFound(claim=ABOUT),
        ClaimLost(claim=ABOUT),
        ClaimLost(claim=ABOUT, dead_worker=KILLED),
        ClaimReclaimed(claim=ABOUT, state=StateName.ENQUEUED),
    ],
    ids=["found", "lost", "lost by a dead worker", "reclaimed"],
)
def test_a_record_about_a_claim_has_its_number_beside_that_of_the_attempt(
    event: Event, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        log_event(event)

    [record] = caplog.records
    assert (*keys_of(record), vars(record)["claim_seq"]) == (CLAIM.job.id, "f", 3, "w-1", 1)


def test_a_server_that_was_declared_dead_says_under_which_name_it_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log_event(ServerDeclaredDead(server_id="s#1", goes_on_as="s#2"))

    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("ERROR", "A peer declared this server dead; its jobs are others' now"),
        ("WARNING", "This server goes on as s#2"),
    ]


def test_only_what_no_storage_explains_has_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    for error in (REFUSED, ZeroDivisionError("x")):
        log_event(TryFailed(what="The cleanup loop failed", error=error, retry_in=SOON, is_repeated=False))

    assert [record.exc_info is not None for record in caplog.records] == [False, True]
