"""Where settings come from, and which source wins."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from qml_mp.app import QmlApp
from qml_mp.errors import ConfigurationError
from qml_mp.settings import SETTINGS, ServerConfig
from qml_mp.sources import load_app_spec, load_config, load_url
from qml_mp.storage.open import open_storage
from tests.cli.command import Qml

_TAKES_OUT = """
import os
from qml_mp import QmlApp
app = QmlApp()

@app.job()
def seen() -> list[str]:
    return [name for name, value in os.environ.items() if name.startswith("QML_MP_") and value]

for name in [each for each in os.environ if each.startswith("QML_MP_")]:
    """


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory, shielded from settings files above it and from the environment."""
    for name in ("URL", "APP", "WORKERS", "WORKER_COUNT", "QUEUES", "JOB_TIMEOUT"):
        monkeypatch.delenv(f"QML_MP_{name}", raising=False)
    (tmp_path / "qml-mp.toml").touch()
    below = tmp_path / "project"
    below.mkdir()
    monkeypatch.chdir(below)
    return below


def test_without_any_source_the_defaults_hold() -> None:
    assert load_url().text == "sqlite:///qml.db"
    assert load_app_spec(None) is None
    assert load_config(flags={}, code=None) == ServerConfig()


def test_a_flag_wins_over_the_code_the_environment_and_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "qml-mp.toml").write_text("worker_count = 2\n")
    monkeypatch.setenv("QML_MP_WORKERS", "3")
    code = ServerConfig(worker_count=4)

    config = load_config(flags={"worker_count": 6, "queues": None}, code=code)

    assert config.worker_count == 6
    assert config.queues == ("default",)


def test_the_code_wins_over_the_environment_where_it_says_something(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("QML_MP_WORKERS", "3")
    monkeypatch.setenv("QML_MP_JOB_TIMEOUT", "90s")
    code = ServerConfig(worker_count=4)

    config = load_config(flags={}, code=code)

    assert config.worker_count == 4
    assert config.job_timeout == timedelta(seconds=90)


def test_the_environment_wins_over_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "qml-mp.toml").write_text('url = "sqlite:///file.db"\napp = "file:app"\nworkers = 2\n')
    monkeypatch.setenv("QML_MP_URL", "sqlite:///env.db")
    monkeypatch.setenv("QML_MP_APP", "env:app")
    monkeypatch.setenv("QML_MP_WORKERS", "3")

    assert load_url().text == "sqlite:///env.db"
    assert load_app_spec(None) == "env:app"
    assert load_config(flags={}, code=None).worker_count == 3


def test_what_is_given_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QML_MP_URL", "sqlite:///env.db")
    monkeypatch.setenv("QML_MP_APP", "env:app")

    assert load_url(code="memory://").text == "memory://"
    assert load_url(flag="sqlite:///flag.db", code="memory://").text == "sqlite:///flag.db"
    assert load_app_spec("given:app") == "given:app"


def test_a_url_says_where_it_comes_from(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(flag: str | None = None, code: str | None = None) -> str:
        with pytest.raises(ConfigurationError) as caught, load_url(flag=flag, code=code).told() as url:
            open_storage(url)
        return str(caught.value)

    (folder / "qml-mp.toml").write_text('url = "of-file"\n')

    assert told().endswith(f" The URL comes from url in {folder}/qml-mp.toml.")
    monkeypatch.setenv("QML_MP_URL", "of-env")
    assert told().endswith(" The URL comes from QML_MP_URL.")
    assert told(code="of-code").endswith(" The URL comes from the code.")
    assert told(flag="of-flag", code="of-code").endswith(" The URL comes from --url.")
    assert "'of-flag'" in told(flag="of-flag")


def test_a_url_that_is_given_and_empty_names_no_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QML_MP_URL", "sqlite:///env.db")

    with pytest.raises(ConfigurationError, match="--url is empty and names no storage"):
        load_url(flag="", code="sqlite:///code.db")
    with pytest.raises(ConfigurationError, match="that the code gives is empty and names no storage"):
        load_url(code="")
    with pytest.raises(ConfigurationError, match="that the code gives is empty and names no storage"):
        QmlApp("").storage  # noqa: B018


def test_an_app_that_is_given_and_empty_is_no_app(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QML_MP_APP", "env:app")

    with pytest.raises(ConfigurationError, match="-A is ''; an app is named as"):
        load_app_spec("")


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QML_MP_URL", "")
    monkeypatch.setenv("QML_MP_WORKERS", "")

    assert load_url().text == "sqlite:///qml.db"
    assert load_config(flags={}, code=None).worker_count == 5


def test_every_type_of_field_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QML_MP_QUEUES", "images, default")
    monkeypatch.setenv("QML_MP_ENABLE_HEARTBEAT", "off")
    monkeypatch.setenv("QML_MP_MAX_MEMORY", "512MiB")
    monkeypatch.setenv("QML_MP_MAX_JOBS", "100")
    monkeypatch.setenv("QML_MP_SHUTDOWN_TIMEOUT", "1m30s")
    monkeypatch.setenv("QML_MP_SERVER_NAME", "blue")

    config = load_config(flags={}, code=None)

    assert config.queues == ("images", "default")
    assert config.enable_heartbeat is False
    assert config.max_memory == 512 * 1024**2
    assert config.max_jobs == 100
    assert config.shutdown_timeout == timedelta(seconds=90)
    assert config.server_name == "blue"


def test_a_star_is_every_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QML_MP_QUEUES", "*")

    assert load_config(flags={}, code=None).queues == ()
    assert SETTINGS["queues"].from_text("a,*", "-q") == ("a", "*")  # which ServerConfig refuses as a name


def test_the_nearest_file_upwards_is_the_only_one_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder.parent / "qml-mp.toml").write_text('app = "far:app"\nworkers = 2\n')
    (folder / "pyproject.toml").write_text("[tool.qml-mp]\nworkers = 7\n")
    below = folder / "src"
    below.mkdir()
    monkeypatch.chdir(below)

    assert load_config(flags={}, code=None).worker_count == 7
    assert load_app_spec(None) is None


def test_a_pyproject_without_our_table_is_passed_over(folder: Path) -> None:
    (folder.parent / "qml-mp.toml").write_text("workers = 2\n")
    (folder / "pyproject.toml").write_text("[tool.other]\nx = 1\n")

    assert load_config(flags={}, code=None).worker_count == 2


def test_a_table_within_ours_is_told(folder: Path) -> None:
    (folder / "pyproject.toml").write_text("[tool.qml-mp.start]\nworkers = 2\n")

    with pytest.raises(ConfigurationError, match=r"has the table \[start\]; .* in \[tool\.qml-mp\] itself\."):
        load_config(flags={}, code=None)


@pytest.mark.parametrize("also", ["", "[tool.qml-mp]\nworkers = 3\n"])
def test_a_table_of_nearly_our_name_is_told(folder: Path, also: str) -> None:
    (folder / "pyproject.toml").write_text(f"[tool.qml_mp]\nworkers = 2\n{also}")

    with pytest.raises(ConfigurationError, match=r"\[tool\.qml_mp\]; did you mean \[tool\.qml-mp\]\?"):
        load_config(flags={}, code=None)


def test_a_relative_sqlite_path_in_a_file_is_relative_to_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "qml-mp.toml").write_text('url = "sqlite:///data/jobs.db"\n')
    below = folder / "src"
    below.mkdir()
    monkeypatch.chdir(below)

    assert load_url().text == f"sqlite:///{folder}/data/jobs.db"


def test_a_path_whose_first_slash_is_encoded_is_absolute() -> None:
    url = "sqlite:///%2Fsrv%2Fjobs.db"

    assert load_url(flag=url, directory="/home").text == url


def test_other_urls_in_a_file_are_taken_as_they_are(folder: Path) -> None:
    (folder / "qml-mp.toml").write_text('url = "sqlite:////var/jobs.db"\n')

    assert load_url().text == "sqlite:////var/jobs.db"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("worker = 2", "did you mean worker"),
        ("shutdown-timeout = 2", "did you mean shutdown_timeout?"),
        ("colour = 'red'", "known are url, app"),
        ("[tool.qml-mp]\nworkers = 2", "has the table [tool]; the settings stand at the top, in no table."),
        ("[qml-mp]\nworkers = 2", "has the table [qml-mp]; the settings stand at the top, in no table."),
        ("workers = 2\nworker_count = 3", "set twice"),
        ("workers = 'many'", "is 'many'; it must be a whole number from 0 to 1024."),
        ("workers = 2.0", "is 2.0; it must be a whole number from 0 to 1024."),
        ("max_jobs = []", "is []; it must be a whole number from 1 to 1000000000."),
        ("workers = 2000", "is 2000; it must be a whole number from 0 to 1024."),
        ("enable_scheduler = 'yes'", "true or false"),
        ("queues = 'default'", "a list of names"),
        ("queues = ['a b']", "qml-mp.toml"),
        ("queues = ['*']", "an empty list serves all"),
        ("url = 5", "it must be text"),
        ("server_name = 5", "it must be text"),
        ("workers = = 2", "cannot be read"),
    ],
)
def test_a_bad_settings_file_is_refused_by_name(folder: Path, text: str, named: str) -> None:
    (folder / "qml-mp.toml").write_text(text)

    with pytest.raises(ConfigurationError) as refusal:
        _load_all()

    assert named in str(refusal.value)
    assert "qml-mp.toml" in str(refusal.value)


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("QML_MP_WORKERS", "many"),
        ("QML_MP_WORKERS", "-1"),
        ("QML_MP_JOB_TIMEOUT", "soon"),
        ("QML_MP_ENABLE_CLEANUP", "perhaps"),
        ("QML_MP_MAX_MEMORY", "large"),
        ("QML_MP_QUEUES", " , "),
        ("QML_MP_QUEUES", "a b"),
    ],
)
def test_a_bad_variable_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, variable: str, text: str) -> None:
    monkeypatch.setenv(variable, text)

    with pytest.raises(ConfigurationError, match=variable):
        load_config(flags={}, code=None)


@pytest.mark.parametrize(
    ("source", "field", "told"),
    [
        ({"flags": {"max_jobs": 0}}, "max_jobs", "the command line"),
        ({"environment": {"QML_MP_WORKERS": "many"}}, "worker_count", "QML_MP_WORKERS"),
        ({"environment": {"QML_MP_PRELOAD": "perhaps"}}, "preload", "QML_MP_PRELOAD"),
        ({"environment": {"QML_MP_QUEUES": "a b"}}, "queues", "QML_MP_QUEUES"),
        ({"environment": {"QML_MP_JOB_TIMEOUT": "soon"}}, "job_timeout", "QML_MP_JOB_TIMEOUT"),
        ({"file": "workers = 2000"}, "worker_count", "qml-mp.toml"),
        ({"file": "preload = 1"}, "preload", "qml-mp.toml"),
        ({"file": "queues = ['a b']"}, "queues", "qml-mp.toml"),
        ({"file": "dead_server_timeout = 1"}, "dead_server_timeout", "qml-mp.toml"),
    ],
)
def test_a_refusal_carries_the_field_and_tells_the_source(
    folder: Path, monkeypatch: pytest.MonkeyPatch, source: dict[str, Any], field: str, told: str
) -> None:
    (folder / "qml-mp.toml").write_text(source.get("file", ""))
    for variable, text in source.get("environment", {}).items():
        monkeypatch.setenv(variable, text)

    with pytest.raises(ConfigurationError) as refusal:
        load_config(flags=source.get("flags", {}), code=None)

    assert refusal.value.field == field
    assert told in str(refusal.value)


def test_the_field_is_that_of_the_code_where_another_setting_sets_its_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("QML_MP_HEARTBEAT_INTERVAL", "30s")

    with pytest.raises(ConfigurationError) as refusal:
        load_config(flags={}, code=ServerConfig(dead_server_timeout=timedelta(seconds=40)))

    assert refusal.value.field == "dead_server_timeout"
    assert "the ServerConfig in the code" in str(refusal.value)


def test_where_another_setting_sets_the_bound_its_value_and_source_are_told_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("QML_MP_HEARTBEAT_INTERVAL", "40s")
    with pytest.raises(ConfigurationError) as of_a_default:
        load_config(flags={}, code=None)

    monkeypatch.setenv("QML_MP_MAX_MEMORY", "3000000")
    with pytest.raises(ConfigurationError) as of_the_code:
        load_config(flags={"heartbeat_interval": 1}, code=ServerConfig(max_memory_hard=2_000_000))

    assert str(of_a_default.value) == (
        "ServerConfig.dead_server_timeout is 60s; it must be at least twice heartbeat_interval, which is 40s "
        "(QML_MP_HEARTBEAT_INTERVAL)."
    )
    assert str(of_the_code.value) == (
        "ServerConfig.max_memory_hard is 2000000; it must be at least max_memory, which is 3000000 "
        "(QML_MP_MAX_MEMORY). It comes from the ServerConfig in the code."
    )


def test_one_setting_under_two_names_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QML_MP_WORKERS", "2")
    monkeypatch.setenv("QML_MP_WORKER_COUNT", "3")

    with pytest.raises(ConfigurationError, match="both set"):
        load_config(flags={}, code=None)


def _load_all() -> None:
    load_config(flags={}, code=None)
    load_url()


@pytest.mark.parametrize("how", ["the default", "QML_MP_URL", "--url"])
def test_a_relative_path_is_that_of_the_directory_in_which_the_command_is_called(qml: Qml, how: str) -> None:
    """Also for a command that imports an app which changes the directory."""
    code = "import os\nos.mkdir('moved')\nos.chdir('moved')\nfrom qml_mp import QmlApp\napp = QmlApp()\n"
    (qml.folder / "tasks.py").write_text(f"{code}@app.job()\ndef f() -> None: ...\n")
    flags = ["--url", "sqlite:///qml.db"] if how == "--url" else []
    variables = {"QML_MP_URL": "sqlite:///qml.db"} if how == "QML_MP_URL" else {}

    ended = qml("-A", "tasks:app", *flags, "enqueue", "f", env=variables)

    assert ended.code == 0
    assert ended.err.startswith(f"qml-mp: a new storage was made at sqlite:///{qml.database}; ")
    assert ended.err.count("\n") == 1
    assert qml.database.exists()
    assert not list((qml.folder / "moved").iterdir())


def test_what_the_import_of_the_app_puts_into_the_environment_counts_for_servers_too(qml: Qml) -> None:
    """As `load_dotenv()` does. The supervisor has the app imported by a process of its own."""
    url = 'os.environ.setdefault("QML_MP_URL", "sqlite:///real.db")'
    workers = 'os.environ["QML_MP_WORKERS"] = "1"'
    code = f"import os\n{url}\n{workers}\nfrom qml_mp import QmlApp\napp = QmlApp()\n"
    (qml.folder / "tasks.py").write_text(f"{code}@app.job()\ndef f() -> None: ...\n")

    enqueued = qml("-A", "tasks:app", "enqueue", "f")
    checked = qml("-A", "tasks:app", "check")
    served = qml("-A", "tasks:app", "start", "--burst")

    assert (enqueued.code, checked.code, served.code) == (0, 0, 0)
    assert f"sqlite:///{qml.folder}/real.db answers" in checked.out
    assert "1 workers" in checked.out
    (job,) = qml("-A", "tasks:app", "jobs", "list", "--json").lines
    assert job["state"] == "succeeded"
    assert not qml.database.exists()


@pytest.mark.parametrize("take_out", ["del os.environ[name]", 'os.environ[name] = ""'])
@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])
def test_what_the_import_of_the_app_takes_out_of_the_environment_counts_and_jobs_do_not_see_it(
    qml: Qml, take_out: str, preload: tuple[str, ...]
) -> None:
    (qml.folder / "tasks.py").write_text(f"{_TAKES_OUT}{take_out}\n")
    given = {"QML_MP_URL": "sqlite:///real.db", "QML_MP_WORKERS": "1", "QML_MP_SERVER_NAME": "blue"}

    enqueued = qml("-A", "tasks:app", "enqueue", "seen", env=given)
    checked = qml("-A", "tasks:app", "check", env=given)
    served = qml("-A", "tasks:app", "start", *preload, "--burst", env=given)
    cancelled = qml("-A", "tasks:app", "jobs", "cancel", "--all", env=given)

    assert (enqueued.code, checked.code, served.code, cancelled.code) == (0, 0, 0, 0), cancelled
    assert f"sqlite:///{qml.folder}/real.db answers" in checked.out
    assert "settings  ok        1 workers" in checked.out
    assert f"Server blue of tasks:app on sqlite:///{qml.folder}/real.db" in served.err
    (job,) = qml("--url", given["QML_MP_URL"], "jobs", "list", "--json").lines
    shown = qml("--url", given["QML_MP_URL"], "jobs", "show", job["id"], "--json").value
    assert (shown["state"], shown["result"]) == ("succeeded", [])
    assert not qml.database.exists()


def test_the_settings_file_is_that_of_the_directory_in_which_the_command_is_called(qml: Qml) -> None:
    """Also for a command that imports an app which changes the directory."""
    (qml.folder / "qml-mp.toml").write_text('app = "tasks:app"\nurl = "sqlite:///real.db"\n')
    moved = have_the_app_go_to(qml, "moved")
    (moved / "qml-mp.toml").touch()

    enqueued = qml("enqueue", "f")
    listed = qml("jobs", "list", "--json")

    assert (enqueued.code, listed.code, len(listed.lines)) == (0, 0, 1)
    assert enqueued.err.startswith(f"qml-mp: a new storage was made at sqlite:///{qml.folder}/real.db; ")
    assert [path.name for path in moved.iterdir()] == ["qml-mp.toml"]


def test_a_server_with_preload_has_the_storage_of_the_directory_in_which_it_was_started(qml: Qml) -> None:
    """Although the import of the app, in the supervisor, changes the directory."""
    moved = have_the_app_go_to(qml, "moved")
    enqueued = qml("-A", "tasks:app", "enqueue", "f")

    served = qml("-A", "tasks:app", "start", "-w", "1", "--preload", "--burst")

    (job,) = qml("-A", "tasks:app", "jobs", "list", "--json").lines
    assert (enqueued.code, served.code, job["state"]) == (0, 0, "succeeded")
    assert not list(moved.iterdir())


def have_the_app_go_to(qml: Qml, folder: str) -> Path:
    """Write an app whose module changes to a new folder; its path."""
    code = f"import os\nos.chdir({folder!r})\nfrom qml_mp import QmlApp\napp = QmlApp()\n"
    (qml.folder / "tasks.py").write_text(f"{code}@app.job()\ndef f() -> None: ...\n")
    (qml.folder / folder).mkdir()
    return qml.folder / folder
