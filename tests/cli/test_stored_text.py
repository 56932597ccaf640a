"""Text from the storage, whatever it holds, steers no terminal and forges no line of any command's output."""

from __future__ import annotations

import io
import json
import sqlite3
import sys
import uuid
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from qml_mp.cli.main import run
from qml_mp.core.acts import Asker
from qml_mp.core.state import StateName
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from tests.cli.command import Qml

# An escape sequence, the same in one character (C1), a title, a bell, backspaces, a carriage return, line
# ends that only some programs know, DEL, text that runs backwards, characters of no width.
NASTY = ("\x1b[2J", "\x9b31m", "\x1b]0;owned\x07", "\x08", "\r", "\n", "\t", "\x0b", "\x1c", "\x85", "\u2028",
         "\x7f", "\u202e", "\u2066", "\u200b", "\ufeff", "\nqml-mp: error: FORGED")  # fmt: skip
STORABLE = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
TEXTS = st.lists(st.one_of(st.sampled_from(NASTY), st.text(STORABLE, max_size=5)), max_size=8).map("".join)

READING = (
    ["jobs", "list"],
    ["recurring", "list"],
    ["queues", "list"],
    ["servers", "list"],
    ["workers", "list"],
    ["status"],
)
EVIL = """
from qml_mp import QmlApp, RetryPolicy

app = QmlApp()

@app.job(retry=RetryPolicy.none())
def evil() -> None:
    raise ValueError("\\x1b[2J\\x9b31m \\u202e\\nqml-mp: error: FORGED")
"""
_INSTANT_US = 1_800_000_000_000_000


@pytest.mark.fault(86)
@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS)
@example(text="".join(NASTY))
@example(text="?\nqml-mp: error: FORGED now")  # five fields: croniter says which is wrong
def test_no_command_prints_a_control_character_that_is_stored(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / str(uuid.uuid4())
    folder.mkdir()
    (folder / "qml-mp.toml").touch()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    job_ids = fill_every_text_column(folder / "qml.db", text)

    for command in READING:
        assert_printable(command)
        for value in assert_printable([*command, "--json"]).splitlines():
            json.loads(value)
    for job_id in job_ids:
        assert_printable(["jobs", "show", job_id])
        shown = json.loads(assert_printable(["jobs", "show", job_id, "--json"]))
        assert shown["method"] == text
        for change in ("retry", "cancel", "delete"):
            assert_printable(["jobs", change, job_id])
        assert_printable(["jobs", "cancel", "--force", job_id])
    for verb in ("run", "preview", "enable", "disable", "remove"):
        assert_printable(["-v", "recurring", verb, f"id {text}"])
        assert_printable(["-v", "recurring", verb, f"other {text}"])


@pytest.mark.fault(86)
def test_the_error_of_an_awaited_job_is_printable(qml: Qml) -> None:
    (qml.folder / "tasks.py").write_text(EVIL)
    with qml.started("-w", "1"):
        ended = qml("-v", "-A", "tasks:app", "enqueue", "evil", "--wait")

    assert ended.code == 7
    assert not raw_characters(ended.err)
    assert "\\x1b[2J\\x9b31m \\u202e" in ended.err


def test_the_audit_shows_control_characters_as_escapes(qml: Qml, storage: Storage) -> None:
    asker = Asker(who="anna\x1b[2J", where="web\x07")
    said = "too slow\x9b31m\u202e\nqml-mp: error: FORGED"
    storage.audit(asker, "pause queue\r", "images\nqml-mp: error: FORGED", said=said)

    shown, read = qml("audit"), qml("audit", "--json")

    assert not raw_characters(shown.out + read.out)
    assert len(shown.out.splitlines()) == 2  # the heading and what was changed
    for escaped in (
        r"anna\x1b[2J",
        r"web\x07",
        r"pause queue\r",
        r"images\nqml-mp",
        r"too slow\x9b31m\u202e",
    ):
        assert escaped in shown.out
    assert (read.value["by"], read.value["said"]) == (asker.who, said)


def assert_printable(command: list[str]) -> str:
    """Run the command in this process; its standard output. No character of its output but newline is raw."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        run([*command])
    texts = []
    for stream in (out, err):
        stream.flush()
        assert isinstance(stream.buffer, io.BytesIO)
        texts.append(stream.buffer.getvalue().decode())
    for printed in texts:
        assert not raw_characters(printed), (command, printed)
        assert not [line for line in printed.split("\n") if line.startswith("qml-mp: error: FORGED")]
    return texts[0]


def raw_characters(printed: str) -> set[str]:
    """What a terminal might obey."""
    return {char for char in printed if char != "\n" and not char.isprintable()}


def fill_every_text_column(database: Path, text: str) -> list[str]:
    """A row of each table, and a job of each state, with the text wherever there is text; the jobs' ids."""
    with closing(open_storage(f"sqlite:///{database}")) as storage:
        storage.migrate()
    with closing(sqlite3.connect(database)) as connection, connection:
        job_ids = [str(uuid.uuid4()) for _ in StateName]
        for job_id, state in zip(job_ids, StateName, strict=True):
            own: dict[str, object] = {"id": job_id, "state": state, "unique_key": text + job_id}
            insert(connection, "jobs", text, {**own, "worker_id": "worker", "fire_at": None})
            insert(connection, "attempts", text, {"job_id": job_id, "kind": "failure"})
        insert(connection, "servers", text, {"pid": 1})
        insert(connection, "workers", text, {"id": "worker", "pid": 1})
        insert(connection, "recurring_jobs", text, {"id": f"id {text}"})
        insert(connection, "recurring_jobs", text, {"id": "good", "cron": "* * * * *", "tz": "UTC"})
    return job_ids


def insert(connection: sqlite3.Connection, table: str, text: str, given: dict[str, object]) -> None:
    """A row with the given columns, the text in every other text column, and numbers that can be read."""
    row: dict[str, object] = {}
    for _, column, kind, *_ in connection.execute(f"PRAGMA table_info(qml_{table})"):
        if column in given:
            row[column] = given[column]
        elif column == "metadata":
            row[column] = json.dumps({text: text})
        elif column in ("queues", "methods"):
            row[column] = json.dumps([text])
        elif column in ("payload", "result"):
            row[column] = json.dumps({"text": text}, ensure_ascii=False)
        elif kind == "TEXT":
            row[column] = text
        elif column.endswith("_at"):
            row[column] = _INSTANT_US
        else:
            row[column] = 1
    places = ", ".join("?" * len(row))
    connection.execute(f"INSERT INTO qml_{table} ({', '.join(row)}) VALUES ({places})", list(row.values()))
