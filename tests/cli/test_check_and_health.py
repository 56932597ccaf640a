"""`check` and `health`: what they look at, and the exit code of each thing that is wrong."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from qml_mp import host
from qml_mp.core.recurring import RecurringJob
from qml_mp.core.server_description import ServerDescription, ToldSetting
from qml_mp.core.server_info import SelfDescription, ServerInfo, WorkerInfo
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from tests.cli.command import TASKS, Ended, Qml
from tests.postgres_login import url_of
from tests.storage.helpers import in_schema, patient_url
from tests.storage_rows import change_server

_PLAIN = 'raise SystemExit("imported")\nfrom qml_mp import QmlApp\napp = QmlApp("sqlite:///qml.db")\n'
_LATE = """
from __future__ import annotations
from datetime import date
from qml_mp import QmlApp

app = QmlApp("sqlite:///qml.db")


@app.recurring("1 52 0 28 11 * 2020")
def once() -> None: ...


@app.recurring("0 3 * * *", tz="Europe/Berlni")
def there() -> None: ...


@app.recurring("0 9 1 * *", payload={"day": "first"})
def close_books(day: date) -> None: ...
"""
_MISFIT = "does not fit its function: close_books: the argument 'day' is not an ISO 8601 date"
_THREADED = """
import threading, time
from qml_mp import QmlApp
app = QmlApp()
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
"""
_START = ("-A", "tasks:app", "start", "--burst", "-w", "1")
_NOWHERE = "postgresql://localhost:1/x?connect_timeout=2"


@pytest.fixture
def admin(postgres_url: str) -> Iterator[psycopg.Connection]:
    """The superuser; there is a role `checker`, which may log in."""
    with closing(psycopg.connect(postgres_url, autocommit=True)) as connection:
        connection.execute("CREATE ROLE checker LOGIN")
        yield connection
        connection.execute("DROP SCHEMA IF EXISTS made, filled, unmade CASCADE; DROP ROLE checker")


def results(ended: Ended) -> dict[str, str]:
    return {line["check"]: line["result"] for line in ended.lines}


def register(storage: Storage, *, workers: int = 1, dead_workers: bool = False) -> None:
    """A server that is this very process."""
    process, now = host.identity(), datetime.now(UTC)
    storage.register_server(
        ServerInfo(
            id="blue#1", name="blue", hostname="here", process=process, worker_count=1, queues=("default",),
            started_at=now, last_heartbeat=now, heartbeat_enabled=True, methods=("resize",),
        )
    )  # fmt: skip
    gone = replace(process, started_ticks=process.started_ticks - 1)
    for number in range(workers):
        storage.register_worker(
            WorkerInfo(
                id=f"w-{number}", server_id="blue#1", number=number, started_at=now,
                process=gone if dead_workers else process,
            )
        )  # fmt: skip


def test_all_is_well_before_the_first_start_and_nothing_is_written(qml: Qml) -> None:
    before = qml.files()

    ended = qml("-A", "tasks:app", "check", "--json")

    assert ended.code == 0, ended
    assert results(ended) == dict.fromkeys(("app", "settings", "templates", "storage", "schema"), "ok")
    assert "resize, boom, stubborn" in ended.out
    assert qml.files() == before


def test_what_nobody_would_serve_is_a_warning(qml: Qml, storage: Storage) -> None:
    storage.upsert_recurring_job(RecurringJob.new("nightly", "0 3 * * *", "unheard_of"))

    ended = qml("-A", "tasks:app", "check", env={"QML_MP_QUEUES": "default"})

    assert ended.code == 0
    assert "queues    warning   jobs for images would wait" in ended.out
    assert "methods   warning   stored templates want unheard_of" in ended.out


def test_templates_that_are_over_in_a_zone_not_known_here_or_misfits_stop_neither_server_nor_producer(
    qml: Qml,
) -> None:
    (qml.folder / "late.py").write_text(_LATE)

    checked = qml("-A", "late:app", "check")
    enqueued = qml("-A", "late:app", "enqueue", "once")
    started = qml("-A", "late:app", "start", "--burst", "-w", "1")

    assert (checked.code, enqueued.code, started.code) == (0, 0, 0), started
    assert "templates ok        3 parse" in checked.out
    assert "templates warning   once never fires again: its last firing has passed\n" in checked.out
    assert "templates warning   there: the zone 'Europe/Berlni' is not known here" in checked.out
    assert f"templates warning   close_books {_MISFIT}" in checked.out
    for told in (
        "once never fires again",
        "there: the zone 'Europe/Berlni' is not",
        f"close_books {_MISFIT}",
    ):
        assert started.err.count(f"Recurring template {told}") == 1
    assert [each["id"] for each in qml("recurring", "list", "--json").lines] == ["close_books", "once"]
    assert "next      never\n" in qml("recurring", "show", "once").out


def test_an_app_that_starts_threads_when_imported_is_refused_with_preload_as_start_does(qml: Qml) -> None:
    (qml.folder / "threaded.py").write_text(_THREADED)
    preload = {"QML_MP_PRELOAD": "1"}

    checked = qml("-A", "threaded:app", "check", env=preload)
    started = qml("-A", "threaded:app", "start", "--burst", "-w", "1", env=preload)
    without = qml("-A", "threaded:app", "check")
    threadless = qml("-A", "tasks:app", "check", env=preload)

    assert (checked.code, started.code, without.code, threadless.code) == (2, 2, 0, 0)
    told = "With preload, importing 'threaded:app' started 1 threads, which would not exist in the workers."
    assert f"settings  failed    {told}" in checked.out
    assert told in started.err


def test_code_that_does_not_import_is_3_and_the_rest_is_looked_at(qml: Qml, storage: Storage) -> None:
    (qml.folder / "tasks.py").write_text("import no_such_library\n" + TASKS)

    ended = qml("-A", "tasks:app", "check", "-v")

    assert ended.code == 3
    assert "app       failed    The app 'tasks:app' cannot be imported from" in ended.out
    assert "No module named 'no_such_library' (" in ended.out
    assert "schema    ok" in ended.out
    assert "tasks.py" in ended.err


def test_a_wrong_setting_a_silent_storage_and_another_schema_have_their_codes(
    qml: Qml, storage: Storage
) -> None:
    setting = qml("-A", "tasks:app", "check", "--json", env={"QML_MP_WORKERS": "many"})
    silent = qml("-A", "tasks:app", "check", "--json", "--url", _NOWHERE)
    with sqlite3.connect(qml.database) as connection:
        connection.execute("INSERT INTO qml_schema_version VALUES (99, 0)")
    connection.close()
    newer = qml("-A", "tasks:app", "check", "--json")

    assert (setting.code, results(setting)["settings"]) == (2, "failed")
    assert (silent.code, results(silent)["storage"]) == (4, "failed")
    assert (newer.code, results(newer)["schema"]) == (5, "failed")


@pytest.mark.parametrize("place", ["no folder", "folder read only", "file read only"])
def test_a_file_that_start_could_not_write_is_4_and_nothing_is_made(qml: Qml, place: str) -> None:
    folder = qml.folder / "data"
    if place != "no folder":
        folder.mkdir()
    if place == "folder read only":
        folder.chmod(0o555)
    elif place == "file read only":
        with closing(open_storage(f"sqlite:///{folder}/jobs.db")) as storage:
            storage.migrate()
        (folder / "jobs.db").chmod(0o400)

    named = ("-A", "tasks:app", "--url", "sqlite:///data/jobs.db")
    checked = qml(*named, "check", file_modes_bind=True)
    made = {path.name for path in folder.iterdir()} if folder.exists() else set()
    started = qml(*named, "start", "--burst", file_modes_bind=True)

    with suppress(FileNotFoundError):
        folder.chmod(0o700)
    assert (checked.code, started.code) == (4, 4), checked
    assert "storage   failed    The " in checked.out
    assert "data/jobs.db" in checked.out
    assert made == ({"jobs.db"} if place == "file read only" else set())


@pytest.mark.parametrize("command", ["health", "enqueue f"])
def test_who_names_nothing_where_the_folder_cannot_be_written_is_told_that_the_file_is_the_default(
    qml: Qml, command: str
) -> None:
    qml.folder.chmod(0o555)

    unnamed = qml(*command.split(), file_modes_bind=True)
    named = qml(*command.split(), "--url", "sqlite:///qml.db", file_modes_bind=True)

    qml.folder.chmod(0o700)
    told = "That storage is the default: no app is named (-A, QML_MP_APP), and no URL (--url, QML_MP_URL).\n"
    assert unnamed.code == named.code == (1 if command == "health" else 4)
    assert ": Permission denied. " in unnamed.out + unnamed.err
    assert told in unnamed.out + unnamed.err
    assert "the default" not in named.out + named.err


def in_schema_as(admin: psycopg.Connection, login: str, schema: str) -> str:
    """The URL by which this role reaches the schema."""
    return patient_url(in_schema(url_of(admin, login, database=admin.info.dbname), schema))


def test_a_role_that_may_not_make_the_schema_is_4_and_told_what_it_lacks(
    qml: Qml, admin: psycopg.Connection
) -> None:
    for schema in ("unmade", "made", "filled"):
        if schema != "unmade":
            admin.execute(f"CREATE SCHEMA {schema}")
            admin.execute(f"GRANT USAGE ON SCHEMA {schema} TO checker")
    with closing(open_storage(in_schema_as(admin, admin.info.user, "filled"))) as storage:
        storage.migrate()
    admin.execute("GRANT SELECT ON ALL TABLES IN SCHEMA filled TO checker")

    unmade, made, filled = (
        [qml("--url", in_schema_as(admin, "checker", schema), *command) for command in (("check",), _START)]
        for schema in ("unmade", "made", "filled")
    )

    assert [each.code for each in (*unmade, *made, *filled)] == [4] * 6
    for told in (unmade[0].out, unmade[1].err):
        assert "the role 'checker' has no right to CREATE there" in told
        assert f'GRANT CREATE ON DATABASE "{admin.info.dbname}" TO "checker"' in told
        assert "or run `qml-mp migrate` once with the URL of a role that has it" in told
    assert 'GRANT CREATE ON SCHEMA "made" TO "checker"' in made[0].out
    assert "may not write to all tables of schema 'filled'" in filled[0].out
    assert admin.execute("SELECT to_regnamespace('unmade'), to_regclass('made.jobs')").fetchone() == (
        None,
        None,
    )


def test_a_server_with_a_ready_worker_is_healthy(qml: Qml, storage: Storage) -> None:
    (qml.folder / "tasks.py").write_text(_PLAIN)
    register(storage)

    ended = qml("-A", "tasks:app", "health")

    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(f"healthy: blue (pid {host.identity().pid}): 1 worker, last heard ")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_server_without_a_live_worker_is_not(qml: Qml, storage: Storage, workers: int) -> None:
    register(storage, workers=workers, dead_workers=True)
    storage.update_server("blue#1", SelfDescription(queues=(), trouble="New workers cannot boot"))

    ended = qml("health", "--json")

    assert ended.code == 1
    assert ended.value["healthy"] is False
    assert "has no worker that is ready: New workers cannot boot" in ended.value["text"]


def test_a_server_that_runs_and_is_heard_no_more_is_not(qml: Qml, storage: Storage) -> None:
    register(storage)
    long_ago = datetime.now(UTC) - timedelta(minutes=5)
    with sqlite3.connect(qml.database) as connection:
        connection.execute(
            "UPDATE qml_servers SET last_heartbeat = ?", (int(long_ago.timestamp() * 1_000_000),)
        )
    connection.close()

    ended = qml("health")

    assert ended.code == 1
    assert re.search(r"runs, and sends no heartbeats any more \(last heard 5m(\d+s)? ago\)", ended.out)


def test_a_server_is_healthy_between_two_beats_however_rare_it_has_set_them(
    qml: Qml, storage: Storage
) -> None:
    register(storage)
    its_own = ToldSetting(name="dead_server_timeout", value="10m", source="the code")
    storage.describe_server("blue#1", ServerDescription(settings=(its_own,)))
    long_ago = datetime.now(UTC) - timedelta(minutes=5)
    change_server(storage, "blue#1", last_heartbeat=int(long_ago.timestamp() * 1e6))

    ended = qml("health")

    assert (ended.code, ended.err) == (0, "")
    assert "1 worker, last heard 5m" in ended.out


def test_a_server_elsewhere_is_judged_only_where_none_of_this_machine_is_called_so(
    qml: Qml, storage: Storage
) -> None:
    register(storage)
    [here] = storage.list_servers()
    far = replace(here.process, host="another machine")
    storage.register_server(replace(here, id="blue#2", process=far))  # without a worker

    def asked_about(name: str) -> Ended:
        for each in storage.list_servers():
            storage.heartbeat_server(each.id, worker_rss={})  # as if no time had passed
        return qml("health", "--server", name)

    by_name, by_pid, by_id = (asked_about(name) for name in ("blue", str(far.pid), "blue#2"))

    healthy = f"healthy: blue (pid {far.pid}): 1 worker, last heard "
    assert (by_name.code, by_pid.code, by_id.code) == (0, 0, 1), (by_name, by_pid, by_id)
    assert (by_name.out.startswith(healthy), by_pid.out.startswith(healthy)) == (True, True)
    assert "has no worker that is ready" in by_id.out


def test_without_a_server_or_a_storage_nothing_is_healthy(qml: Qml, storage: Storage) -> None:
    none, named, silent = qml("health"), qml("health", "--server", "x"), qml("health", "--url", _NOWHERE)

    told = f"no server runs on this machine (0 in the registry of sqlite:///{qml.database})"
    assert (none.code, none.out) == (1, f"unhealthy: {told}\n")
    assert "no server is called x" in named.out
    assert (silent.code, silent.err) == (1, "")
    assert "is not available" in silent.out


def test_reading_commands_import_no_app_that_says_its_url_plainly(qml: Qml, storage: Storage) -> None:
    (qml.folder / "tasks.py").write_text(_PLAIN)

    for command in (("status",), ("jobs", "list"), ("queues", "list"), ("recurring", "list")):
        ended = qml("-A", "tasks:app", *command)

        assert (ended.code, ended.err) == (0, ""), command
