"""`check` and `health`: what they look at, and the exit code of each thing that is wrong."""

from __future__ import annotations

import os
import re
import socket
import sqlite3
import zipfile
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
_CONF = """
import os

def load_dotenv():
    os.environ["QML_MP_URL"] = "sqlite:///sub/qml.db"

def go():
    os.chdir("sub")
"""
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


def test_a_storage_that_may_lose_jobs_is_a_warning_and_the_server_logs_it(qml: Qml, storage: Storage) -> None:
    (qml.folder / "copy.db").hardlink_to(qml.database)

    checked = qml("-A", "tasks:app", "check")
    started = qml(*_START)

    assert (checked.code, started.code) == (0, 0)
    assert "storage   warning   the file has 2 names (hard links)" in checked.out
    assert started.err.count("the file has 2 names (hard links)") == 1, started


def test_an_app_that_starts_threads_when_imported_is_refused_with_preload_as_start_does(qml: Qml) -> None:
    (qml.folder / "threaded.py").write_text(_THREADED)
    preload = {"QML_MP_PRELOAD": "1"}

    checked = qml("-A", "threaded:app", "check", env=preload)
    started = qml("-A", "threaded:app", "start", "--burst", "-w", "1", env=preload)
    without = qml("-A", "threaded:app", "check")
    threadless = qml("-A", "tasks:app", "check", env=preload)

    assert (checked.code, started.code, without.code, threadless.code) == (2, 2, 0, 0)
    told = "With preload, importing 'threaded:app' started 1 thread of Python (Thread-1 (sleep)), which would"
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


@pytest.mark.parametrize("url", ["", "str('sqlite:///jobs.db')"])
def test_the_storage_of_code_that_does_not_import_is_a_warning_where_it_is_not_known(
    qml: Qml, url: str
) -> None:
    """Nobody has named the default, which is told about only where there is one."""
    code = f"import no_such_library\nfrom qml_mp import QmlApp\napp = QmlApp({url})\n"
    (qml.folder / "tasks.py").write_text(code)

    qml.folder.chmod(0o555)
    closed = qml("-A", "tasks:app", "check", "--json", file_modes_bind=True)
    qml.folder.chmod(0o755)
    without = qml("-A", "tasks:app", "check", "--json")
    with closing(open_storage(f"sqlite:///{qml.database}")) as storage:
        storage.migrate()
    beside = qml("-A", "tasks:app", "check")

    assert (closed.code, without.code, beside.code) == (3, 3, 3)
    assert results(closed) == results(without) == {"app": "failed", "storage": "warning"}
    assert "storage   warning   the app's is not known, for it does not import; " in beside.out
    assert "schema    ok        version" in beside.out


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


@pytest.mark.parametrize(
    ("app", "environment", "warned"),
    [
        pytest.param('QmlApp("memory://")', {}, ["storage"], id="a storage of the server's own"),
        pytest.param(
            'QmlApp("sqlite:///qml.db", config=ServerConfig(dead_server_timeout="2m"))',
            {"QML_MP_HEARTBEAT_INTERVAL": "40s"}, [], id="the code mends what the environment says",
        ),
    ],
)  # fmt: skip
def test_what_start_takes_is_0(qml: Qml, app: str, environment: dict[str, str], warned: list[str]) -> None:
    (qml.folder / "mine.py").write_text(f"from qml_mp import QmlApp, ServerConfig\napp = {app}\n")
    named = ("-A", "mine:app")

    checked = qml(*named, "check", "--json", env=environment)
    started = qml(*named, "start", "--burst", "-w", "1", env=environment)

    assert (checked.code, started.code) == (0, 0), (checked, started)
    assert [check for check, result in results(checked).items() if result != "ok"] == warned


@pytest.mark.parametrize("place", ["no folder", "folder closed", "folder read only", "file read only", "log"])
def test_a_file_that_start_could_not_write_is_4_and_nothing_is_made(qml: Qml, place: str) -> None:
    folder = qml.folder / "data"
    if place != "no folder":
        folder.mkdir()
    if place in ("file read only", "log"):
        with closing(open_storage(f"sqlite:///{folder}/jobs.db")) as storage:
            storage.migrate()
    if place == "file read only":
        (folder / "jobs.db").chmod(0o400)
    elif place == "log":
        folder.chmod(0o555)  # in which SQLite makes its log
    else:
        with suppress(FileNotFoundError):
            folder.chmod(0o000 if place == "folder closed" else 0o555)

    named = ("-A", "tasks:app", "--url", "sqlite:///data/jobs.db")
    checked = qml(*named, "check", file_modes_bind=True)
    made = {path.name for path in folder.iterdir()} if folder.exists() else set()
    started = qml(*named, "start", "--burst", file_modes_bind=True)

    with suppress(FileNotFoundError):
        folder.chmod(0o700)
    assert (checked.code, started.code) == (4, 4), checked
    assert "storage   failed    The " in checked.out
    assert "data/jobs.db" in checked.out
    assert made == ({"jobs.db"} if place in ("file read only", "log") else set())


def test_a_folder_that_may_not_be_entered_is_not_taken_for_one_without_a_schema(qml: Qml) -> None:
    folder = qml.folder / "data"
    folder.mkdir(mode=0o000)

    listed = qml("jobs", "list", "--url", "sqlite:///data/jobs.db", file_modes_bind=True)

    folder.chmod(0o700)
    assert listed.code == 4
    assert "data/jobs.db cannot be looked for: Permission denied. See that this user may enter" in listed.err


@pytest.mark.parametrize(
    "command", ["status", "health", "check", "enqueue f", "migrate", "bench", "web --port 0"]
)
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
    return patient_url(in_schema(url_of(admin, login), schema))


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
        assert 'GRANT CREATE ON DATABASE "postgres" TO "checker"' in told
        assert "or run `qml-mp migrate` once with the URL of a role that has it" in told
    assert 'GRANT CREATE ON SCHEMA "made" TO "checker"' in made[0].out
    assert "may not write to all tables of schema 'filled'" in filled[0].out
    assert admin.execute("SELECT to_regnamespace('unmade'), to_regclass('made.jobs')").fetchone() == (
        None,
        None,
    )


def test_a_role_without_rights_to_what_a_migration_has_added_is_4_before_a_server_registers(
    qml: Qml, admin: psycopg.Connection
) -> None:
    with closing(open_storage(in_schema_as(admin, admin.info.user, "filled"))) as storage:
        storage.migrate()
        admin.execute("GRANT USAGE ON SCHEMA filled TO checker")
        admin.execute("CREATE TABLE filled.of_another (id integer)")
        admin.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA filled TO checker")
        admin.execute("REVOKE ALL ON filled.of_another FROM checker")
        named = ("--url", in_schema_as(admin, "checker", "filled"))
        granted = qml(*named, "check")
        admin.execute("REVOKE ALL ON filled.acts FROM checker")  # as if a migration had made it since

        checked, started = qml(*named, "check"), qml(*named, *_START)

        assert (granted.code, checked.code, started.code) == (0, 4, 4), (granted, checked, started)
        for told in (checked.out, started.err):
            assert "may not write to all tables of schema 'filled'" in told
            assert 'DELETE ON ALL TABLES IN SCHEMA "filled" TO "checker"' in told
        assert admin.execute("SELECT FROM filled.workers").fetchall() == []
        assert "Worker 1 started" not in started.err


def test_a_server_with_a_ready_worker_is_healthy(qml: Qml, storage: Storage) -> None:
    (qml.folder / "tasks.py").write_text(_PLAIN)
    register(storage)

    ended = qml("-A", "tasks:app", "health")

    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(f"healthy: blue (pid {host.identity().pid}): 1 worker, last heard ")


@pytest.mark.parametrize("is_called_in", [".", "elsewhere"])
def test_health_of_an_app_whose_module_goes_to_its_own_folder_looks_there_without_importing_it(
    qml: Qml, storage: Storage, is_called_in: str
) -> None:
    code = "import os, pathlib\nos.chdir(pathlib.Path(__file__).parent)\n" + _PLAIN
    (qml.folder / "tasks.py").write_text(code)
    (qml.folder / "elsewhere").mkdir()
    register(storage)
    caller = replace(qml, folder=qml.folder / is_called_in)
    path = os.pathsep.join([str(qml.folder), os.environ.get("PYTHONPATH", "")])

    ended = caller("-A", "tasks:app", "health", env={"PYTHONPATH": path})

    assert (ended.code, ended.err) == (0, "")


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


def test_an_app_that_is_in_no_folder_and_can_be_imported_is_not_said_to_be_missing(qml: Qml) -> None:
    with zipfile.ZipFile(qml.folder / "apps.zip", "w") as archive:
        archive.writestr("packed.py", "from qml_mp import QmlApp\napp = QmlApp()\n")
    environment = {"PYTHONPATH": f"{qml.folder}/apps.zip"}

    (qml.folder / "shop").mkdir()
    (qml.folder / "shop" / "__init__.py").touch()

    checked = qml("-A", "packed:app", "check", env=environment)
    health = qml("-A", "packed:app", "health", env=environment)
    missing = qml("-A", "shop.taskz:app", "health")

    assert checked.code == 0
    assert "What storage the app 'packed:app' uses is not plain from its source" in health.out
    assert "The source of the app 'shop.taskz:app' is not found from here" in missing.out


def test_check_of_broken_code_says_why_the_storage_that_it_looks_at_does_not_answer(qml: Qml) -> None:
    (qml.folder / "tasks.py").write_text(
        "import no_such_library\nfrom qml_mp import QmlApp\napp = QmlApp()\n"
    )
    (qml.folder / "qml-mp.toml").write_text(f'url = "{_NOWHERE}"\n')

    broken = qml("-A", "tasks:app", "check")

    assert broken.code == 3
    assert "storage   warning   the app's is not known, for it does not import; " in broken.out
    assert "is not available" in broken.out


def test_commands_that_import_no_app_ask_for_the_url_that_its_source_does_not_say_plainly(qml: Qml) -> None:
    """They take the default, which has no schema."""
    code = "import os\nfrom qml_mp import QmlApp\napp = QmlApp(os.environ['U'])\n"
    (qml.folder / "tasks.py").write_text(code)
    told = "What storage the app 'tasks:app' uses is not plain from its source, and it is not imported here: "

    health, page = qml("-A", "tasks:app", "health"), qml("-A", "tasks:app", "web", "--port", "0")

    assert (health.code, page.code) == (1, 5)
    assert told in health.out
    assert told in page.err
    assert not qml.database.exists()


@pytest.mark.parametrize(
    ("code", "doubt", "ways"),
    [
        (
            "conf.load_dotenv()\napp = QmlApp()",
            "The URL of the app 'tasks:app' is left to the environment, which its import may set",
            "--url or QML_MP_URL",
        ),
        (
            'conf.go()\napp = QmlApp("sqlite:///qml.db")',
            "What storage the app 'tasks:app' uses is not plain from its source",
            "--url",
        ),
    ],
    ids=["it sets the environment", "it changes the directory"],
)
def test_commands_that_import_no_app_say_that_its_import_may_name_another_storage(
    qml: Qml, code: str, doubt: str, ways: str
) -> None:
    """Also where the one that they take is there, and no server in it."""
    (qml.folder / "sub").mkdir()
    (qml.folder / "conf.py").write_text(_CONF)
    (qml.folder / "tasks.py").write_text(f"import conf\nfrom qml_mp import QmlApp\n{code}\n")
    told = f"{doubt}, and it is not imported here: name it by {ways}."
    web, default = ("-A", "tasks:app", "web", "--port"), f"sqlite:///{qml.database}"

    migrated = qml("-A", "tasks:app", "migrate")
    health, page = qml("-A", "tasks:app", "health"), qml(*web, "0")
    named = qml("-A", "tasks:app", "health", "--url", "sqlite:///sub/qml.db")
    with closing(open_storage(default)) as storage:
        storage.migrate()
    beside = qml("-A", "tasks:app", "health")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        other_page = qml(*web, str(taken.getsockname()[1]))

    assert (migrated.code, health.code, page.code, beside.code) == (0, 1, 5, 1)
    assert health.out == f"unhealthy: {told} {default}, which was taken, has no qml-mp schema.\n"
    assert told in page.err
    none = "unhealthy: no server runs on this machine (0 in the registry of"
    assert named.out == f"{none} sqlite:///{qml.folder}/sub/qml.db)\n"
    assert beside.out == f"{none} {default}). {told}\n"
    assert other_page.err.startswith(f"qml-mp: {told} The page shows {default}.\n")


def test_a_url_that_the_import_sets_counts_before_the_settings_file_as_who_does_not_import_says(
    qml: Qml,
) -> None:
    (qml.folder / "qml-mp.toml").write_text('app = "tasks:app"\nurl = "sqlite:///dev.db"\n')
    (qml.folder / "sub").mkdir()
    (qml.folder / "conf.py").write_text(_CONF)
    code = "import conf\nfrom qml_mp import QmlApp\nconf.load_dotenv()\napp = QmlApp()\n"
    (qml.folder / "tasks.py").write_text(code)
    real, dev = f"sqlite:///{qml.folder}/sub/qml.db", f"sqlite:///{qml.folder}/dev.db"
    told = (
        "The URL of the app 'tasks:app' is left to the environment, which its import may set, and it is not "
        "imported here: name it by --url or QML_MP_URL."
    )
    none = "unhealthy: no server runs on this machine (0 in the registry of"

    migrated, status, checked = qml("migrate"), qml("status"), qml("check")
    health = qml("health")
    other = qml("migrate", "--url", "sqlite:///dev.db")
    beside, named = qml("health"), qml("health", env={"QML_MP_URL": "sqlite:///sub/qml.db"})
    with socket.create_server(("127.0.0.1", 0)) as taken:
        page = qml("web", "--port", str(taken.getsockname()[1]))
    (qml.folder / "tasks.py").write_text(f"import no_such_library\n{code}")
    broken = qml("check")

    assert (migrated.code, status.code, checked.code, other.code) == (0, 0, 0, 0)
    assert status.out.startswith(f"{real}\n")
    assert f"storage   ok        {real} answers" in checked.out
    assert health.out == f"unhealthy: {told} {dev}, which was taken, has no qml-mp schema.\n"
    assert beside.out == f"{none} {dev}). {told}\n"
    assert named.out == f"{none} {real})\n"
    assert page.err.startswith(f"qml-mp: {told} The page shows {dev}.\n")
    assert f"storage   warning   the app's is not known, for it does not import; {dev} may be" in broken.out


def test_reading_commands_import_no_app_that_says_its_url_plainly(qml: Qml, storage: Storage) -> None:
    (qml.folder / "tasks.py").write_text(_PLAIN)

    for command in (("status",), ("jobs", "list"), ("queues", "list"), ("recurring", "list")):
        ended = qml("-A", "tasks:app", *command)

        assert (ended.code, ended.err) == (0, ""), command


def test_a_setting_that_is_written_wrong_in_the_environment_is_told(qml: Qml, storage: Storage) -> None:
    told = "QML_MP_WORKES in the environment is no setting and has no effect; did you mean QML_MP_WORKERS?\n"

    read = qml("status", env={"QML_MP_WORKES": "4", "QML_MP_TEST_X": "1"})
    started = qml("-A", "tasks:app", "start", "-w", "0", "--burst", env={"QML_MP_WORKES": "4"})

    assert read.err == f"qml-mp: {told}"
    assert f"qml-mp: WARNING {told}" in started.err


@pytest.mark.parametrize("command", ["start", "check", "enqueue"])
def test_a_setting_is_told_that_the_import_of_the_app_writes_wrong_into_the_environment(
    qml: Qml, command: str
) -> None:
    """As `load_dotenv()` does; once, and what was there before is told of once, too."""
    wrong = 'import os\nos.environ["QML_MP_WORKRES"] = "8"\n'
    (qml.folder / "tasks.py").write_text(f"{wrong}{TASKS}")
    flags = {"start": ["-w", "0", "--burst"], "check": [], "enqueue": ["boom"]}[command]

    ended = qml("-A", "tasks:app", command, *flags, env={"QML_MP_QUEUE": "mail"})

    assert ended.code == 0
    for name, meant in [("QML_MP_WORKRES", "QML_MP_WORKERS"), ("QML_MP_QUEUE", "QML_MP_QUEUES")]:
        told = f"{name} in the environment is no setting and has no effect; did you mean {meant}?"
        assert ended.err.count(told) == 1, ended.err
