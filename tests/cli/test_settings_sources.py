"""Where settings come from, and which source wins: flag, code, environment, file, default."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.cli.command import Qml

_MANY_WORKERS = (
    "from qml_mp import QmlApp, ServerConfig\napp = QmlApp({url}config=ServerConfig(worker_count=4))\n"
)
_TAKES_OUT = """
import os
from qml_mp import QmlApp
app = QmlApp()

@app.job()
def seen() -> list[str]:
    return [name for name, value in os.environ.items() if name.startswith("QML_MP_") and value]

for name in [each for each in os.environ if each.startswith("QML_MP_")]:
    del os.environ[name]
"""


def told(qml: Qml, app: str = "tasks:app", *, env: dict[str, str] | None = None) -> dict[str, str]:
    """What `check` says of each thing that it looks at, all of which are well."""
    ended = qml("-A", app, "check", "--json", env=env)
    assert ended.code == 0, ended
    return {line["check"]: line["text"] for line in ended.lines}


def test_the_number_of_workers_is_taken_from_the_first_source_that_has_one(qml: Qml) -> None:
    (qml.folder / "coded.py").write_text(_MANY_WORKERS.format(url=""))
    environment = {"QML_MP_WORKERS": "3"}

    default = told(qml)["settings"]
    (qml.folder / "qml-mp.toml").write_text("workers = 2\n")
    file = told(qml)["settings"]
    variable = told(qml, env=environment)["settings"]
    code = told(qml, "coded:app", env=environment)["settings"]
    flag = qml("-A", "coded:app", "start", "-w", "1", "--burst", env=environment)

    assert (default, file, variable, code) == ("5 workers", "2 workers", "3 workers", "4 workers")
    assert "Workers: 1. Queues: default." in flag.err


def test_what_the_code_leaves_open_is_taken_from_the_environment(qml: Qml) -> None:
    (qml.folder / "coded.py").write_text(_MANY_WORKERS.format(url=""))

    ended = qml("-A", "coded:app", "start", "--burst", env={"QML_MP_SHUTDOWN_TIMEOUT": "1m30s"})

    assert "Workers: 4." in ended.err
    assert "running jobs have 1m30s" in ended.err


def test_the_storage_is_taken_from_the_first_source_that_names_one(qml: Qml) -> None:
    (qml.folder / "coded.py").write_text(_MANY_WORKERS.format(url="'sqlite:///code.db', "))
    environment = {"QML_MP_URL": "sqlite:///variable.db"}

    default = told(qml)["storage"]
    (qml.folder / "qml-mp.toml").write_text('url = "sqlite:///file.db"\n')
    file = told(qml)["storage"]
    variable = told(qml, env=environment)["storage"]
    code = told(qml, "coded:app", env=environment)["storage"]
    flag = qml("-A", "coded:app", "check", "--url", "sqlite:///flag.db", "--json", env=environment).lines

    names = ("qml", "file", "variable", "code")
    assert (default, file, variable, code) == tuple(
        f"sqlite:///{qml.folder}/{name}.db answers" for name in names
    )
    assert f"sqlite:///{qml.folder}/flag.db answers" in [line["text"] for line in flag]


def test_the_app_is_taken_from_the_first_source_that_names_one(qml: Qml) -> None:
    for name in ("by_file", "by_variable", "by_flag"):
        (qml.folder / f"{name}.py").write_text("from qml_mp import QmlApp\napp = QmlApp()\n")
    (qml.folder / "qml-mp.toml").write_text('app = "by_file:app"\n')
    environment = {"QML_MP_APP": "by_variable:app"}

    file, variable = qml("check"), qml("check", env=environment)
    flag = qml("-A", "by_flag:app", "check", env=environment)

    for ended, name in ((file, "by_file"), (variable, "by_variable"), (flag, "by_flag")):
        assert f"{name}:app imports" in ended.out


def test_a_url_that_is_wrong_is_told_with_its_source(qml: Qml) -> None:
    (qml.folder / "coded.py").write_text(_MANY_WORKERS.format(url="'of-code', "))
    (qml.folder / "qml-mp.toml").write_text('url = "of-file"\n')
    environment = {"QML_MP_URL": "of-variable"}

    refused = (
        qml("status"),
        qml("status", env=environment),
        qml("-A", "coded:app", "status", env=environment),
        qml("-A", "coded:app", "--url", "of-flag", "status", env=environment),
    )

    assert [ended.code for ended in refused] == [2, 2, 2, 2]
    sources = (f"url in {qml.folder}/qml-mp.toml", "QML_MP_URL", "the code", "--url")
    for ended, source in zip(refused, sources, strict=True):
        assert ended.err.endswith(f" The URL comes from {source}.\n")


def test_an_empty_variable_counts_as_not_set(qml: Qml) -> None:
    shown = told(qml, env={"QML_MP_URL": "", "QML_MP_WORKERS": ""})

    assert shown["settings"] == "5 workers"
    assert shown["storage"] == f"sqlite:///{qml.database} answers"


def test_only_the_nearest_settings_file_upwards_is_read(qml: Qml) -> None:
    (qml.folder / "qml-mp.toml").write_text('url = "sqlite:///far.db"\nworkers = 2\n')
    project = qml.folder / "project"
    below = project / "src"
    below.mkdir(parents=True)
    (below / "tasks.py").write_text((qml.folder / "tasks.py").read_text())
    (project / "pyproject.toml").write_text("[tool.other]\nx = 1\n")  # which says nothing to us
    here = replace(qml, folder=below)

    far = told(here)
    (project / "pyproject.toml").write_text("[tool.qml-mp]\nworkers = 7\n")
    near = told(here)

    assert (far["settings"], near["settings"]) == ("2 workers", "7 workers")
    assert far["storage"] == f"sqlite:///{qml.folder}/far.db answers"  # relative to the file that names it
    assert near["storage"] == f"sqlite:///{below}/qml.db answers"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("qml-mp.toml", "shutdown_timeuot = 3", "did you mean shutdown_timeout?"),
        ("qml-mp.toml", "[qml-mp]\nworkers = 2", "the settings stand at the top, in no table."),
        ("qml-mp.toml", "workers = 2\nworker_count = 3", "set twice"),
        ("qml-mp.toml", "workers = 'many'", "is 'many'; it must be a whole number from 0 to 1024."),
        ("qml-mp.toml", "enable_scheduler = 'yes'", "true or false"),
        ("qml-mp.toml", "queues = 'default'", "a list of names"),
        ("qml-mp.toml", "workers = = 2", "cannot be read"),
        ("pyproject.toml", "[tool.qml_mp]\nworkers = 2", "[tool.qml_mp]; did you mean [tool.qml-mp]?"),
    ],
)
def test_a_settings_file_that_is_wrong_is_refused_by_name(
    qml: Qml, file: str, text: str, message: str
) -> None:
    (qml.folder / "qml-mp.toml").unlink()
    (qml.folder / file).write_text(f"{text}\n")

    ended = qml("-A", "tasks:app", "start", "--burst")

    assert ended.code == 2
    assert message in ended.err
    assert file in ended.err


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("QML_MP_WORKERS", "many"),
        ("QML_MP_JOB_TIMEOUT", "soon"),
        ("QML_MP_ENABLE_CLEANUP", "perhaps"),
        ("QML_MP_MAX_MEMORY", "large"),
        ("QML_MP_QUEUES", "a b"),
    ],
)
def test_a_variable_that_is_wrong_is_refused_by_name(qml: Qml, variable: str, text: str) -> None:
    ended = qml("-A", "tasks:app", "start", "--burst", env={variable: text})

    assert ended.code == 2
    assert variable in ended.err


def test_where_another_setting_sets_the_bound_its_value_and_source_are_told_too(qml: Qml) -> None:
    ended = qml("-A", "tasks:app", "start", "--burst", env={"QML_MP_HEARTBEAT_INTERVAL": "40s"})

    assert ended.code == 2
    assert "must be at least twice heartbeat_interval, which is 40s (QML_MP_HEARTBEAT_INTERVAL)." in ended.err


def test_a_setting_that_is_misspelt_in_the_environment_is_told(qml: Qml) -> None:
    message = (
        "QML_MP_WORKES in the environment is no setting and has no effect; did you mean QML_MP_WORKERS?\n"
    )

    started = qml("-A", "tasks:app", "start", "-w", "0", "--burst", env={"QML_MP_WORKES": "4"})
    read = qml("status", env={"QML_MP_WORKES": "4", "QML_MP_TEST_X": "1"})

    assert f"qml-mp: WARNING {message}" in started.err
    assert read.err == f"qml-mp: {message}"


def test_relative_paths_and_the_settings_file_are_those_of_the_folder_in_which_the_command_is_called(
    qml: Qml,
) -> None:
    """Also where the import of the app changes the directory, in the supervisor too."""
    moved = have_the_app_go_to(qml, "moved")
    (moved / "qml-mp.toml").write_text('url = "sqlite:///wrong.db"\n')

    enqueued = qml("-A", "tasks:app", "enqueue", "f")
    served = qml("-A", "tasks:app", "start", "-w", "1", "--preload", "--burst")

    assert (enqueued.code, served.code) == (0, 0)
    assert enqueued.err.startswith(f"qml-mp: a new storage was made at sqlite:///{qml.database}; ")
    (job,) = qml("-A", "tasks:app", "jobs", "list", "--json").lines
    assert job["state"] == "succeeded"
    assert [path.name for path in moved.iterdir()] == ["qml-mp.toml"]


def have_the_app_go_to(qml: Qml, folder: str) -> Path:
    """Write an app whose module changes to a new folder; its path."""
    code = f"import os\nos.chdir({folder!r})\nfrom qml_mp import QmlApp\napp = QmlApp()\n"
    (qml.folder / "tasks.py").write_text(f"{code}@app.job()\ndef f() -> None: ...\n")
    (qml.folder / folder).mkdir()
    return qml.folder / folder


def test_what_the_import_of_the_app_puts_into_the_environment_counts_for_servers_too(qml: Qml) -> None:
    """As `load_dotenv()` does. The supervisor has the app imported by a process of its own."""
    url = 'os.environ.setdefault("QML_MP_URL", "sqlite:///real.db")'
    workers = 'os.environ["QML_MP_WORKERS"] = "1"'
    code = f"import os\n{url}\n{workers}\nfrom qml_mp import QmlApp\napp = QmlApp()\n"
    (qml.folder / "tasks.py").write_text(f"{code}@app.job()\ndef f() -> None: ...\n")

    enqueued = qml("-A", "tasks:app", "enqueue", "f")
    shown = told(qml)
    served = qml("-A", "tasks:app", "start", "--burst")

    assert (enqueued.code, served.code) == (0, 0)
    assert shown["storage"] == f"sqlite:///{qml.folder}/real.db answers"
    assert "1 workers" in shown["settings"]
    (job,) = qml("-A", "tasks:app", "jobs", "list", "--json").lines
    assert job["state"] == "succeeded"
    assert not qml.database.exists()


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])
def test_what_the_import_of_the_app_takes_out_of_the_environment_counts_and_jobs_do_not_see_it(
    qml: Qml, preload: tuple[str, ...]
) -> None:
    (qml.folder / "tasks.py").write_text(_TAKES_OUT)
    given = {"QML_MP_URL": "sqlite:///real.db", "QML_MP_WORKERS": "1", "QML_MP_SERVER_NAME": "blue"}

    enqueued = qml("-A", "tasks:app", "enqueue", "seen", env=given)
    served = qml("-A", "tasks:app", "start", *preload, "--burst", env=given)

    assert (enqueued.code, served.code) == (0, 0)
    assert f"Server blue of tasks:app on sqlite:///{qml.folder}/real.db" in served.err
    (job,) = qml("--url", given["QML_MP_URL"], "jobs", "list", "--json").lines
    assert (job["state"], job["result"]) == ("succeeded", [])
    assert not qml.database.exists()
