"""Tests: three supervisors' loops fire templates of every policy through both changes of summer time, by a
clock that runs fast and is set to and fro, while they are killed, and all of them at times."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg

from qml_mp.core.job import Job
from qml_mp.core.recurring import RecurringJob
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from qml_mp.storage.values import JobFilter
from tests.nightly.firing_judge import Made, Moment, firing_times, judge_firings
from tests.nightly.firing_loops import LOOPS, SharedClock
from tests.nightly.report import Row
from tests.nightly.scenario import Task
from tests.processes.harness import ROOT, wait_until
from tests.storage.helpers import in_schema
from tests.warm import SOCKET, Process, launch, warm_python

HOUR = timedelta(hours=1)
BEGIN = datetime(2025, 3, 30, tzinfo=UTC)
"""An hour before the clocks of Berlin go forward."""
SECOND_HALF = datetime(2025, 4, 5, 15, tzinfo=UTC)
"""An hour before those of Sydney go back, and twelve before those of Santiago do."""

_STEPPED = (
    ("fire_once-5", "*/5 * * * *", "UTC", "fire_once"),
    ("catch_up-20", "*/20 * * * *", "Europe/Berlin", "catch_up(1000)"),
    ("skip-15", "*/15 * * * *", "Australia/Sydney", "skip"),
    ("catch_up-hourly", "10,40 * * * *", "Australia/Lord_Howe", "catch_up(1000)"),
    ("catch_up-daily", "30 2 * * *", "Europe/Berlin", "catch_up(1000)"),
    ("catch_up-nightly", "15 1-3 * * *", "Australia/Sydney", "catch_up(1000)"),
    ("skip-2h", "30 0-23/2 * * *", "Europe/Berlin", "skip"),
    ("fire_once-daily", "45 2 * * *", "Australia/Sydney", "fire_once"),
    ("fire_once-3h", "0 */3 * * *", "America/Santiago", "fire_once"),
)
_OVERLAPPING = (
    ("skip-5", "*/5 * * * *", "UTC", "skip"),
    ("queue-5", "*/5 * * * *", "Europe/Berlin", "queue"),
    ("queue-20", "*/20 * * * *", "Australia/Sydney", "queue"),
    ("skip-daily", "30 2 * * *", "Europe/Berlin", "skip"),
    ("queue-nightly", "15 1-3 * * *", "Australia/Sydney", "queue"),
)

# In a trigger: whether the template of the new job has one that has not ended.
_UNFINISHED = """
    EXISTS (SELECT 1 FROM {} AS j WHERE j.recurring_id = NEW.recurring_id
            AND j.state IN ('enqueued', 'scheduled', 'processing', 'awaiting_retry'))
"""
_NO_OVERLAP = """
    CREATE FUNCTION {schema}.refuse_overlap() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF {condition} THEN RAISE EXCEPTION 'jobs overlap'; END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER overlap BEFORE INSERT ON {schema}.jobs
        FOR EACH ROW EXECUTE FUNCTION {schema}.refuse_overlap()
"""
_CLOCK = """
    CREATE SCHEMA {clock};
    CREATE TABLE {clock}.clock (at timestamptz NOT NULL);
    INSERT INTO {clock}.clock VALUES (pg_catalog.now());
    CREATE FUNCTION {clock}.now() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT at FROM {clock}.clock';
    CREATE FUNCTION {clock}.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
        AS 'SELECT at FROM {clock}.clock'
"""


def run_firings(task: Task) -> Row:
    """Half of the firings of templates whose jobs may overlap, with steps of the clock; half of others."""
    rehearsals = []
    for number, templates in enumerate((stepped_templates(), overlapping_templates())):
        with _quick_starts(), fresh_stage(task.backend, task.postgres_url) as stage:
            rehearsal = Rehearsal(stage, templates, random.Random(f"{task.seed}/{number}"))
            rehearsal.run(task.count // 2)
            rehearsals.append(rehearsal)
    kinds = [f"{rehearsal.kills} kills, {rehearsal.outages} outages, {rehearsal.steps} steps of the clock, "
             f"{rehearsal.jobs} jobs" for rehearsal in rehearsals]  # fmt: skip
    return task.row(
        done=sum(rehearsal.firings for rehearsal in rehearsals),
        kills=sum(rehearsal.kills for rehearsal in rehearsals),
        figures="; ".join(kinds),
        broken=tuple(problem for rehearsal in rehearsals for problem in rehearsal.problems),
    )


def _quick_starts() -> AbstractContextManager[None]:
    """The tests have a warm Python already; a storm by itself does not."""
    return nullcontext() if SOCKET in os.environ else warm_python()


def stepped_templates() -> list[RecurringJob]:
    return [
        RecurringJob.new(name, cron, "work", tz=tz, misfire=misfire, now=BEGIN)
        for name, cron, tz, misfire in _STEPPED
    ]


def overlapping_templates() -> list[RecurringJob]:
    return [
        RecurringJob.new(name, cron, "work", queue="overlapping", tz=tz, overlap=overlap, now=BEGIN)
        for name, cron, tz, overlap in _OVERLAPPING
    ]


@dataclass(kw_only=True)
class Stage:
    """A storage whose clock the test sets."""

    url: str
    clock_file: Path
    clock: SharedClock
    set_clock: Callable[[datetime, int], None]
    log: Path
    """What its loops say."""
    forbid_overlaps: Callable[[], None]

    def open(self) -> Storage:
        clock = self.clock if self.url.startswith("sqlite") else None
        return open_storage(self.url, clock=clock)


class Rehearsal:
    """The clock goes from firing to firing; in each turn the loops do what is due."""

    def __init__(self, stage: Stage, templates: Sequence[RecurringJob], rng: random.Random) -> None:
        self._stage, self._templates, self._rng = stage, templates, rng
        self._may_step = templates[0].overlap == "allow"
        self._moments = [Moment(wall=BEGIN, is_watched=False)]
        self._turn = 0
        self._loops: dict[int, Process] = {}
        self.firings = self.kills = self.outages = self.steps = self.jobs = 0
        self.problems: list[str] = []

    def run(self, firings: int) -> None:
        """Until the clock has gone over so many firings, half of them at each change of summer time."""
        self._stage.set_clock(BEGIN, 0)
        with closing(self._stage.open()) as storage:
            storage.migrate()
            for template in self._templates:
                storage.upsert_recurring_job(template)
        if not self._may_step:
            self._stage.forbid_overlaps()
        try:
            self._go_on(firings // 2, past=BEGIN + HOUR)
            so_far = self.firings
            if self._wall < SECOND_HALF:
                self._all_are_gone(until=SECOND_HALF)
            self.firings = so_far  # most of those a week long collapse into one
            self._go_on(firings, past=SECOND_HALF + HOUR)
        finally:
            self._kill_all()
        with closing(self._stage.open()) as storage:
            self._judge(storage)

    @property
    def _wall(self) -> datetime:
        return self._moments[-1].wall

    def _go_on(self, firings: int, *, past: datetime) -> None:
        while self.firings < firings or self._wall <= past + HOUR:
            chance = self._rng.random()
            if chance < 0.015:
                self._all_are_gone(until=self._wall + timedelta(seconds=self._rng.randint(1, 3600)))
            elif chance < 0.04 and self._may_step:
                self.steps += 1
                back = self._wall - HOUR
                self._show(back if back > BEGIN and self._rng.random() < 0.5 else self._wall + HOUR)
            else:
                self._show(self._next_firing() + timedelta(seconds=self._rng.randint(0, 40)))
            self._watch()

    def _next_firing(self) -> datetime:
        after = self._wall
        coming = (firing_times(each, after, after + HOUR)[:1] for each in self._templates)
        return min(times[0] for times in coming if times)  # there is one in each hour

    def _show(self, wall: datetime) -> None:
        """Set the clocks, and count what has come."""
        for template in self._templates:
            self.firings += len(firing_times(template, self._wall, wall))
        self._turn += 1_000_000
        self._stage.set_clock(wall, self._turn)
        self._moments.append(Moment(wall=wall, is_watched=False))

    def _watch(self) -> None:
        """Let every loop do this turn; one of them may be killed in the midst of it, and begins anew."""
        self._start_missing()
        if self._rng.random() < 0.1:
            time.sleep(self._rng.random() * 0.02)  # anywhere in the turn, which takes about so long
            self._kill(self._rng.randrange(LOOPS))
            self._start_missing()
        wait_until(self._all_have_done_the_turn, within_s=60, what="a turn of the loops")
        self._moments[-1] = replace(self._moments[-1], is_watched=True)

    def _all_have_done_the_turn(self) -> bool:
        for loop, process in self._loops.items():
            if self._stage.clock.done(loop) != self._turn:
                if process.poll() is not None:
                    del self._loops[loop]
                    raise AssertionError(f"A loop has ended by itself: {self._stage.log.read_text()}")
                return False
        return True

    def _all_are_gone(self, until: datetime) -> None:
        self.outages += 1
        self._kill_all()
        self._show(until)

    def _start_missing(self) -> None:
        for loop in range(LOOPS):
            if loop not in self._loops:
                self._loops[loop] = self._start(loop)

    def _start(self, loop: int) -> Process:
        """A process of its own, as the one of the test may have several threads."""
        stage = self._stage
        arguments = (stage.url, stage.clock_file, loop, f"{self._turn}/{loop}", os.getpid())
        with stage.log.open("ab") as log, open(os.devnull, "rb") as nothing:
            return launch(
                [sys.executable, "-m", "tests.nightly.firing_loops", *map(str, arguments)],
                cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=nothing.fileno(), stdout=log.fileno(), stderr=log.fileno(),
            )  # fmt: skip

    def _kill_all(self) -> None:
        for loop in list(self._loops):
            self._kill(loop)

    def _kill(self, loop: int) -> None:
        self.kills += 1
        process = self._loops.pop(loop)
        process.kill()
        process.wait()

    def _judge(self, storage: Storage) -> None:
        made: dict[str, list[Made]] = {template.id: [] for template in self._templates}
        for job in _all_jobs(storage):
            made[str(job.metadata["recurring_id"])].append(
                Made(
                    fire_at=datetime.fromisoformat(str(job.metadata["fire_at"])),
                    created_at=job.created_at,
                    finished_at=job.finished_at,
                )
            )
            self.jobs += 1
        for template in self._templates:
            in_order = sorted(made[template.id], key=lambda each: (each.created_at, each.fire_at))
            self.problems += judge_firings(template, in_order, self._moments)
        self.problems += [
            f"{each.id} was disabled" for each in storage.list_recurring_jobs() if not each.enabled
        ]


@contextmanager
def fresh_stage(backend: str, postgres_url: str | None) -> Iterator[Stage]:
    """An empty storage with a clock of its own."""
    folder = Path(tempfile.mkdtemp(prefix="qml-mp-firings-"))
    clock = SharedClock(folder / "clock")
    try:
        if backend == "sqlite":
            yield _sqlite_stage(folder, clock)
        else:
            assert postgres_url is not None
            with _postgres_stage(postgres_url, folder, clock) as stage:
                yield stage
    finally:
        shutil.rmtree(folder)


def _sqlite_stage(folder: Path, clock: SharedClock) -> Stage:
    path = folder / "jobs.db"

    def forbid_overlaps() -> None:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(
                f"CREATE TRIGGER overlap BEFORE INSERT ON qml_jobs WHEN {_UNFINISHED.format('qml_jobs')} "
                "BEGIN SELECT RAISE(ABORT, 'jobs overlap'); END"
            )

    return Stage(
        url=f"sqlite:///{path}",
        clock_file=folder / "clock",
        clock=clock,
        log=folder / "log",
        set_clock=lambda wall, turn: clock.set(wall, turn=turn),
        forbid_overlaps=forbid_overlaps,
    )


@contextmanager
def _postgres_stage(server_url: str, folder: Path, clock: SharedClock) -> Iterator[Stage]:
    """Its sessions find a `now()` of the test's before that of the server."""
    schema = f"f_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(_CLOCK.format(clock=f"{schema}_clock").encode())

        def set_clock(wall: datetime, turn: int) -> None:
            connection.execute(f"UPDATE {schema}_clock.clock SET at = %s".encode(), [wall])
            clock.set(wall, turn=turn)

        def forbid_overlaps() -> None:
            condition = _UNFINISHED.format(f"{schema}.jobs")
            connection.execute(_NO_OVERLAP.format(schema=schema, condition=condition).encode())

        parameter = f"options=-csearch_path%3D{schema}_clock%2Cpg_catalog"
        url = in_schema(f"{server_url}{'&' if '?' in server_url else '?'}{parameter}", schema)
        try:
            yield Stage(
                url=url,
                clock_file=folder / "clock",
                clock=clock,
                log=folder / "log",
                set_clock=set_clock,
                forbid_overlaps=forbid_overlaps,
            )
        finally:
            connection.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE".encode())
            connection.execute(f"DROP SCHEMA {schema}_clock CASCADE".encode())


def _all_jobs(storage: Storage) -> Iterator[Job]:
    page = storage.list_jobs(JobFilter(), limit=1000)
    while True:
        yield from page.jobs
        if page.next_cursor is None:
            return
        page = storage.list_jobs(JobFilter(), limit=1000, after=page.next_cursor)
