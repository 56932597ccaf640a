"""Commands beside code that does not import: what fails says where, and which way there is without it."""

from __future__ import annotations

import platform
import subprocess
import sys
from dataclasses import replace

import pytest

from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.cli.command import TASKS, Qml, is_one_error
from tests.processes.harness import ROOT

_BROKEN = TASKS.replace("app = QmlApp()", 'import no_such_library\napp = QmlApp(str("sqlite:///qml.db"))')
_HANGS = _BROKEN.replace("import no_such_library", "import threading\nthreading.Event().wait()")
_WITH_A_THREAD = "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()"
_WITHOUT_ROOM = """
from qml_mp import failpoints
def hit(place):
    if place == "fork.before":
        raise BlockingIOError(11, "Resource temporarily unavailable")
failpoints.hit = hit
"""
_URL = ("--url", "sqlite:///qml.db")
_SOON = {"QML_MP_BOOT_TIMEOUT": "100ms"}


@pytest.mark.parametrize("command", [("check",), ("start",), ("jobs", "list"), ("enqueue", "f")])
@pytest.mark.parametrize(
    ("code", "told"),
    [
        (
            "import helper",
            "JSONDecodeError: Expecting value: line 1 column 2 (char 1) ({folder}/helper.py:3 in f)",
        ),
        ("import mended", "SyntaxError: expected ':' ({folder}/mended.py:2)"),
        ("names = (", "SyntaxError: '(' was never closed ({folder}/tasks.py:1)"),
        (
            "from qml_mp import ServerConfig; ServerConfig(job_timeout='5 mins')",
            "({folder}/tasks.py:1 in <module>)",  # not the line of the dataclass's own __init__
        ),
        ("import tasks_of_no_one", "No module named 'tasks_of_no_one' ({folder}/tasks.py:1 in <module>)"),
    ],
)
def test_where_the_code_does_not_import_is_said_and_that_there_is_more(
    qml: Qml, command: tuple[str, ...], code: str, told: str
) -> None:
    (qml.folder / "helper.py").write_text("import json\ndef f():\n    json.loads('[')\nf()\n")
    (qml.folder / "mended.py").write_text("import json\nif json\n    pass\n")
    (qml.folder / "tasks.py").write_text(f"{code}\nfrom qml_mp import QmlApp\napp = QmlApp(str())\n")

    ended = qml("-A", "tasks:app", *command)
    in_full = qml("-A", "tasks:app", *command, "-v")

    said = ended.out if command == ("check",) else ended.err
    assert ended.code == 3
    assert told.format(folder=qml.folder.name) in said
    assert said.count("(-v shows the traceback)") == 1
    assert "(-v shows the traceback)" not in in_full.out + in_full.err
    assert "Traceback (most recent call last):" in in_full.err


@pytest.mark.parametrize("command", [("check",), ("start",), ("jobs", "list"), ("enqueue", "f")])
@pytest.mark.parametrize("app", ["tasks:app", "shop.tasks:app"])
def test_of_an_app_that_the_settings_file_of_a_folder_above_names_is_said_who_names_it_and_where_to_call(
    qml: Qml, command: tuple[str, ...], app: str
) -> None:
    below = below_settings_of(qml, app)

    by_file = below(*command)
    by_flag = below("-A", app, *command)

    told = f"The app is named in {qml.folder}/qml-mp.toml, and imported from the current directory"
    assert (by_file.code, by_flag.code) == (3, 3)
    assert told in by_file.out + by_file.err
    assert f": call this in {qml.folder}.\n" in by_file.out + by_file.err
    assert "The app is named" not in by_flag.out + by_flag.err


@pytest.mark.parametrize("command", [("health",), ("web", "--port", "0")])
@pytest.mark.parametrize("app", ["tasks:app", "shop.tasks:app"])
def test_commands_that_import_no_app_say_that_its_source_is_not_found_and_where_to_call(
    qml: Qml, command: tuple[str, ...], app: str
) -> None:
    below = below_settings_of(qml, app)

    by_file = below(*command)
    by_flag = below("-A", app, *command)
    by_url = below("-A", app, *command, env={"QML_MP_URL": "sqlite:///none.db"})

    told = (
        f"The source of the app {app!r} is not found from here: mend that name, or name the storage by --url "
        "or QML_MP_URL."
    )
    where = f"The app is named in {qml.folder}/qml-mp.toml, and imported from the current directory"
    assert f"{told} {where}" in by_file.out + by_file.err
    assert f": call this in {qml.folder}. sqlite:///{below.folder}/qml.db, which" in by_file.out + by_file.err
    assert f"{told} sqlite:///{below.folder}/qml.db, which" in by_flag.out + by_flag.err
    assert "is not found" not in by_url.out + by_url.err


def test_of_an_app_that_is_found_and_does_not_import_is_not_said_where_to_call(qml: Qml) -> None:
    (qml.folder / "tasks.py").write_text(_BROKEN)
    below = below_settings_of(qml, "tasks:app")

    ended = below("enqueue", "f", env={"PYTHONPATH": f"{qml.folder}:{ROOT}"})

    assert (ended.code, ended.err.count("no_such_library"), "The app is named" in ended.err) == (3, 1, False)


def error_of_fresh_interpreter(qml: Qml, *arguments: str) -> str:
    """Of a command that cannot import what it needs; one of the suite's interpreters has all modules."""
    ended = subprocess.run(
        [sys.executable, "-m", "qml_mp", *arguments], capture_output=True, text=True, check=False,
        cwd=qml.folder, env=qml.environment(),
    )  # fmt: skip
    assert ended.returncode == 3
    assert is_one_error(ended.stderr)
    return ended.stderr


@pytest.mark.parametrize("command", [("check",), ("start",), ("jobs", "list")])
@pytest.mark.parametrize("code", ["from qml_mp import QmlApp\napp = QmlApp()\n", "names = []\n"])
def test_a_file_that_hides_a_module_of_python_is_told_and_what_to_do(
    qml: Qml, command: tuple[str, ...], code: str
) -> None:
    """Whether it is the app or not."""
    (qml.folder / "queue.py").write_text(code)

    told = error_of_fresh_interpreter(qml, "-A", "queue:app", *command)

    file = qml.folder / "queue.py"
    assert f"The file {file} hides Python's own module 'queue': give it another name." in told


@pytest.mark.parametrize(
    ("command", "file", "expected"),
    [
        (
            ("jobs", "list"),
            "queue/__init__.py",
            "The folder {folder}/queue hides Python's own module 'queue'",
        ),
        (("jobs", "list"), "sqlite3.py", "The file {folder}/sqlite3.py hides Python's own module 'sqlite3'"),
        (("web", "--port", "0"), "email.py", "The file {folder}/email.py hides Python's own module 'email'"),
    ],
    ids=["a package", "lacks what the hidden one has", "in the place of a package"],
)
def test_a_package_that_hides_a_module_and_a_file_that_lacks_what_the_hidden_one_has_are_told(
    qml: Qml, command: tuple[str, ...], file: str, expected: str
) -> None:
    path = qml.folder / file
    path.parent.mkdir(exist_ok=True)
    path.touch()

    told = error_of_fresh_interpreter(qml, "-A", "tasks:app", *command)

    assert expected.format(folder=qml.folder) in told


@pytest.mark.parametrize("command", [("check",), ("start",), ("enqueue", "f")])
def test_an_app_in_whose_place_a_module_of_python_is_found_is_told_so(
    qml: Qml, command: tuple[str, ...]
) -> None:
    (qml.folder / "platform.py").write_text("from qml_mp import QmlApp\napp = QmlApp()\n")

    of_python = qml("-A", "platform:app", *command)
    built_in = qml("-A", "sys:app", *command)
    of_the_user = qml("-A", "tasks:ap", *command)

    assert (of_python.code, built_in.code, of_the_user.code) == (3, 3, 3)
    told = f"has no attribute 'app'. It is Python's own ({platform.__file__}): give a file of yours that is"
    assert told in of_python.out + of_python.err
    assert "It is Python's own (built in)" in built_in.out + built_in.err
    assert "Python's own" not in of_the_user.out + of_the_user.err


@pytest.mark.parametrize(("file", "app"), [("code/tasks.py", "code.tasks:ap"), ("src/code.py", "code:ap")])
def test_the_users_own_package_that_is_called_like_a_module_of_python_is_not_told_to_be_its(
    qml: Qml, file: str, app: str
) -> None:
    """By an interpreter of its own: one of the suite has the module already."""
    path = qml.folder / file
    path.parent.mkdir()
    (path.parent / "__init__.py").touch()
    path.write_text("from qml_mp import QmlApp\napp = QmlApp()\n")

    ended = subprocess.run(
        [sys.executable, "-m", "qml_mp", "-A", app, "check"], capture_output=True, text=True, check=False,
        cwd=qml.folder, env={**qml.environment(), "PYTHONPATH": f"{qml.folder / 'src'}:{ROOT}"},
    )  # fmt: skip

    assert ended.returncode == 3
    assert f"The module {app.partition(':')[0]!r} has no attribute 'ap'." in ended.stdout + ended.stderr
    assert "Python's own" not in ended.stdout + ended.stderr


def below_settings_of(qml: Qml, app: str) -> Qml:
    """The command in a folder below one whose settings file names the app."""
    (qml.folder / "qml-mp.toml").write_text(f'app = "{app}"\n')
    below = qml.folder / "below"
    below.mkdir()
    return replace(qml, folder=below)


@pytest.mark.parametrize(
    "command", [("check",), ("start",), ("jobs", "list"), ("enqueue", "resize", "path=a")]
)
@pytest.mark.parametrize(
    ("named", "meant"),
    [
        ("tasks.py:app", "tasks:app"),
        ("./tasks.py:app", "tasks:app"),
        ("/srv/tasks.py:app", "tasks:app"),
        ("shop/tasks.py:app", "shop.tasks:app"),
    ],
)
def test_who_names_the_file_of_an_app_is_told_to_name_the_module(
    qml: Qml, command: tuple[str, ...], named: str, meant: str
) -> None:
    ended = qml("-A", named, *command)

    assert ended.code == 3
    assert (ended.out + ended.err).count("cannot be imported") <= 1
    assert f"name the module, `{meant}`, not its file." in ended.out + ended.err


@pytest.mark.parametrize(
    "command", [("status",), ("reload",), ("stop",), ("queues", "pause", "images"), ("jobs", "list")]
)
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


def test_the_environment_is_named_too_where_the_app_leaves_its_url_to_it(qml: Qml, storage: Storage) -> None:
    (qml.folder / "tasks.py").write_text("import no_such_library\n" + TASKS)

    refused = qml("-A", "tasks:app", "status")
    named = qml("-A", "tasks:app", "status", env={"QML_MP_URL": "sqlite:///qml.db"})

    assert "name that by --url or QML_MP_URL, and" in refused.err
    assert named.code == 0


def test_code_that_is_no_python_is_not_guessed_at_although_it_seems_to_say_its_url(
    qml: Qml, storage: Storage
) -> None:
    plain = 'from qml_mp import QmlApp\napp = QmlApp("sqlite:///qml.db")\n'
    (qml.folder / "tasks.py").write_text(f"{plain}def half(\n")

    refused = qml("-A", "tasks:app", "status")

    assert refused.code == 3
    assert "name that by --url, and" in refused.err


_ASKS_ALL = ("--all", "--yes")


@pytest.mark.parametrize(
    ("change", "made"), [("cancel", "deleted"), ("delete", "deleted"), ("retry", "enqueued")]
)
def test_jobs_are_changed_beside_code_whose_import_does_not_end(
    qml: Qml, storage: Storage, change: str, made: str
) -> None:
    storage.enqueue(Job.new("resize"))
    (qml.folder / "tasks.py").write_text(_HANGS)

    changed = qml("-A", "tasks:app", "jobs", change, *_ASKS_ALL, *_URL, env=_SOON)

    assert changed.code == 0
    assert changed.err.count("\n") == 1
    assert "alone: The app 'tasks:app' was not imported within 100ms (boot_timeout)." in changed.err
    assert storage.job_counts()[StateName(made)] == 1


@pytest.mark.parametrize("around", [_WITH_A_THREAD, _WITHOUT_ROOM], ids=["a thread", "no room"])
def test_a_command_that_can_fork_no_process_imports_the_app_itself(
    qml: Qml, storage: Storage, around: str
) -> None:
    """An agent may have started a thread, or a container have all the processes that it may have."""
    storage.enqueue(Job.new("resize"))
    (qml.folder / "agent.py").write_text(f"{around}\nfrom qml_mp.cli.main import main\nmain()\n")
    (qml.folder / "tasks.py").write_text(_BROKEN.replace("import no_such_library", ""))

    status = qml("-A", "tasks:app", "status", "--json", module="agent")
    paused = qml("-A", "tasks:app", "queues", "pause", "images", module="agent")
    cancelled = qml("-A", "tasks:app", "jobs", "cancel", *_ASKS_ALL, module="agent")

    assert (status.code, paused.code, cancelled.code) == (0, 0, 0), (status, paused, cancelled)
    assert status.value["states"]["enqueued"] == 1
    assert storage.job_counts()[StateName("deleted")] == 1


@pytest.mark.parametrize(
    "command", [("jobs", "cancel", *_ASKS_ALL), ("status",), ("queues", "resume", "images"), ("stop",)]
)
def test_a_command_that_wants_the_url_of_code_whose_import_does_not_end_says_how_to_name_it(
    qml: Qml, storage: Storage, command: tuple[str, ...]
) -> None:
    (qml.folder / "tasks.py").write_text(_HANGS)

    refused = qml("-A", "tasks:app", *command, env=_SOON)

    assert refused.code == 3
    assert is_one_error(refused.err)
    assert "was not imported within 100ms (boot_timeout). Only the storage's URL is wanted" in refused.err
    assert "-v shows" not in refused.err  # there is none of the user's
    assert "name that by --url" in refused.err


def test_a_queue_that_nobody_knows_is_looked_for_in_code_whose_import_does_not_end_within_a_limit(
    qml: Qml, storage: Storage
) -> None:
    (qml.folder / "tasks.py").write_text(_HANGS)

    refused = qml("-A", "tasks:app", "queues", "pause", "later", *_URL, env=_SOON)

    assert refused.code == 3
    assert "(boot_timeout). It was to say whether it serves a queue 'later'" in refused.err
    assert "-v shows" not in refused.err


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
