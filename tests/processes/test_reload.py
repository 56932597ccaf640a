"""Tests: new code and new workers in the place of old ones: SIGHUP, `--reload`, workers that are used up, and
what the newest release declares. The new worker is ready before the old one is told to leave."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from qml_mp.core.acts import ActKind, ActRequest
from qml_mp.core.answers import ReloadAnswer, ReloadState
from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.harness import Server, enqueue, few, is_gone, result_of, wait_for_state, wait_until
from tests.processes.ready_workers import counts_since_all_were, most_processes
from tests.processes.test_acts import ANNA
from tests.storage_rows import hooks_of

MakeServer = Callable[..., Server]
MakeLiving = Callable[..., Server]

HEAD = "import time\nfrom qml_mp import QmlApp\napp = QmlApp()\n"
VERSION = "@app.job()\ndef version():\n    return {}\n"
# A job that takes as long as it is told.
NAP = "@app.job()\ndef nap(seconds):\n    time.sleep(seconds)\n"
BROKEN = "import no_such_library\n"
# As `load_dotenv()`: what is set already is not overridden.
WITH_ENV_FILE = """
import os
from qml_mp import QmlApp
for line in open({!r}):
    os.environ.setdefault(*line.strip().split("="))
app = QmlApp()

@app.job()
def queues():
    return os.environ.get("QML_MP_QUEUES")
"""
NO_LIBRARY = "ModuleNotFoundError: No module named 'no_such_library'"


@pytest.fixture
def deploy(tmp_path: Path) -> Callable[[str], None]:
    """Replaces the code of `living_app:app` in one step."""
    numbers = count()

    def write(code: str) -> None:
        fresh = tmp_path / f"living_app.{next(numbers)}"
        fresh.write_text(code)
        fresh.replace(tmp_path / "living_app.py")

    return write


@pytest.fixture
def living(server: MakeServer, tmp_path: Path) -> MakeLiving:
    """Makes servers of `living_app:app`, whose code is what was deployed last."""

    def make(*flags: str) -> Server:
        return server(
            *flags, app="living_app:app", PYTHONPATH=str(tmp_path), PYTHONDONTWRITEBYTECODE="1"
        )  # fmt: skip

    return make


@pytest.fixture
def unread(tmp_path: Path) -> Iterator[Path]:
    """A pipe that somebody has open and does not read."""
    pipe = tmp_path / "unread"
    os.mkfifo(pipe)
    fd = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    yield pipe
    os.close(fd)


def trouble_in(storage: Storage) -> str | None:
    """What keeps the only server from its work, as `status` shows it."""
    (info,) = storage.list_servers()
    return info.trouble


def has_ended(storage: Storage) -> bool:
    """Whether a reload of the only server has come to its end."""
    (info,) = storage.list_servers()
    return info.answers.reload is not None and info.answers.reload.is_final


def answer_in(storage: Storage) -> ReloadAnswer:
    """What became of the newest reload."""
    (info,) = storage.list_servers()
    assert info.answers.reload is not None
    return info.answers.reload


@few("workers", [3], nightly=[1])
def test_a_reload_never_has_fewer_ready_workers_than_before(
    living: MakeLiving, deploy: Callable[[str], None], storage: Storage, workers: int
) -> None:
    deploy(HEAD + VERSION.format(1) + NAP)
    one = living("-w", str(workers)).start(ready=workers)
    before = set(one.worker_pids().values())
    running = [enqueue(storage, "nap", seconds=0.3) for _ in range(2 * workers)]
    deploy(HEAD + VERSION.format(2) + NAP)

    one.signal(signal.SIGHUP)

    wait_until(lambda: len(one.worker_pids()) == workers and all(map(is_gone, before)), what=one.log)
    for job_id in running:
        assert wait_for_state(storage, job_id, StateName.SUCCEEDED).crashes == 0
    assert result_of(storage, "version") == 2
    assert min(counts_since_all_were(one.log(), workers)) >= workers, one.log()
    assert one.stop() == 0


@pytest.mark.fault(89)
@few("workers", [3], nightly=[1])
def test_a_reload_of_code_that_does_not_import_leaves_every_worker_at_work(
    living: MakeLiving, deploy: Callable[[str], None], storage: Storage, workers: int
) -> None:
    deploy(HEAD + VERSION.format(1) + NAP)
    one = living("-w", str(workers)).start(ready=workers)
    before = one.worker_pids()
    running = [enqueue(storage, "nap", seconds=0.2) for _ in range(4 * workers)]
    deploy(BROKEN)

    one.signal(signal.SIGHUP)

    wait_until(lambda: "No module named 'no_such_library'" in one.log(), what=one.log)
    for job_id in running:
        assert wait_for_state(storage, job_id, StateName.SUCCEEDED).claim_seq == 1
    assert one.worker_pids() == before
    assert min(counts_since_all_were(one.log(), workers)) == workers
    wait_until(lambda: trouble_in(storage) == f"The new code cannot be imported: {NO_LIBRARY}")
    answer = answer_in(storage)
    assert (answer.state, answer.workers) == (ReloadState.REFUSED, 0)
    assert NO_LIBRARY in (answer.why or "")
    assert result_of(storage, "version") == 1
    deploy(HEAD + VERSION.format(2) + NAP)
    one.signal(signal.SIGHUP)
    wait_until(lambda: all(map(is_gone, before.values())), what=one.log)
    assert result_of(storage, "version") == 2
    assert one.log().count("No module named 'no_such_library'") == 1
    wait_until(lambda: trouble_in(storage) is None)
    wait_until(lambda: answer_in(storage).state is ReloadState.DONE)
    assert answer_in(storage).replaced == workers
    assert one.stop() == 0


@pytest.mark.fault(89)
def test_a_new_worker_that_dies_while_it_boots_replaces_nobody(
    living: MakeLiving, deploy: Callable[[str], None], storage: Storage, tmp_path: Path
) -> None:
    deploy(HEAD + VERSION.format(1))
    one = living("-w", "2").start(ready=2)
    before = one.worker_pids()
    # Imports wherever it is only looked at, and kills the workers that have it.
    deploy(
        "import os, signal, sys\nimport setproctitle\n"
        "if setproctitle.getproctitle().startswith('qml-mp: worker'):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        + HEAD + VERSION.format(2)
    )  # fmt: skip

    one.signal(signal.SIGHUP)

    wait_until(lambda: "It was killed by SIGKILL" in one.log(), what=one.log)
    wait_until(lambda: trouble_in(storage) == "New workers cannot boot: It was killed by SIGKILL.")
    wait_until(lambda: answer_in(storage).state is ReloadState.FAILED)
    assert "It was killed by SIGKILL" in (answer_in(storage).why or "")
    assert one.worker_pids() == before
    assert result_of(storage, "version") == 1
    deploy(HEAD + VERSION.format(3))
    one.signal(signal.SIGHUP)
    wait_until(lambda: all(map(is_gone, before.values())), what=one.log)
    assert result_of(storage, "version") == 3
    wait_until(lambda: trouble_in(storage) is None)
    assert min(counts_since_all_were(one.log(), 2)) == 2
    assert one.stop() == 0


@few("flag", ["--max-memory"], nightly=["--max-memory-hard"])
def test_new_code_that_needs_more_memory_than_a_limit_before_its_first_job_replaces_nobody(
    living: MakeLiving, deploy: Callable[[str], None], storage: Storage, flag: str
) -> None:
    deploy(HEAD + VERSION.format(1) + NAP)
    one = living("-w", "1", flag, "150MiB").start()
    before = one.worker_pids()
    deploy("BALLAST = b'x' * (200 << 20)\n" + HEAD + VERSION.format(2) + NAP)

    one.signal(signal.SIGHUP)

    wait_until(lambda: has_ended(storage), what=one.log)
    answer = answer_in(storage)
    assert answer.state is ReloadState.FAILED
    assert "The memory limit of 150.0 MiB is less than what a worker uses" in (answer.why or "")
    assert one.worker_pids() == before
    wait_for_state(storage, enqueue(storage, "nap", seconds=0.5), StateName.SUCCEEDED)
    assert result_of(storage, "version") == 1
    deploy(HEAD + VERSION.format(3))
    one.signal(signal.SIGHUP)
    wait_until(lambda: all(map(is_gone, before.values())), what=one.log)
    assert result_of(storage, "version") == 3
    assert one.stop() == 0


def test_two_reloads_in_a_row_end_with_the_newest_code(
    living: MakeLiving, deploy: Callable[[str], None], storage: Storage
) -> None:
    deploy(HEAD + VERSION.format(1))
    one = living("-w", "2").start(ready=2)
    deploy(HEAD + VERSION.format(2))
    one.signal(signal.SIGHUP)
    wait_until(lambda: one.log().count(" started (pid ") >= 3, what=one.log)
    deploy(HEAD + VERSION.format(3))

    one.signal(signal.SIGHUP)

    stopped = wait_until(lambda: one.log().count("left as told") >= 3 and len(one.worker_pids()) == 2)
    assert stopped
    wait_until(lambda: {result_of(storage, "version") for _ in range(4)} == {3}, what=one.log)
    assert min(counts_since_all_were(one.log(), 2)) >= 2
    assert one.stop() == 0


def test_a_server_that_is_reloaded_while_it_stops_stops(
    living: MakeLiving, deploy: Callable[[str], None], storage: Storage, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    deploy(HEAD + NAP.replace("    time", f"    open({str(begun)!r}, 'w').close()\n    time"))
    one = living("-w", "2").start(ready=2)
    job_id = enqueue(storage, "nap", seconds=0.5)
    wait_until(begun.exists)  # a claim that has not begun would be given back
    one.signal(signal.SIGTERM)
    wait_until(lambda: "Stopping (SIGTERM)" in one.log())

    one.signal(signal.SIGHUP)

    assert one.wait() == 0
    assert one.log().count(" started (pid ") == 2
    assert wait_for_state(storage, job_id, StateName.SUCCEEDED).claim_seq == 1


def test_workers_that_replace_others_while_claims_are_paused_claim_nothing(
    living: MakeLiving, deploy: Callable[[str], None], storage: Storage
) -> None:
    deploy(HEAD + VERSION.format(1))
    one = living("-w", "2").start(ready=2)
    before = one.worker_pids()
    one.signal(signal.SIGUSR2)
    wait_until(lambda: "Claims are paused" in one.log())
    job_id = enqueue(storage, "version")

    one.signal(signal.SIGHUP)

    wait_until(lambda: all(map(is_gone, before.values())), what=one.log)
    wait_until(lambda: one.log().count("left as told") == 2, what=one.log)
    job = storage.get(job_id)
    assert job is not None
    assert job.state_name is StateName.ENQUEUED, one.log()
    one.signal(signal.SIGUSR2)
    wait_for_state(storage, job_id, StateName.SUCCEEDED)
    assert one.stop() == 0


@pytest.mark.nightly
def test_workers_may_be_added_and_removed_during_a_reload(
    living: MakeLiving, deploy: Callable[[str], None], storage: Storage
) -> None:
    deploy(HEAD + VERSION.format(1))
    one = living("-w", "2").start(ready=2)
    before = set(one.worker_pids().values())
    deploy(HEAD + VERSION.format(2))

    one.signal(signal.SIGHUP)
    one.signal(signal.SIGTTIN)

    wait_until(lambda: sorted(one.worker_pids()) == [1, 2, 3] and all(map(is_gone, before)))
    one.signal(signal.SIGHUP)
    one.signal(signal.SIGTTOU)
    wait_until(lambda: one.log().count("left as told") >= 5 and sorted(one.worker_pids()) == [1, 2])
    assert min(counts_since_all_were(one.log(), 2)) >= 2
    wait_until(lambda: {result_of(storage, "version") for _ in range(4)} == {2}, what=one.log)
    assert one.stop() == 0


def test_workers_of_one_job_each_get_through_many_jobs_and_none_waits_for_a_boot(
    server: MakeServer, storage: Storage
) -> None:
    ids = [enqueue(storage, "quick") for _ in range(40)]

    one = server("-w", "2", "--max-jobs", "1").start()

    for job_id in ids:
        assert wait_for_state(storage, job_id, StateName.SUCCEEDED).crashes == 0
    # One worker may have been first at all 40, so there are more until the other has had one.
    wait_until(lambda: enqueue(storage, "quick") and one.log().count("is ready") >= 4, what="replacements")
    assert min(counts_since_all_were(one.log(), 2)) >= 2
    assert one.stop() == 0


def test_a_worker_that_is_used_up_stays_while_no_other_can_boot(
    living: MakeLiving, deploy: Callable[[str], None], storage: Storage
) -> None:
    deploy(HEAD + VERSION.format(1))
    one = living("-w", "1", "--max-jobs", "1").start()
    (worker,) = one.worker_pids().values()
    deploy(BROKEN)
    assert result_of(storage, "version") == 1

    wait_until(lambda: "No module named 'no_such_library'" in one.log(), what=one.log)

    assert [result_of(storage, "version") for _ in range(3)] == [1, 1, 1]
    assert list(one.worker_pids().values()) == [worker]
    deploy(HEAD + VERSION.format(2))
    wait_until(lambda: is_gone(worker), what=one.log)  # one that is about to leave may still claim
    assert result_of(storage, "version") == 2
    assert one.log().count("No module named 'no_such_library'") == 1
    assert os.path.exists(f"/proc/{one.pid}")
    assert one.stop() == 0


def test_a_reload_takes_over_templates_methods_and_queues_of_the_new_code(
    living: MakeLiving, deploy: Callable[[str], None], storage: Storage
) -> None:
    old = "@app.recurring('0 0 * * *')\ndef changed(): ...\n@app.recurring('0 1 * * *')\ndef gone(): ...\n"
    new = (
        "@app.recurring('30 12 * * *', queue='night')\ndef changed(): ...\n"
        "@app.recurring('* * * * * *')\ndef added(): ...\n"
        "@app.job(queue='images')\ndef resize():\n    return 'resized'\n"
    )
    deploy(HEAD + old)
    one = living("-w", "1").start()
    before = storage.list_recurring_jobs()
    deploy(HEAD + new)

    one.signal(signal.SIGHUP)

    wait_until(lambda: "recurring: +added ~changed -gone" in one.log(), what=one.log)
    added, changed = storage.list_recurring_jobs()
    assert "recurring: +changed +gone\n" in one.log()
    assert [(each.id, each.cron) for each in before] == [("changed", "0 0 * * *"), ("gone", "0 1 * * *")]
    assert (changed.cron, changed.queue, added.cron) == ("30 12 * * *", "night", "* * * * * *")
    wait_until(lambda: storage.job_counts()[StateName.SUCCEEDED] >= 1, what="a firing of the new template")
    resized = storage.enqueue(Job.new("resize", queue="images"))
    assert wait_for_state(storage, resized, StateName.SUCCEEDED).result == "resized"
    wait_until(lambda: storage.list_servers()[0].methods == ("changed", "added", "resize"), what=one.log)
    assert storage.list_servers()[0].queues == ("default", "night", "images")
    assert one.stop() == 0


@pytest.mark.nightly
def test_a_reload_keeps_the_queues_that_were_asked_for(
    living: MakeLiving, deploy: Callable[[str], None], storage: Storage
) -> None:
    deploy(HEAD + VERSION.format(1))
    one = living("-w", "1", "-q", "default").start()
    before = set(one.worker_pids().values())
    deploy(HEAD + VERSION.format(2) + "@app.job(queue='images')\ndef resize(): ...\n")

    one.signal(signal.SIGHUP)

    wait_until(lambda: one.worker_pids() and all(map(is_gone, before)), what=one.log)
    wait_until(lambda: storage.list_servers()[0].methods == ("version", "resize"), what=one.log)
    assert storage.list_servers()[0].queues == ("default",)
    assert one.stop() == 0


@pytest.fixture
def env_file(deploy: Callable[[str], None], tmp_path: Path) -> Path:
    """Of settings, empty; the code that is deployed loads it."""
    file = tmp_path / ".env"
    file.touch()
    deploy(WITH_ENV_FILE.format(str(file)))
    return file


@few(
    "text, seen, served",
    [("QML_MP_QUEUES=default,mail\n", "default,mail", ("default", "mail"))],
    nightly=[("", None, ("default",))],
)
def test_a_reload_takes_over_the_queues_of_a_changed_env_file_and_jobs_see_it(
    living: MakeLiving, env_file: Path, storage: Storage,
    text: str, seen: str | None, served: tuple[str, ...],
) -> None:  # fmt: skip
    env_file.write_text("QML_MP_QUEUES=default,old\n")
    one = living("-w", "1").start()
    assert storage.list_servers()[0].queues == ("default", "old")
    env_file.write_text(text)

    one.signal(signal.SIGHUP)

    wait_until(lambda: has_ended(storage), what=one.log)
    assert storage.list_servers()[0].queues == served
    assert result_of(storage, "queues") == seen
    assert one.stop() == 0


def test_code_that_ends_whoever_imports_it_replaces_nobody(
    living: MakeLiving, deploy: Callable[[str], None], storage: Storage
) -> None:
    deploy(HEAD + VERSION.format(1))
    one = living("-w", "1").start()
    before = one.worker_pids()
    deploy("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")

    one.signal(signal.SIGHUP)

    wait_until(
        lambda: "was killed by SIGKILL before it was done" in (trouble_in(storage) or ""), what=one.log
    )
    assert result_of(storage, "version") == 1
    assert one.worker_pids() == before
    assert one.stop() == 0


@few("workers", [1], nightly=[2])
def test_a_worker_that_hangs_on_its_way_out_is_ended_and_holds_up_no_replacement(
    server: MakeServer, storage: Storage, unread: Path, workers: int
) -> None:
    # Some 8 s: a worker that is told to leave has some seconds for it.
    one = server("-w", str(workers), app="tests.processes.apps_leftovers:app", PYTHONUNBUFFERED="")
    one.prefix = ("sh", "-c", 'exec "$@" >"$0"', str(unread))
    one.start(ready=workers)
    before = set(one.worker_pids().values())
    job_id = enqueue(storage, "leave_a_thread_that_prints")
    hanging = wait_for_state(storage, job_id, StateName.SUCCEEDED).result
    assert hanging in before

    one.signal(signal.SIGHUP)

    wait_until(lambda: all(map(is_gone, before)), what="the end of all workers")
    wait_until(lambda: answer_in(storage).state is ReloadState.DONE, what="the end of the reload")
    assert one.log().count("does not leave; killing it") == 1
    job = storage.get(job_id)
    assert job is not None
    assert (job.state_name, job.failures, job.crashes) == (StateName.SUCCEEDED, 0, 0)
    assert one.stop() == 0


FORKING = "import os\npid = os.fork()\nif pid:\n    os.waitpid(pid, 0)\n"
"""The copy goes on with the import, and so does the process itself, once the copy has ended."""


def test_a_server_of_code_that_forks_at_its_import_and_lets_the_copy_go_on_does_not_start(
    living: MakeLiving, deploy: Callable[[str], None]
) -> None:
    deploy(FORKING + HEAD + VERSION.format(1))
    one = living("-w", "1").start(ready=None)

    assert one.wait() == 3
    assert "was imported twice at a time" in one.log()
    assert "Traceback" not in one.log()


CODE = """import os, time
from qml_mp import QmlApp
app = QmlApp()

@app.job()
def version():
    return {}

@app.job()
def gated(begun, gate):
    open(begun, 'w').close()
    while not os.path.exists(gate):
        time.sleep(0.01)  # looks again
    return os.getpid()
"""


class Scene:
    """A server whose first worker is in a job that ends when the gate is opened; the others are idle."""

    def __init__(self, server: MakeServer, storage: Storage, folder: Path) -> None:
        self._storage = storage
        self._code = folder / "living_app.py"
        self.deploy(1)
        path = {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        self.one = server("-w", "1", app="living_app:app", **path).start()
        self._gate = folder / "gate"
        begun = folder / "begun"
        self.long_id = enqueue(storage, "gated", begun=str(begun), gate=str(self._gate))
        wait_until(begun.exists, what=self.one.log)
        self.busy = self.one.worker_pids()[1]
        for workers in (2, 3):
            self.one.signal(signal.SIGTTIN)
            self.ready(workers)
        wait_until(lambda: len(self.one.worker_pids()) == 3, what=self.one.log)  # registers once it is ready
        self.idle = [pid for number, pid in self.one.worker_pids().items() if number > 1]

    def deploy(self, version: int | None) -> None:
        """The code of that version; None: such as does not import."""
        fresh = self._code.with_suffix(".new")
        fresh.write_text("import no_such_library\n" if version is None else CODE.format(version))
        fresh.replace(self._code)

    def ready(self, count: int) -> None:
        """Wait until so many have become ready since the start."""
        wait_until(lambda: self.one.log().count("is ready (pid") >= count, what=self.one.log)

    def replace(self, number: int) -> ActRequest:
        """Ask for the replacement of the worker of that number."""
        (worker,) = (each for each in self._storage.list_workers() if each.number == number)
        request = ActRequest(kind=ActKind.REPLACE, server_id=worker.server_id, worker_id=worker.id, by=ANNA)
        self._storage.ask(request)
        return request

    def reload(self, version: int) -> None:
        self.deploy(version)
        self.one.signal(signal.SIGHUP)

    def versions(self) -> set[object]:
        """Which code answers, while the long job goes on."""
        found = {result_of(self._storage, "version") for _ in range(6)}
        assert not is_gone(self.busy)
        return found

    def end(self) -> None:
        """Open the gate: the long job has run once, and its worker leaves after it."""
        self._gate.touch()
        job = wait_for_state(self._storage, self.long_id, StateName.SUCCEEDED)
        assert (job.result, job.claim_seq) == (self.busy, 1)
        wait_until(lambda: is_gone(self.busy), what=self.one.log)
        wait_until(lambda: sorted(self.one.worker_pids()) == [1, 2, 3], what=self.one.log)
        assert most_processes(self.one.log()) == 4, self.one.log()
        assert min(counts_since_all_were(self.one.log(), 3)) >= 3, self.one.log()
        assert self.one.stop() == 0


@pytest.fixture
def scene(server: MakeServer, storage: Storage, tmp_path: Path) -> Scene:
    return Scene(server, storage, tmp_path)


def test_a_long_job_keeps_no_idle_worker_from_new_code(scene: Scene) -> None:
    scene.reload(2)

    wait_until(lambda: all(map(is_gone, scene.idle)), what=scene.one.log)
    scene.ready(6)
    assert scene.versions() == {2}
    scene.end()


@pytest.mark.nightly
def test_newer_code_is_not_kept_waiting_by_a_worker_that_is_to_leave_after_its_long_job(scene: Scene) -> None:
    scene.reload(2)
    scene.ready(6)  # the two that were idle are replaced, and the place of the busy one is taken

    scene.reload(3)

    wait_until(lambda: scene.one.log().count("left as told") == 5, what=scene.one.log)
    scene.ready(9)
    assert scene.versions() == {3}
    scene.end()


WITH_A_PART = """
from qml_mp import QmlApp
import {part}
app = QmlApp()
@app.job()
def version():
    return {part}.VERSION
"""


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_saved_code_is_taken_over_and_what_does_not_import_is_shown(
    server: Callable[..., Server], storage: Storage, tmp_path: Path
) -> None:
    names = ("app", "first", "second", "third")
    main, first, second, third = (tmp_path / f"living_{name}.py" for name in names)
    first.write_text("VERSION = 1\n")
    second.write_text("VERSION = (\n")
    main.write_text(WITH_A_PART.format(part="living_first"))
    for file in (main, first):
        os.utime(file, (0, 0))  # one that was written just before it is read may have been so just after, too
    one = server(
        "-w", "1", "--reload", app="living_app:app", PYTHONPATH=str(tmp_path), PYTHONDONTWRITEBYTECODE="1"
    ).start()  # fmt: skip
    before = result_of(storage, "version")

    first.write_text("VERSION = 22\n")
    wait_until(lambda: result_of(storage, "version") == 22, what=one.log)
    main.write_text(WITH_A_PART.format(part="living_second"))
    wait_until(lambda: "SyntaxError: '(' was never closed" in one.log())
    meanwhile = result_of(storage, "version")
    second.write_text("VERSION = 333\n")  # which was never imported

    wait_until(lambda: result_of(storage, "version") == 333, what=one.log)
    main.write_text(WITH_A_PART.format(part="living_third"))
    wait_until(lambda: "No module named 'living_third'" in one.log())
    third.write_text("VERSION = 4444\n")  # which was not there
    wait_until(lambda: result_of(storage, "version") == 4444, what=one.log)
    main.write_text(WITH_A_PART.format(part="living_fourth.part"))
    wait_until(lambda: "No module named 'living_fourth'" in one.log())
    (tmp_path / "living_fourth").mkdir()  # without __init__.py
    (tmp_path / "living_fourth" / "part.py").write_text("VERSION = 55555\n")
    wait_until(lambda: result_of(storage, "version") == 55555, what=one.log)
    assert (before, meanwhile) == (1, 22)
    assert "so the workers stay as they are. Mend it, and save it:" in one.log()
    assert one.stop() == 0


OLD = """
from qml_mp import QmlApp
app = QmlApp()
@app.job(max_running=3, rate="7/m")
def work():
    pass
"""
NEW = OLD.replace("3", "1") + "@app.on_failure\ndef tell(job, error):\n    pass\n"


@pytest.fixture
def release(server: MakeServer, tmp_path: Path) -> Callable[[str, str], Server]:
    """Makes servers of `releases_app:app`, each with code of its own."""

    def make(name: str, code: str) -> Server:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "releases_app.py").write_text(code)
        return server(
            "-w", "1", app="releases_app:app", PYTHONPATH=str(folder), PYTHONDONTWRITEBYTECODE="1"
        )  # fmt: skip

    return make


def limits(storage: Storage) -> list[tuple[str, int | None, str]]:
    standings = storage.standings()
    return [(each.limit.name, each.limit.max_running, str(each.limit.rate)) for each in standings]


def has_hook(storage: Storage) -> bool:
    """Whether failures of the method are to be told."""
    return any(calls for calls, _ in hooks_of(storage, "work").values())


def test_a_worker_of_older_code_that_is_replaced_declares_nothing(
    release: Callable[[str, str], Server], storage: Storage
) -> None:
    old = release("old", OLD).start()
    assert limits(storage) == [("work", 3, "7/m")]
    new = release("new", NEW).start()
    assert limits(storage) == [("work", 1, "7/m")]
    pid = old.worker_pids()[1]

    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: old.worker_pids().get(1, pid) != pid, what=old.log)

    assert old.stop() == 0
    assert limits(storage) == [("work", 1, "7/m")]
    assert has_hook(storage)
    assert new.stop() == 0


def test_a_reload_declares_what_the_new_code_says(
    release: Callable[[str, str], Server], storage: Storage
) -> None:
    one = release("one", OLD).start()
    assert limits(storage) == [("work", 3, "7/m")]
    release("one", NEW)

    one.signal(signal.SIGHUP)

    wait_until(lambda: limits(storage) == [("work", 1, "7/m")], what=one.log)
    wait_until(lambda: has_hook(storage), what=one.log)
    assert one.stop() == 0
