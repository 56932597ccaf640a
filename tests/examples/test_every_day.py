"""Tests: the code that the README shows for progress, follow-up jobs and tests runs, by the pytest plugin."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from tests.examples.test_examples import environment
from tests.examples.test_readme import section

pytest_plugins = ["pytester"]


def shown_files() -> dict[str, str]:
    """The files of `## Every day`, by name: each block of Python that begins with the name of its file."""
    files: dict[str, str] = {}
    for name, code in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", section("Every day"), flags=re.DOTALL):
        files[name] = files.get(name, "") + code
    return files


def settings() -> str:
    [text] = re.findall(r"```toml\n(\[tool\.pytest.*?)```", section("Every day"), flags=re.DOTALL)
    return str(text)


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """A folder with what the README shows in it."""
    for name, text in {**shown_files(), "pyproject.toml": settings()}.items():
        (pytester.path / name).write_text(text)
    return pytester


def test_the_tests_that_the_readme_shows_pass_and_one_that_fails_shows_the_log_of_its_server(
    project: pytest.Pytester,
) -> None:
    assert tomllib.loads(settings())["tool"]["pytest"]["ini_options"] == {"qml_mp_app": "tasks:app"}
    project.makepyfile(
        test_mine="""
        import pathlib

        import pytest
        from tasks import app, typeset

        @pytest.mark.qml_mp(workers=1)
        def test_fails(qml_mp_app, qml_mp_server):
            typeset.enqueue(3).wait(timeout="60s")
            pathlib.Path("pid").write_text(str(qml_mp_server.process.child.pid))
            assert "Worker 1 is ready" not in qml_mp_server.log()

        def test_inline(qml_mp_inline):
            assert qml_mp_inline is app
            assert typeset.enqueue(2).wait(timeout=0) == 2

        @pytest.mark.qml_mp(app="broken:app")
        def test_cannot_begin(qml_mp_server):
            pass

        @pytest.mark.qml_mp(app="")
        def test_unnamed(request, monkeypatch):
            monkeypatch.setitem(request.config._inicache, "qml_mp_app", "")
            request.getfixturevalue("qml_mp_app")

        @pytest.mark.qml_mp(app="tasks:ap")
        def test_misspelt(qml_mp_app):
            pass

        @pytest.mark.qml_mp(app="unfinished:app")
        def test_unfinished(qml_mp_inline):
            pass
        """,
        unfinished="app = nothing_yet",
        broken="""
        import sys
        from tasks import app
        if "pytest" not in sys.modules:
            raise OSError("no picture")
        """,
    )

    ended = project.runpytest_subprocess("-p", "qml_mp.pytest_plugin", "-W", "error", "--strict-markers")

    ended.assert_outcomes(passed=5, failed=2, errors=3)
    ended.stdout.fnmatch_lines(["test_tasks.py ....*"])
    assert not (project.path / "jobs.db").exists()
    ended.stdout.fnmatch_lines(["*log of the qml-mp server*", "*job * (typeset) attempt 1 *"])
    ended.stdout.fnmatch_lines(["*OSError: no picture*"])
    ended.stdout.fnmatch_lines(["*No app is named. Put qml_mp_app*"])
    ended.stdout.fnmatch_lines(["The app 'tasks:ap' is named by qml_mp_app, or by *has no attribute 'ap'*"])
    ended.stdout.fnmatch_lines(["Traceback *", "*unfinished.py*, line 1, in <module>", "*nothing_yet*"])
    ended.stdout.no_fnmatch_line("*loading.py*")
    assert not Path("/proc", (project.path / "pid").read_text()).exists()


def test_the_server_of_a_test_serves_the_queues_of_the_app_and_has_its_settings(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        album="""
        from qml_mp import QmlApp, ServerConfig

        config = ServerConfig(server_name="album", worker_count=9, metrics="127.0.0.1:1")
        app = QmlApp("sqlite:///jobs.db", config=config)

        @app.job(queue="images")
        def resize() -> int:
            return 3
        """,
        test_album="""
        import pytest
        from album import app, resize
        from qml_mp import testing

        @pytest.mark.qml_mp(app="album:app")
        def test_fixture(qml_mp_app, qml_mp_server):
            assert resize.enqueue().wait(timeout="60s") == 3
            [info] = qml_mp_app.storage.list_servers()
            assert (info.name, info.worker_count, info.queues) == ("album", 2, ("default", "images"))

        @pytest.mark.qml_mp(app="album:app")
        def test_context(qml_mp_app, tmp_path):
            with testing.server("album:app", qml_mp_app.storage, log_file=tmp_path / "log"):
                assert resize.enqueue().wait(timeout="60s") == 3
        """,
    )

    ended = pytester.runpytest_subprocess("-p", "qml_mp.pytest_plugin", "-W", "error")

    ended.assert_outcomes(passed=2)


def test_a_test_has_what_the_markers_around_it_say_and_nearer_ones_do_not(
    project: pytest.Pytester,
) -> None:
    project.makepyfile(
        other="import tasks; app = tasks.QmlApp()",
        test_marked="""
        import other
        import pytest
        import tasks

        pytestmark = pytest.mark.qml_mp(app="other:app", workers=9)

        @pytest.mark.qml_mp(workers=1)
        def test_server(qml_mp_app, qml_mp_server):
            [info] = qml_mp_app.storage.list_servers()
            assert (qml_mp_app, info.worker_count) == (other.app, 1)

        @pytest.mark.qml_mp(app="tasks:app", workers=8)
        class Base:
            named = tasks.app

            def test_app(self, qml_mp_app):
                assert qml_mp_app is self.named

        class TestOfBase(Base):
            pass

        @pytest.mark.qml_mp(app="other:app")
        class TestOfAnother(Base):
            named = other.app
        """,
    )

    ended = project.runpytest_subprocess("-p", "qml_mp.pytest_plugin", "-W", "error", "test_marked.py")

    ended.assert_outcomes(passed=3)


def test_the_folder_of_a_test_may_have_any_name(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_named="""
        from tasks import typeset

        def test_app(qml_mp_app, tmp_path):
            typeset.enqueue(3)
            assert (tmp_path / "qml-mp.db").exists()
        """
    )

    ended = project.runpytest_subprocess(
        "-p", "qml_mp.pytest_plugin", "-W", "error", "--basetemp", project.path / "a ?%41#", "test_named.py"
    )

    ended.assert_outcomes(passed=1)


def test_a_marker_that_says_nothing_fails_the_test_that_has_it(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_marked="""
        import pytest

        @pytest.mark.qml_mp("other:app")
        def test_positional(qml_mp_app):
            pass

        @pytest.mark.qml_mp(app="tasks:app", worker=1)
        def test_misspelt(qml_mp_inline):
            pass

        @pytest.mark.qml_mp(workers="two")
        def test_no_number(qml_mp_server):
            pass
        """
    )

    ended = project.runpytest_subprocess("-p", "qml_mp.pytest_plugin", "-W", "error", "test_marked.py")

    ended.assert_outcomes(errors=3)
    ended.stdout.fnmatch_lines(["*ConfigurationError: *worker_count is 'two'; it must be *"])
    ended.stdout.fnmatch_lines(["*qml_mp does not take 'other:app'; write @pytest.mark.qml_mp(app=*"])
    ended.stdout.fnmatch_lines(["*qml_mp does not take 'worker'; write *"])


INLINE = """
import asyncio
from album import app
from qml_mp.storage.store import Storage

get = Storage.get

def get_in_no_loop(storage, job_id):
    assert asyncio._get_running_loop() is None, "an event loop waits for the storage"
    return get(storage, job_id)

Storage.get = get_in_no_loop
with app.inline():
    import waiting
"""


def test_the_program_that_waits_for_results_runs_and_holds_up_no_event_loop(tmp_path: Path) -> None:
    for name, text in shown_files().items():
        (tmp_path / name).write_text(text)

    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", INLINE],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    digests = [b"0.png", b"1.png", b"2.png"]
    told = ["2025-03-01", str(digests), *["succeeded"] * 3, "None", "3", *["succeeded"] * 3]
    assert (ended.returncode, ended.stdout.splitlines(), ended.stderr) == (0, told, "")


def test_pytest_finds_the_plugin_by_itself() -> None:
    [plugin] = [each for each in entry_points(group="pytest11") if each.value.startswith("qml_mp")]

    assert plugin.name == plugin.value  # so that `-p` does not load it twice
    assert callable(plugin.load().pytest_addoption)
