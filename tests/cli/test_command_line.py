"""What holds for every command: where options stand, where output goes, what is imported, how it ends."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.cli.command import Qml, on_a_terminal
from tests.storage.helpers import in_schema, patient_url


@pytest.mark.parametrize(
    "arguments",
    [
        ("-A", "tasks:app", "--url", "sqlite:///other.db", "enqueue", "resize", "path=a"),
        ("enqueue", "resize", "path=a", "-A", "tasks:app", "--url", "sqlite:///other.db"),
        ("--url", "sqlite:///other.db", "enqueue", "-A", "tasks:app", "resize", "path=a"),
        ("--url", "sqlite:///wrong.db", "-A", "no:app", "enqueue", "resize", "path=a", "-A", "tasks:app",
         "--url", "sqlite:///other.db"),
    ],
)  # fmt: skip
def test_app_and_url_are_taken_before_and_after_the_command(qml: Qml, arguments: tuple[str, ...]) -> None:
    ended = qml(*arguments)

    (job,) = qml("jobs", "--url", "sqlite:///other.db", "list", "--json").lines
    assert ended.code == 0
    assert job["queue"] == "images"
    assert "wrong.db" not in qml.files()


@pytest.mark.parametrize("command", [("status",), ("start", "--burst")])
def test_an_empty_url_names_no_storage_and_none_is_taken_instead(qml: Qml, command: tuple[str, ...]) -> None:
    (qml.folder / "coded.py").write_text("from qml_mp import QmlApp\napp = QmlApp('')\n")

    by_flag = qml("-A", "tasks:app", "--url", "", *command)
    by_code = qml("-A", "coded:app", *command)

    assert (by_flag.code, by_code.code) == (2, 2)
    assert "--url is empty and names no storage. " in by_flag.out + by_flag.err
    assert "The URL that the code gives is empty and names no storage. " in by_code.out + by_code.err
    assert qml.files() == {"tasks.py", "coded.py", "qml-mp.toml"}


def test_help_and_version_answer_without_loading_what_commands_need(qml: Qml) -> None:
    code = (
        "import sys; from qml_mp.cli.main import run; run(sys.argv[1:]);"
        "heavy = {'psycopg', 'croniter', 'sqlite3', 'asyncio', 'qml_mp.app'} & set(sys.modules);"
        "assert not heavy, heavy"
    )

    for option in ("--help", "--version"):
        ended = subprocess.run(
            [sys.executable, "-c", code, option], cwd=qml.folder, env=qml.environment(), capture_output=True,
            check=False,
        )  # fmt: skip

        assert ended.returncode == 0, ended.stderr
        assert b"qml-mp" in ended.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("enqueue", "resize"),
        ("jobs", "list"),
        ("status",),
        ("recurring", "list"),
    ],
)
def test_no_command_on_sqlite_loads_psycopg(qml: Qml, arguments: tuple[str, ...]) -> None:
    qml("migrate")
    code = (
        "import sys; from qml_mp.cli.main import run; code = run(sys.argv[1:]);"
        "assert 'psycopg' not in sys.modules; sys.exit(code)"
    )

    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=qml.folder, env=qml.environment(), capture_output=True,
        check=False,
    )  # fmt: skip

    assert ended.returncode == 0, ended.stderr


def test_a_reader_that_leaves_early_is_no_error(qml: Qml) -> None:
    for number in range(3):
        qml("enqueue", "resize", f"n={number}")
    reader, writer = os.pipe()
    os.close(reader)

    ended = subprocess.run(
        [sys.executable, "-m", "qml_mp", "jobs", "list", "--json"], cwd=qml.folder, env=qml.environment(),
        stdout=writer, stderr=subprocess.PIPE, check=False,
    )  # fmt: skip
    os.close(writer)

    assert (ended.returncode, ended.stderr) == (0, b"")


@pytest.mark.parametrize("command", ["jobs list", "status --json"])
def test_a_closed_standard_output_is_no_error(qml: Qml, command: str) -> None:
    qml("enqueue", "resize")

    ended = subprocess.run(
        ["bash", "-c", f'exec "$0" -m qml_mp {command} >&-', sys.executable],
        cwd=qml.folder, env=qml.environment(), stderr=subprocess.PIPE, check=False,
    )  # fmt: skip

    assert (ended.returncode, ended.stderr) == (0, b"")


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_colours_are_for_terminals_and_no_color_is_honoured(qml: Qml, no_color: str, coloured: bool) -> None:
    qml("enqueue", "resize")

    shown = on_a_terminal(qml, "jobs", "list", no_color=no_color)

    assert b"enqueued" in shown
    assert (b"\x1b[" in shown) is coloured
    assert "\x1b[" not in qml("jobs", "list").out


def test_the_same_commands_work_on_postgresql(qml: Qml, postgres_url: str) -> None:
    env = {"QML_MP_URL": patient_url(in_schema(postgres_url, "qml_cli_tests"))}

    migrated = qml("migrate", "--json", env=env)
    job_id = qml("-A", "tasks:app", "enqueue", "resize", "path=a", env=env).out.strip()
    qml("recurring", "add", "r", "0 9 * * *", "resize", env=env)
    status = qml("status", "--json", env=env).value
    shown = qml("jobs", "show", job_id, "--json", env=env).value
    cancelled = qml("jobs", "cancel", job_id, env=env)

    assert migrated.value["version"] >= 1
    assert status["states"]["enqueued"] >= 1
    assert shown["payload"] == {"path": "a"}
    assert cancelled.out == f"{job_id} deleted\n"
    assert [template["id"] for template in qml("recurring", "list", "--json", env=env).lines] == ["r"]
