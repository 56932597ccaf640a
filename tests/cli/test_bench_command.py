"""`qml-mp bench`: measures a user's storage without touching it, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner

from qml_mp import host
from qml_mp.bench import run
from qml_mp.cli.main import cli
from qml_mp.core.server_info import ProcessIdentity
from qml_mp.core.state import StateName
from qml_mp.storage.open import open_storage
from tests.cli.command import Qml, is_one_error
from tests.postgres_cluster import has_advisory_lock
from tests.processes.harness import wait_until
from tests.storage.helpers import in_schema, patient_url

_PATIENCE_S = 60
_QUICK = ("--seconds", "1", "-w", "2")


class Place:
    """A storage that a user names, and what there is beside it."""

    def __init__(
        self, url: str, things: Callable[[], set[str]], is_locked: Callable[[], bool] = lambda: False
    ) -> None:
        self.url = url
        self.things = things
        """Names of the files beside the file, or of the database's schemas."""
        self.is_locked = is_locked
        """Whether a session has a lock there, as has one whose client's end the server has yet to see."""
        self._before = things()

    def new(self) -> set[str]:
        """What was not there at first."""
        return self.things() - self._before

    def scratch_url(self) -> str | None:
        """That of the storage which is measured in, once it is there."""
        for name in self.new():
            if self.url.startswith("postgres"):
                return self.url.rpartition("=")[0] + f"={name}"
            return f"{self.url.rpartition('/')[0]}/{name}/bench.db"
        return None


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "sqlite":
        folder = tmp_path / "data"
        folder.mkdir()
        return Place(f"sqlite:///{folder}/jobs.db", lambda: set(os.listdir(folder)))
    server = request.getfixturevalue("postgres_url")

    def schemas() -> set[str]:
        with psycopg.connect(server) as connection:
            return {name for (name,) in connection.execute("SELECT nspname FROM pg_namespace").fetchall()}

    url = patient_url(in_schema(server, f"u_{uuid.uuid4().hex}"))
    return Place(url, schemas, partial(has_advisory_lock, server))


def test_all_of_it_is_measured_and_told_within_80_columns(qml: Qml, place: Place) -> None:
    ended = qml("bench", *_QUICK, "--url", place.url)

    url, conditions, _, *table = ended.out.splitlines()
    assert ended.code == 0, ended.err
    assert url == open_storage(place.url).display_url
    assert conditions.startswith("2 workers on ")
    assert [line[:30].strip() for line in table[: table.index("")]] == [
        "MEASURE",
        "read a row",
        "enqueue one job (a commit)",
        "enqueue in bulk",
        "run empty jobs, one at a time",
        "run empty jobs, by 100",
        "from commit to start",
        "efficiency, jobs of 1ms",
        "efficiency, jobs of 5ms",
        "efficiency, jobs of 50ms",
    ]
    assert all(len(line) <= 80 for line in table)
    assert "One connection commits" in ended.out
    assert place.new() == set()


def test_a_time_that_is_no_number_is_refused(qml: Qml) -> None:
    ended = qml("bench", "--seconds", "nan")

    assert ended.code == 2
    assert is_one_error(ended.err)
    assert "--seconds" in ended.err


def test_json_has_what_was_asked_for_and_nothing_else(qml: Qml, place: Place) -> None:
    arguments = ("--only", "latency", "--only", "storage", "--json")

    ended = qml("bench", *_QUICK, *arguments, env={"QML_MP_URL": place.url})

    value = ended.value
    assert ended.code == 0
    assert (value["workers"], value["throughput"], value["efficiency"]) == (2, [], [])
    assert value["read_ms"]["p50"] <= value["read_ms"]["p99"]
    assert value["commit_ms"]["samples"] >= 20
    assert value["latency_ms"]["samples"] >= 20
    assert len(value["verdicts"]) >= 2
    assert place.new() == set()


def test_what_is_asked_for_twice_is_measured_once_for_the_whole_time(monkeypatch: pytest.MonkeyPatch) -> None:
    given = list[timedelta]()

    def measure_latency(_bench: object, within: timedelta) -> None:
        given.append(within)

    monkeypatch.setattr(run, "measure_latency", measure_latency)
    arguments = ["--url", "memory://", "bench", "--seconds", "3", *2 * ["--only", "latency"], "--json"]

    ended = CliRunner().invoke(cli, arguments, catch_exceptions=False)

    assert (ended.exit_code, given) == (0, [timedelta(seconds=3)])


def test_efficiency_is_against_the_same_work_without_a_storage(qml: Qml) -> None:
    value = qml("bench", *_QUICK, "--only", "efficiency", "--json", "--url", "memory://").value

    assert [each["job_ms"] for each in value["efficiency"]] == [1, 5, 50]
    assert all(each["ratio"] > 0 and each["overhead_ms"] >= 0 for each in value["efficiency"])


def test_the_storage_of_an_app_is_found_without_its_threads(qml: Qml) -> None:
    (qml.folder / "busy.py").write_text(
        "import threading, time\n"
        "from qml_mp import QmlApp\n"
        "app = QmlApp('sqlite:///code.db')\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )

    value = qml("-A", "busy:app", "bench", *_QUICK, "--only", "latency", "--json").value

    assert value["storage"] == f"sqlite:///{qml.folder}/code.db"
    assert "code.db" not in qml.files()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(qml: Qml, place: Place, number: signal.Signals) -> None:
    with running_bench(qml, place) as process:
        measured = wait_until(lambda: processes_of(place), what="a server that is measured")

        process.send_signal(number)
        process.send_signal(number)  # somebody who cannot wait
        _, err = process.communicate(timeout=_PATIENCE_S)

    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "qml-mp: interrupted"
    assert place.new() == set()
    assert not any(host.is_alive(each) for each in measured)


def test_after_a_kill_the_next_run_removes_what_was_left(qml: Qml, place: Place) -> None:
    with running_bench(qml, place) as process:
        measured = wait_until(lambda: processes_of(place), what="a server that is measured")
        process.kill()
        process.communicate(timeout=_PATIENCE_S)
    wait_until(lambda: not any(host.is_alive(each) for each in measured), what="the end of its processes")
    wait_until(lambda: not place.is_locked(), what="the end of its lock")
    assert place.new() != set()

    ended = qml("bench", *_QUICK, "--only", "storage", "--url", place.url)

    assert ended.code == 0
    assert place.new() == set()


def test_a_server_that_dies_is_an_error_and_leaves_nothing(qml: Qml, place: Place) -> None:
    with running_bench(qml, place) as process:
        server, *workers = wait_until(lambda: processes_of(place), what="a server that is measured")

        os.kill(server.pid, signal.SIGKILL)
        _, err = process.communicate(timeout=_PATIENCE_S)

    assert process.returncode == 1
    assert "The server that was measured has ended" in err.splitlines()[-1]
    assert place.new() == set()
    assert not any(host.is_alive(each) for each in workers)


def test_where_nothing_may_be_made_nothing_is_measured(qml: Qml) -> None:
    closed = qml.folder / "closed"
    closed.mkdir(mode=0o500)

    ended = qml("bench", "--url", f"sqlite:///{closed}/jobs.db", file_modes_bind=True)

    assert ended.code == 4
    error = ended.err.splitlines(keepends=True)[-1]  # before it, that the machine is busy
    assert is_one_error(error)
    assert f"No folder can be made in {closed}: Permission denied." in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--only", "speed"), "'speed' is not one of 'storage', 'throughput', 'latency', 'efficiency'."),
        (("--seconds", "0"), "0.0 is not in the range 1<=x<=3600."),
        (("-w", "none"), "'none' is not a valid integer range."),
        (("latency",), "unexpected extra argument (latency)."),
    ],
)
def test_what_is_typed_wrong_is_answered_with_the_way_to_help(
    qml: Qml, arguments: tuple[str, ...], said: str
) -> None:
    ended = qml("bench", *arguments)

    assert (ended.code, ended.out) == (2, "")
    assert is_one_error(ended.err)
    assert said in ended.err
    assert "See `qml-mp bench --help`." in ended.err


@contextmanager
def running_bench(qml: Qml, place: Place) -> Iterator[subprocess.Popen[str]]:
    """A run that takes longer than any test."""
    command = [sys.executable, "-m", "qml_mp", "bench", "-w", "2", "--seconds", "3600", "--only", "latency"]
    process = subprocess.Popen(
        [*command, "--url", place.url], cwd=qml.folder, env=qml.environment(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def processes_of(place: Place) -> list[ProcessIdentity] | None:
    """The server that is measured and its two workers, once jobs have run there."""
    url = place.scratch_url()
    if url is None:
        return None
    with closing(open_storage(url)) as storage:
        if storage.schema_version() == 0 or not storage.job_counts()[StateName.SUCCEEDED]:
            return None
        servers = [server.process for server in storage.list_servers()]
        workers = [worker.process for worker in storage.list_workers()]
    return [*servers, *workers] if (len(servers), len(workers)) == (1, 2) else None
