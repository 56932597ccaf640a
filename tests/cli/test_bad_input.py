"""Bad input: each kind has its documented exit code and one paragraph, and nothing is written."""

from __future__ import annotations

import socket
import sqlite3
from contextlib import closing

import pytest

from tests.cli.command import Qml, is_one_error

_DEEP = "[" * 100_000 + "]" * 100_000
_LARGE = '{"path": "' + "a" * 2 * 1024 * 1024 + '"}'
_STDIN = ("enqueue", "resize", "--payload", "-")


@pytest.mark.parametrize(
    ("arguments", "stdin", "said"),
    [
        (("-A", "tasks:app", "enqueue", "nope"), "", "No worker registered for method: nope"),
        (("-A", "tasks:app", "enqueue", "resize", "pfad=a", "width=3"), "",
         "missing a required argument: 'path', and there is none named 'pfad'."),
        (("-A", "tasks:app", "enqueue", "resize", "path=a", "width=wide"), "", "'width'"),
        (("enqueue", "resize", "--payload", '{"x": NaN}'), "", "JSON cannot hold"),
        (("enqueue", "resize", 'x="a\\u0000b"'), "", "NUL"),
        (("enqueue", "resize", 'x="\\ud800"'), "", "lone surrogate"),
        (_STDIN, _LARGE, "the limit is 1,048,576"),
        (_STDIN, _DEEP, "nested"),
        (_STDIN, "{not json", "not JSON"),
        (("enqueue", "resize", "path"), "", "key=value"),
        (("enqueue", "resize", "a=1", "a=2"), "", "given twice"),
        (("enqueue", "resize", "--delay", "soon"), "", "--delay is 'soon'"),
        (("enqueue", "resize", "--at", "tomorrow"), "", "--at is 'tomorrow'"),
        (("enqueue", "resize", "--delay", "1m", "--at", "2030-01-01"), "", "not both"),
        (("enqueue", "resize", "--priority", "high"), "", "--priority"),
        (("enqueue", "resize", "--wait-timeout", "5s"), "", "needs --wait"),
        (("recurring", "add", "r", "every day", "resize"), "", "cron expression"),
        (("recurring", "add", "r", "0 9 * * *", "resize", "--tz", "Mars/Base"), "", "Mars/Base"),
        (("jobs", "retry", "not-an-id"), "", "not a job id"),
        (("jobs", "list", "--state", "done"), "", "--state"),
        (("start",), "", "pass -A module:attribute, or set QML_MP_APP"),
        (("start", "-A", "tasks:app", "--shutdown-timeout", "soon"), "", "--shutdown-timeout is 'soon'"),
        (("tasks:app", "start"), "", "'tasks:app'. An app is named by -A: `qml-mp -A tasks:app …`."),
        (("-A", "tasks:app", "--burst", "start"), "", "'--burst' is an option of `start`; put it behind"),
        (("--url", "mysql://host/db", "jobs", "list"), "", "Accepted forms"),
    ],
    ids=lambda value: None if not isinstance(value, tuple) else str(value)[:60],
)  # fmt: skip
def test_bad_input_exits_2_with_one_paragraph_and_creates_nothing(
    qml: Qml, arguments: tuple[str | bytes, ...], stdin: str, said: str
) -> None:
    before = qml.files()

    ended = qml(*arguments, stdin=stdin)

    assert ended.code == 2
    assert said in ended.err
    assert is_one_error(ended.err)
    assert ended.out == ""
    assert qml.files() == before


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("import nowhere_to_be_found", "No module named 'nowhere_to_be_found'"),
        ("raise RuntimeError('not today')", "RuntimeError: not today"),
        ("app = 5", "not a QmlApp"),
    ],
)
def test_an_app_that_does_not_import_exits_3(qml: Qml, module: str, said: str) -> None:
    (qml.folder / "broken.py").write_text(module)
    before = qml.files()

    ended = qml("-A", "broken:app", "enqueue", "resize", "path=a.png")

    assert ended.code == 3
    assert said in ended.err
    assert is_one_error(ended.err)
    assert qml.files() == before


@pytest.mark.parametrize("arguments", [("enqueue", "resize"), ("status",)])
def test_a_port_where_no_server_listens_exits_4(qml: Qml, arguments: tuple[str, ...]) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and never listens, so that nobody else can
        url = f"postgresql://someone:secret@127.0.0.1:{bound.getsockname()[1]}/db"

        ended = qml(*arguments, "--url", url)

    assert ended.code == 4
    assert is_one_error(ended.err)
    assert "secret" not in ended.err
    assert ended.out == ""


def test_a_read_only_sqlite_file_exits_4_and_stays_as_it_is(qml: Qml) -> None:
    qml("enqueue", "resize", "path=a.png")
    before = qml.dump()
    qml.database.chmod(0o400)
    qml.folder.chmod(0o500)

    ended = qml("enqueue", "resize", "path=b.png", file_modes_bind=True)

    qml.folder.chmod(0o700)
    assert ended.code == 4
    assert str(qml.database) in ended.err
    assert is_one_error(ended.err)
    assert qml.dump() == before


def test_a_file_that_is_no_database_exits_4_and_stays_as_it_is(qml: Qml) -> None:
    qml.database.write_text("These are my notes.\n" * 100)
    before = qml.database.read_bytes()

    ended = qml("enqueue", "resize", "path=b.png")

    assert ended.code == 4
    assert "is not an SQLite database" in ended.err
    assert qml.database.read_bytes() == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("enqueue", "resize", "path=b.png"),
        ("status",),
        ("migrate",),
    ],
)
def test_a_schema_newer_than_the_code_exits_5_and_stays_as_it_is(
    qml: Qml, arguments: tuple[str, ...]
) -> None:
    qml("enqueue", "resize", "path=a.png")
    _set_schema_version(qml, 999)
    before = qml.dump()

    ended = qml(*arguments)

    assert ended.code == 5
    assert "999" in ended.err
    assert is_one_error(ended.err)
    assert qml.dump() == before


def test_a_schema_older_than_the_code_says_how_its_servers_are_stopped(qml: Qml) -> None:
    """Not by this `stop`, which needs the migration that has to wait for it."""
    qml("enqueue", "resize", "path=a.png")
    with closing(sqlite3.connect(qml.database)) as connection, connection:
        connection.execute("DELETE FROM qml_schema_version WHERE version > 1")

    ended = qml("stop")

    assert ended.code == 5
    assert "stop every server on it, by SIGTERM or with the qml-mp that it runs (this one cannot" in ended.err
    assert is_one_error(ended.err)


@pytest.mark.parametrize(
    "arguments",
    [
        ("jobs", "list"),
        ("status",),
        ("audit",),
        ("recurring", "run", "r"),
    ],
)
def test_looking_at_a_storage_without_a_schema_exits_5_and_creates_no_file(
    qml: Qml, arguments: tuple[str, ...]
) -> None:
    before = qml.files()

    ended = qml(*arguments)

    assert ended.code == 5
    assert "There is no qml-mp schema in" in ended.err
    assert qml.files() == before


def test_a_file_in_a_folder_that_is_not_there_exits_4(qml: Qml) -> None:
    ended = qml("--url", "sqlite:///missing/jobs.db", "enqueue", "resize")

    assert ended.code == 4
    assert f"The folder of the SQLite file {qml.folder}/missing/jobs.db does not exist." in ended.err
    assert is_one_error(ended.err)


def test_a_traceback_is_shown_only_when_asked_for(qml: Qml) -> None:
    ended = qml("-v", "jobs", "show", "not-an-id")

    assert ended.code == 2
    assert "Traceback" in ended.err
    assert is_one_error(ended.err.splitlines(keepends=True)[-1])


def _set_schema_version(qml: Qml, version: int) -> None:
    connection = sqlite3.connect(qml.database)
    connection.execute("INSERT INTO qml_schema_version (version, applied_at) VALUES (?, 0)", (version,))
    connection.commit()
    connection.close()


@pytest.mark.fault(85)
@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "postgresql://u:S3CR?ET@h/db"],
        ["-A", "postgresql://u:S3CRET@h/db", "start"],
        ["jobs", "show", "postgresql://u:S3CRET@h/db"],
        ["status", "postgresql://u:12/my S3CR ET@h/db"],
        ["enqueue", "work", "postgresql://u:S3CRET@h/db"],
        ["--url", "host=127.0.0.1 port=1 password=S3CRET", "status"],
        ["--url", "postgresql://u:S3CR@ET@127.0.0.1:1/db", "status"],
    ],
)
def test_a_url_is_never_quoted_with_its_password(qml: Qml, arguments: list[str]) -> None:
    ended = qml(*arguments)

    assert ended.code != 0
    assert "S3CR" not in ended.out + ended.err
    assert "ET@" not in ended.out + ended.err
