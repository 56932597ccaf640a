"""Commands beside code that does not import: what fails says where, and which way there is without it."""

from __future__ import annotations

import pytest

from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.cli.command import TASKS, Qml, is_one_error

_BROKEN = TASKS.replace("app = QmlApp()", 'import no_such_library\napp = QmlApp(str("sqlite:///qml.db"))')
_HANGS = _BROKEN.replace("import no_such_library", "import threading\nthreading.Event().wait()")
_URL = ("--url", "sqlite:///qml.db")
_SOON = {"QML_MP_BOOT_TIMEOUT": "100ms"}


@pytest.mark.parametrize(
    ("command", "code", "told"),
    [
        (
            ("start",),
            "import helper",
            "JSONDecodeError: Expecting value: line 1 column 2 (char 1) ({folder}/helper.py:3 in f)",
        ),
        (("check",), "names = (", "SyntaxError: '(' was never closed ({folder}/tasks.py:1)"),
        (
            ("enqueue", "f"),
            "import tasks_of_no_one",
            "No module named 'tasks_of_no_one' ({folder}/tasks.py:1 in <module>)",
        ),
    ],
)
def test_where_the_code_does_not_import_is_said_and_that_there_is_more(
    qml: Qml, command: tuple[str, ...], code: str, told: str
) -> None:
    (qml.folder / "helper.py").write_text("import json\ndef f():\n    json.loads('[')\nf()\n")
    (qml.folder / "tasks.py").write_text(f"{code}\nfrom qml_mp import QmlApp\napp = QmlApp(str())\n")

    ended = qml("-A", "tasks:app", *command)
    in_full = qml("-A", "tasks:app", *command, "-v")

    said = ended.out if command == ("check",) else ended.err
    assert ended.code == 3
    assert told.format(folder=qml.folder.name) in said
    assert said.count("(-v shows the traceback)") == 1
    assert "(-v shows the traceback)" not in in_full.out + in_full.err
    assert "Traceback (most recent call last):" in in_full.err


def test_who_names_the_file_of_an_app_is_told_to_name_the_module(qml: Qml) -> None:
    ended = qml("-A", "shop/tasks.py:app", "start")

    assert ended.code == 3
    assert "name the module, `shop.tasks:app`, not its file." in ended.err


@pytest.mark.parametrize("command", [("status",), ("stop",), ("queues", "pause", "images")])
def test_a_command_that_wants_the_url_alone_says_how_to_name_it(
    qml: Qml, storage: Storage, command: tuple[str, ...]
) -> None:
    storage.enqueue(Job.new("resize", queue="images"))
    (qml.folder / "tasks.py").write_text(_BROKEN)

    refused = qml("-A", "tasks:app", *command)
    named = qml("-A", "tasks:app", *command, *_URL)

    assert refused.code == 3
    assert is_one_error(refused.err)
    assert "tasks.py:7 in <module>). Only the storage's URL is wanted of it here: name that by --url" in (
        refused.err
    )
    assert named.code in (0, 1), named  # 1: no server runs that could reload or stop
    assert "no_such_library" not in named.err


def test_jobs_are_changed_beside_code_whose_import_does_not_end(qml: Qml, storage: Storage) -> None:
    storage.enqueue(Job.new("resize"))
    (qml.folder / "tasks.py").write_text(_HANGS)

    changed = qml("-A", "tasks:app", "jobs", "cancel", "--all", "--yes", *_URL, env=_SOON)

    assert changed.code == 0
    assert changed.err.count("\n") == 1
    assert "alone: The app 'tasks:app' was not imported within 100ms (boot_timeout)." in changed.err
    assert storage.job_counts()[StateName.DELETED] == 1


def test_a_queue_that_nobody_knows_wants_the_app_or_force(qml: Qml, storage: Storage) -> None:
    (qml.folder / "tasks.py").write_text(_BROKEN)

    refused = qml("-A", "tasks:app", "queues", "pause", "later", *_URL)
    forced = qml("-A", "tasks:app", "queues", "pause", "later", *_URL, "--force")

    assert refused.code == 3
    assert "With --force it is not asked. (-v shows the traceback)\n" in refused.err
    assert forced.code == 0


def test_a_job_can_be_cancelled_beside_broken_code(qml: Qml, storage: Storage) -> None:
    job_id = storage.enqueue(Job.new("resize"))
    (qml.folder / "tasks.py").write_text(_BROKEN)

    cancelled = qml("-A", "tasks:app", "jobs", "cancel", job_id, *_URL)

    assert cancelled.code == 0
    assert (
        "what is kept how long is taken from the settings alone: The app 'tasks:app' cannot" in cancelled.err
    )
    assert storage.job_counts()[StateName.DELETED] == 1
