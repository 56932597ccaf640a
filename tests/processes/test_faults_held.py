"""Tests: whatever happens to a worker that holds several claims, each job runs as if it had been alone."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from qml_mp.core.job import Claim, Job, new_job_id
from qml_mp.core.outcome import AttemptKind
from qml_mp.core.payload import MAX_PAYLOAD_BYTES
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from qml_mp.storage.values import BY_DEFAULT, Fetch
from tests.faults import most_held
from tests.nightly.ground import Ground, environment_of, fresh_ground
from tests.nightly.judge import Kills
from tests.nightly.scenario import judge_ground, nothing_left
from tests.processes.harness import (
    Server,
    enqueue,
    few,
    is_stopped,
    result_of,
    state_of,
    wait_for_state,
    wait_until,
)
from tests.processes.journal import Line
from tests.storage_rows import hold_writes, pause_writes, run_raw

LIKELIER = "postgres"
APP = "tests.processes.apps_held:app"
BEFORE, AFTER = 80, 80
"""A worker claims 1, 2, 4, 8, 16 and 32 jobs at first, so the one after the first eighty has company on both
sides in its worker's hands. Where one of them takes long, on a busy machine, the worker has to begin anew."""
HELD_AT_LEAST = 8


@pytest.fixture
def ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    url = request.getfixturevalue("postgres_url") if request.param == "postgres" else None
    with fresh_ground(request.param, url, seed=1) as ground:
        yield ground


def serve(ground: Ground, *flags: str, failpoint: str = "", **settings: str) -> Server:
    """Start a server."""
    return ground.server(*flags, app=APP, failpoint=failpoint, **settings).start(ready=None)


def brief(number: int) -> list[Job]:
    return [Job.new("brief") for _ in range(number)]


def enqueue_amid_brief_jobs(ground: Ground, *jobs: Job) -> tuple[list[str], list[str]]:
    """The ids of these jobs, and those of the many brief ones around them."""
    before, after = brief(BEFORE), brief(AFTER)
    ids = ground.storage.enqueue_many([*before, *jobs, *after])
    return [job.id for job in jobs], [job_id for job_id in ids if job_id not in {job.id for job in jobs}]


def start_of(ground: Ground, job_id: str) -> Line:
    """The line that the job wrote when it began; waits for it."""
    return wait_until(
        lambda: next((one for one in ground.journal() if (one.job_id, one.what) == (job_id, "start")), None)
    )


def end_all(ground: Ground, server: Server) -> None:
    """Wait for the end of all jobs and of those before the server, and stop it."""
    wait_until(lambda: not ground.audit.unfinished(), what=f"the end; {server.log()[-3000:]}")
    wait_until(lambda: ground.is_alone(server), what=f"the end of others; {server.log()[-3000:]}")
    assert server.stop() == 0


def assert_sound(ground: Ground, expected: Sequence[str], kills: Kills | None = None) -> None:
    """Nothing is lost, run twice at a time, stale, unexplained or charged, and nothing is left."""
    findings = judge_ground(ground, expected=list(expected), kills=kills or Kills())
    assert findings.all == ()
    assert nothing_left(ground) == ()
    assert most_held(ground.audit.transitions()) >= HELD_AT_LEAST


def runs_of(ground: Ground, job_ids: Sequence[str]) -> dict[str, int]:
    """How often each of the jobs has begun."""
    starts = [line.job_id for line in ground.journal() if line.what == "start"]
    return {job_id: starts.count(job_id) for job_id in job_ids}


def first_run_of(ground: Ground, job_id: str) -> tuple[str, int]:
    """The job, and the claim with which it began first: one before may have gone back un-begun."""
    return job_id, start_of(ground, job_id).claim_seq


def worker_of(ground: Ground, job_id: str) -> str:
    """Who began the job first."""
    run, log = first_run_of(ground, job_id), ground.audit.transitions()
    claims = [one for one in log if (one.job_id, one.new_seq) == run and one.new is StateName.PROCESSING]
    (worker,) = [one.new_worker for one in claims]
    assert worker is not None
    return worker


@pytest.mark.fault(1)
@pytest.mark.fault(10)
@pytest.mark.fault(12)
@pytest.mark.fault(19)
@few("how", ["SIGKILL"], nightly=["SIGABRT", "segfault", "exit", "close all"])
def test_a_job_that_ends_its_process_costs_those_held_with_it_nothing(ground: Ground, how: str) -> None:
    [fallen], others = enqueue_amid_brief_jobs(ground, Job.new("fall", {"how": how}))

    end_all(ground, serve(ground, "-w", "1"))

    assert_sound(ground, [fallen, *others], Kills(workers={worker_of(ground, fallen)}))
    assert runs_of(ground, [fallen]) == {fallen: 2}
    assert set(runs_of(ground, others).values()) == {1}
    assert {row.crashes for row in ground.audit.jobs() if row.id != fallen} == {0}
    assert ground.audit.attempts() == {first_run_of(ground, fallen): AttemptKind.CRASH}


@pytest.mark.fault(15)
@few("how", ["grips"], nightly=["sleeps", "computes"])
def test_jobs_held_behind_a_long_one_are_run_by_others_before_it_ends(ground: Ground, how: str) -> None:
    [long], others = enqueue_amid_brief_jobs(ground, Job.new("gated", {"how": how}))
    server = serve(ground, "-w", "2")

    wait_until(lambda: succeeded(ground) == {*others}, what=server.log)
    ground.open_gate(long)
    end_all(ground, server)

    assert_sound(ground, [long, *others])
    assert {*runs_of(ground, others).values(), *runs_of(ground, [long]).values()} == {1}


@pytest.mark.fault(6)
@few("then", [signal.SIGCONT], nightly=[signal.SIGKILL])
@few(
    "place",
    ["claim.committed:20"],
    nightly=["claims.committed", "tickets.written:4", "outcome.recorded:20", "finish.before:4"],
)
def test_a_worker_that_is_stopped_between_two_jobs_gives_up_what_it_holds(
    ground: Ground, place: str, then: signal.Signals
) -> None:
    let_one_stop(ground, brief(BEFORE + AFTER), place, then)


@pytest.mark.nightly
@pytest.mark.fault(6)
@pytest.mark.parametrize("ground", ["postgres"], indirect=True)
@pytest.mark.parametrize("then", [signal.SIGCONT, signal.SIGKILL])
@pytest.mark.parametrize("place", ["exchange.sent:3", "exchange.sent:5", "exchange.received:4"])
def test_a_worker_that_is_stopped_with_claims_on_their_way_gives_up_these_too(
    ground: Ground, place: str, then: signal.Signals
) -> None:
    # They sleep: on a busy machine jobs that compute take longer than those during which others are claimed.
    jobs = [*brief(BEFORE), *(Job.new("linger", {"seconds": 0.02}) for _ in range(100))]
    let_one_stop(ground, jobs, place, then)


def let_one_stop(ground: Ground, jobs: Sequence[Job], place: str, then: signal.Signals) -> None:
    """One of two workers stops there, and goes on or dies once others have all that it has not begun."""
    place, _, number = place.partition(":")
    ids = ground.storage.enqueue_many(jobs)
    mark = ground.folder / "mark"
    point = f"worker/{place}=stop{':' + number if number else ''}@{mark}"
    server = serve(ground, "-w", "2", failpoint=point)
    stopped = wait_until(lambda: mark.exists() and stopped_worker(ground, server), what=server.log)

    # What has no ticket, because the worker was to begin it at once, waits for it; and what has ended there.
    wait_until(lambda: not_begun(ground) <= 1, what=server.log)
    os.kill(stopped, then)
    end_all(ground, server)

    kills = Kills(workers={info for info, pid in registered(ground) if pid == stopped})
    assert_sound(ground, ids, kills if then is signal.SIGKILL else None)
    assert set(runs_of(ground, ids).values()) == {1}


@pytest.mark.fault(4)
@pytest.mark.fault(5)
@few("with_worker", [True], nightly=[False])
def test_a_supervisor_killed_over_a_worker_with_claims_leaves_all_to_the_next(
    ground: Ground, with_worker: bool
) -> None:
    [gated], others = enqueue_amid_brief_jobs(ground, Job.new("gated"))
    settings = environment_of({"orphan_grace": 2})
    server = serve(ground, "-w", "1", **settings)
    worker = start_of(ground, gated).pid
    supervisor = server.pid

    server.signal(signal.SIGKILL)
    if with_worker:
        os.kill(worker, signal.SIGKILL)
    server.wait()
    serve_again = serve(ground, "-w", "1", **settings)
    ground.open_gate(gated)
    end_all(ground, serve_again)

    kills = Kills(supervisors={supervisor}, workers={worker_of(ground, gated)})
    assert_sound(ground, [gated, *others], kills)
    assert set(runs_of(ground, others).values()) == {1}


@pytest.mark.fault(4)
@few("place", ["outcome.recorded:20"], nightly=["finish.before:5"])
def test_what_had_ended_is_written_although_worker_and_supervisor_die_at_a_time(
    ground: Ground, place: str
) -> None:
    ids = ground.storage.enqueue_many(brief(BEFORE + AFTER))
    mark = ground.folder / "mark"
    place, _, number = place.partition(":")
    server = serve(ground, "-w", "1", failpoint=f"worker/{place}=stop:{number}@{mark}")
    worker = wait_until(lambda: mark.exists() and stopped_worker(ground, server), what=server.log)
    supervisor = server.pid

    server.signal(signal.SIGSTOP)  # or it would see the death of the worker
    os.kill(worker, signal.SIGKILL)
    server.signal(signal.SIGKILL)
    server.wait()
    ended = {line.job_id for line in ground.journal() if line.what == "end"}
    wait_until(lambda: ended <= succeeded(ground), what=server.log)
    end_all(ground, serve(ground, "-w", "1"))

    kills = Kills(
        supervisors={supervisor}, workers={info for info, pid in registered(ground) if pid == worker}
    )
    assert_sound(ground, ids, kills)
    assert set(runs_of(ground, ids).values()) == {1}
    assert ground.audit.attempts() == {}


@pytest.mark.fault(1)
@few("notes", [True], nightly=[False])
@few("place", ["finish.before:3"], nightly=["outcome.recorded:3"])
def test_what_had_ended_is_written_however_large_it_is_although_its_worker_dies(
    ground: Ground, place: str, notes: bool
) -> None:
    large = Job.new("carry", {"size_bytes": MAX_PAYLOAD_BYTES, "notes": notes})
    ids = ground.storage.enqueue_many(replace(large, id=new_job_id()) for _ in range(6))
    mark = ground.folder / "mark"
    place, _, number = place.partition(":")
    server = serve(ground, "-w", "1", failpoint=f"worker/{place}=kill:{number}@{mark}")

    end_all(ground, server)

    assert mark.exists()
    assert succeeded(ground) == set(ids)
    assert set(runs_of(ground, ids).values()) == {1}
    assert ground.audit.attempts() == {}


@pytest.mark.fault(56)
@pytest.mark.fault(59)
@few("seconds", [0.02], nightly=[0.5])
def test_a_server_that_is_told_to_stop_gives_back_what_its_worker_holds(
    ground: Ground, seconds: float
) -> None:
    [long], others = enqueue_amid_brief_jobs(ground, Job.new("linger", {"seconds": seconds}))
    server = serve(ground, "-w", "1")
    start_of(ground, long)

    assert server.stop() == 0

    assert nothing_left(ground) == ()
    assert {row.state for row in ground.audit.jobs()} <= {StateName.SUCCEEDED, StateName.ENQUEUED}
    assert ground.audit.attempts() == {}
    end_all(ground, serve(ground, "-w", "1"))
    assert_sound(ground, [long, *others])
    assert set(runs_of(ground, others).values()) == {1}


def test_a_server_whose_claims_are_paused_holds_none_after_the_job_in_hand(ground: Ground) -> None:
    [long], others = enqueue_amid_brief_jobs(ground, Job.new("gated"))
    server = serve(ground, "-w", "1")
    start_of(ground, long)

    server.signal(signal.SIGUSR2)

    wait_until(lambda: "Claims are paused" in server.log(), what=server.log)
    ground.open_gate(long)
    wait_until(lambda: any(line.job_id == long and line.what == "end" for line in ground.journal()))
    wait_until(lambda: not ground.storage.claims(), what=server.log)
    assert ground.audit.unfinished() > 0
    server.signal(signal.SIGUSR2)
    end_all(ground, server)
    assert_sound(ground, [long, *others])


@pytest.mark.fault(13)
@few("method, term_grace_s", [("linger", 600)], nightly=[("grip", 0.3)])
def test_a_time_limit_in_the_middle_of_a_batch_ends_its_own_job_alone(
    ground: Ground, method: str, term_grace_s: float
) -> None:
    # Who can be interrupted is not killed: that would cost the job which its worker has begun meanwhile.
    settings = environment_of({"cancel_grace": 0.2, "term_grace": term_grace_s})
    job = Job.new(method, {"seconds": 60.0}, timeout=timedelta(seconds=0.4))
    [limited], others = enqueue_amid_brief_jobs(ground, job)

    end_all(ground, serve(ground, "-w", "1", **settings))

    kills = Kills(workers={worker_of(ground, limited)})
    findings = judge_ground(ground, expected=others, kills=kills, failures={limited: 1})
    assert findings.all == ()
    assert ground.audit.attempts() == {first_run_of(ground, limited): AttemptKind.TIMEOUT}
    assert set(runs_of(ground, others).values()) == {1}


@pytest.mark.nightly
@pytest.mark.fault(72)
def test_jobs_that_are_cancelled_while_they_are_held_end_once(ground: Ground) -> None:
    ids: list[str] = []
    server = ground.server("-w", "2", app=APP)
    for _ in range(10):
        new = ground.storage.enqueue_many(Job.new("busy", {"seconds": 0.001}) for _ in range(600))
        ids += new
        if server.process is None:
            server.start(ready=None)
        start_of(ground, new[0])
        for job_id in ground.rng.sample(new, 200):
            ground.storage.request_cancel(job_id, reason="not wanted", retention=BY_DEFAULT)
        if any(row.state is StateName.DELETED for row in ground.audit.jobs()):
            break  # else all had ended before this process came to it
    end_all(ground, server)

    done = {row.id: row.state for row in ground.audit.jobs()}
    assert set(done.values()) == {StateName.SUCCEEDED, StateName.DELETED}
    findings = judge_ground(
        ground, expected=[job_id for job_id in ids if done[job_id] is StateName.SUCCEEDED], kills=Kills()
    )
    assert findings.all == ()
    assert most_held(ground.audit.transitions()) >= HELD_AT_LEAST


@pytest.mark.nightly
def test_a_job_that_ends_just_as_its_supervisor_takes_the_others_makes_none_run_twice(ground: Ground) -> None:
    jobs = [
        Job.new("busy", {"seconds": ground.rng.uniform(0.045, 0.085)})
        if number % 12 == 11
        else Job.new("brief")
        for number in range(500)
    ]
    ids = ground.storage.enqueue_many(jobs)

    end_all(ground, serve(ground, "-w", "3"))

    assert_sound(ground, ids)
    assert set(runs_of(ground, ids).values()) == {1}


def stopped_worker(ground: Ground, server: Server) -> int | None:
    """The pid of the worker that has stopped itself."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return next(
            (info.process.pid for info in ground.workers(server) if is_stopped(info.process.pid)), None
        )
    return None


def not_begun(ground: Ground) -> int:
    """How many jobs nobody has begun."""
    begun = {line.job_id for line in ground.journal() if line.what == "start"}
    return sum(row.id not in begun for row in ground.audit.jobs())


def registered(ground: Ground) -> list[tuple[str, int]]:
    """(id, pid) of every worker that ever was."""
    return [(worker_id, pid) for _, worker_id, pid in ground.audit.workers()]


def succeeded(ground: Ground) -> set[str]:
    return {row.id for row in ground.audit.jobs() if row.state is StateName.SUCCEEDED}


LEAVES_PATIENTLY = True
MakeServer = Callable[..., Server]
HELD_UP = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'advisory' AND query LIKE %s"


def enqueue_naps(storage: Storage, method: str, *lengths_s: float) -> list[str]:
    return storage.enqueue_many([Job.new(method, {"seconds": length_s}) for length_s in lengths_s])


def have_succeeded(storage: Storage, ids: list[str]) -> bool:
    """All of them. From the end, where the first that has not is soon found."""
    return all(state_of(storage, job_id) is StateName.SUCCEEDED for job_id in reversed(ids))


@pytest.fixture
def place(server: MakeServer, tmp_path: Path) -> Callable[..., Server]:
    """Makes a server in which a failpoint is armed for once."""

    def make(failpoint: str, *flags: str) -> Server:
        one = server(*flags, QML_MP_FETCH_BATCH_SIZE="100")
        one.program = ("-m", "tests.failpoints", f"{failpoint}@{tmp_path / 'mark'}")
        return one

    return make


@pytest.mark.fault(2)
@pytest.mark.fault(3)
@pytest.mark.parametrize(
    ("url", "moment", "jobs", "seconds"),
    [
        ("sqlite", "finish.committed=kill:7", 400, 0.0),
        ("postgres", "exchange.received=kill:3", 20, 0.02),
        pytest.param("postgres", "exchange.sent=kill:3", 20, 0.02, marks=pytest.mark.nightly),
        pytest.param("sqlite", "claims.committed=kill:7", 400, 0.0, marks=pytest.mark.nightly),
        pytest.param("sqlite", "tickets.written=kill:7", 400, 0.0, marks=pytest.mark.nightly),
        pytest.param("sqlite", "outcome.recorded=kill:7", 400, 0.0, marks=pytest.mark.nightly),
    ],
    indirect=["url"],
)
def test_a_worker_killed_between_two_jobs_is_charged_for_none_that_it_holds_or_that_is_on_its_way(
    place: MakeServer, storage: Storage, tmp_path: Path, moment: str, jobs: int, seconds: float
) -> None:
    ids = enqueue_naps(storage, "nap", *([seconds] * jobs))
    one = place(moment, "-w", "1").start(ready=None)

    wait_until(lambda: have_succeeded(storage, ids), what=one.log)

    assert (tmp_path / "mark").exists()
    assert Counter(one.starts()) == Counter(ids)
    assert [job.crashes for job in map(storage.get, ids) if job] == [0] * len(ids)
    assert one.stop() == 0


@pytest.mark.fault(2)
@pytest.mark.parametrize("url", ["postgres"], indirect=True)
def test_a_claim_that_is_committed_after_its_worker_was_killed_is_settled_with_it(
    server: MakeServer, storage: Storage, url: str
) -> None:
    one = server("-w", "1").start()
    pause_writes(storage, StateName.PROCESSING)
    address, _, schema = url.partition("?schema=")
    with psycopg.connect(address) as other, psycopg.connect(address, autocommit=True) as watcher:
        hold_writes(other)
        ids = enqueue_naps(storage, "nap", 0.0, 0.0)
        wait_until(lambda: watcher.execute(HELD_UP, [f"%{schema}%"]).fetchone(), what=one.log)
        os.kill(one.worker_pids()[1], signal.SIGKILL)
        # By the time that another is ready, it was looked for claims of this one.
        wait_until(lambda: one.log().count("is ready") == 2, what=one.log)

    wait_until(lambda: have_succeeded(storage, ids), what=one.log)

    assert Counter(one.starts()) == Counter(ids)
    assert [job.crashes for job in map(storage.get, ids) if job] == [0] * len(ids)
    assert "which is gone" not in one.log()  # as a later look at all claims has it
    assert one.stop() == 0


@pytest.mark.nightly
@pytest.mark.fault(5)
@pytest.mark.parametrize("moment", ["giveback.taken", "giveback.committed"])
def test_a_supervisor_killed_while_it_gives_claims_back_loses_none(
    place: MakeServer, storage: Storage, moment: str
) -> None:
    # Three times: a worker that starved until then may hold nothing beside the first long job.
    ids = enqueue_naps(storage, "nap", *([*([0.0] * 27), 1.5] * 3), *([0.0] * 27))
    one = place(f"{moment}=kill", "-w", "1").start(ready=None)
    assert one.wait() == -signal.SIGKILL, one.log()
    begun = Counter(one.starts())

    one.start(ready=None)

    wait_until(lambda: have_succeeded(storage, ids), what=one.log)
    # What was in hand ended with its server, and so did what had ended and lay in its memory.
    again = Counter(one.starts()) - Counter(ids)
    assert set(again) <= set(begun)
    assert one.stop() == 0


PLAIN_APP = "tests.processes.apps_storage_faults:app"
QUEUE = "elsewhere"  # which the server does not serve, so that it comes by a job of it in no other way


def claim_for(storage: Storage, worker_id: str, server_id: str, *, registered: bool) -> Claim:
    """A claim in the name of a worker, behind its back."""
    storage.enqueue(Job.new("plain", queue=QUEUE))
    fetch = Fetch(worker_id=worker_id, server_id=server_id, queues=(QUEUE,), registered=registered)
    claim = storage.fetch_and_lock_job(fetch)
    assert claim is not None
    return claim


@pytest.mark.nightly
@pytest.mark.fault(77)
def test_an_idle_worker_is_told_of_a_claim_that_it_does_not_know_and_runs_it(
    server: Callable[..., Server], storage: Storage
) -> None:
    one = server("-w", "1", app=PLAIN_APP).start()
    wait_for_state(storage, enqueue(storage, "plain"), StateName.SUCCEEDED)
    (worker,) = storage.list_workers()

    claim = claim_for(storage, worker.id, worker.server_id, registered=True)

    job = wait_for_state(storage, claim.job.id, StateName.SUCCEEDED)
    assert (job.claim_seq, job.crashes) == (1, 0)
    # The worker is told first, and may be through with the job before its supervisor goes on.
    wait_until(lambda: f"does not show its claim of job {claim.job.id}" in one.log(), what=one.log)
    assert f"Found the claim of job {claim.job.id}" in one.log()
    assert [info.id for info in storage.list_workers()] == [worker.id]
    # It goes on under its new epoch.
    wait_for_state(storage, enqueue(storage, "plain"), StateName.SUCCEEDED)
    assert one.stop() == 0


@pytest.mark.nightly
@pytest.mark.fault(77)
def test_a_claim_of_a_worker_that_is_gone_is_given_back_uncharged(
    server: Callable[..., Server], storage: Storage
) -> None:
    one = server("-w", "1", app=PLAIN_APP).start()
    (worker,) = storage.list_workers()

    claim = claim_for(storage, f"{worker.server_id}:worker:9.9", worker.server_id, registered=False)

    job = wait_for_state(storage, claim.job.id, StateName.ENQUEUED)
    assert (job.claim_seq, job.crashes, job.failures) == (1, 0, 0)
    wait_until(lambda: "which is gone, is enqueued" in one.log(), what=one.log)
    assert one.stop() == 0


OFTEN = {"QML_MP_POLLING_INTERVAL": "10ms"}  # a worker looks after itself every so many of these


@few("lose", ["DELETE FROM [workers]"], nightly=["UPDATE [workers] SET epoch = epoch - 1"])
def test_a_worker_that_storage_has_forgotten_is_registered_again_and_claims(
    server: Callable[..., Server], storage: Storage, lose: str
) -> None:
    one = server("-w", "1", app=PLAIN_APP, **OFTEN).start()
    workers = one.worker_pids()
    assert result_of(storage, "plain") == "plain"

    run_raw(storage, lose.replace("[workers]", table(storage, "workers")))

    assert result_of(storage, "plain") == "plain"
    wait_until(lambda: "Storage has lost the row or the newest epoch" in one.log(), what=one.log)
    assert one.worker_pids() == workers
    assert one.stop() == 0


def table(storage: Storage, name: str) -> str:
    """As `run_raw` has it."""
    return f"qml_{name}" if storage.url.startswith("sqlite:") else f"{{s}}{name}"
