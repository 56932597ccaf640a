"""Client: the pytest plugin, which pytest finds by itself: an app on a storage of its own, and a real server.

The app is named once, in pytest's settings: `qml_mp_app = "tasks:app"`, or for some tests by a marker:
`@pytest.mark.qml_mp(app="tasks:app", workers=1)`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

if TYPE_CHECKING:  # imported where a test asks for it: most runs of pytest that load this plugin never do
    from pluggy import Result

    from qml_mp.app import QmlApp
    from qml_mp.testing import RunningServer

_SETTING = "qml_mp_app"
_MARKER = "qml_mp"
_MARKED = ("app", "workers")
_servers = pytest.StashKey[list["RunningServer"]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The setting."""
    parser.addini(_SETTING, 'the qml-mp app that the fixtures use: "module:attribute"', default="")


def pytest_configure(config: pytest.Config) -> None:
    """The marker."""
    text = f'{_MARKER}(app="module:attribute", workers=2): what the qml-mp fixtures of the test use'
    config.addinivalue_line("markers", text)


# Not `wrapper`, which breaks any run of pytest with a pluggy before 1.2: Debian 12 has such a one.
@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Result[pytest.TestReport], None]:
    """A failed test shows the log of its server."""
    made = yield
    if made.excinfo is None and (report := made.get_result()).failed:
        for server in item.stash.get(_servers, []):
            report.sections.append(("log of the qml-mp server", server.log()))


@pytest.fixture
def qml_mp_app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[QmlApp]:
    """The app, on a storage of the test's own: what is enqueued stays there, for `app.enqueued(...)`, or for
    `qml_mp_server` to run. After the test it has the storage that it had before."""
    app = _app(request)
    with app.attached(f"sqlite:///{quote(str(tmp_path))}/qml-mp.db"):
        yield app


@pytest.fixture
def qml_mp_inline(request: pytest.FixtureRequest) -> Iterator[QmlApp]:
    """The app, within `app.inline()`: what is enqueued runs at once, in the test's process."""
    app = _app(request)
    with app.inline():
        yield app


@pytest.fixture
def qml_mp_server(
    request: pytest.FixtureRequest, qml_mp_app: QmlApp, tmp_path: Path
) -> Iterator[RunningServer]:
    """A server in processes of its own that runs what `qml_mp_app` enqueues, with the app's settings. It
    is stopped after the test, whose report shows its log when it has failed."""
    from qml_mp.testing import server, settings

    config = settings(_spec(request), workers=_marked(request).get("workers", 2))
    log_file = tmp_path / "qml-mp-server.log"
    with server(_spec(request), qml_mp_app.storage, config=config, log_file=log_file) as running:
        request.node.stash.setdefault(_servers, []).append(running)
        yield running


def _app(request: pytest.FixtureRequest) -> QmlApp:
    from qml_mp.child.import_errors import import_error_text
    from qml_mp.errors import AppImportError
    from qml_mp.loading import load_app

    try:
        return load_app(_spec(request))
    except AppImportError as error:
        cause = "" if error.__cause__ is None else f"\n{import_error_text(error.__cause__)}"
        named = f"named by {_SETTING}, or by @pytest.mark.{_MARKER}"
        pytest.fail(f"The app {_spec(request)!r} is {named}. {error}{cause}", pytrace=False)


def _marked(request: pytest.FixtureRequest) -> dict[str, Any]:
    marked: dict[str, Any] = {}
    # The nearest last, and that of a class after those of its bases, which `iter_markers` takes for nearer.
    nodes = request.node.listchain()
    for marker in (each for node in nodes for each in node.own_markers if each.name == _MARKER):
        unknown = [*marker.args, *(name for name in marker.kwargs if name not in _MARKED)]
        if unknown:
            pytest.fail(
                f"@pytest.mark.{_MARKER} does not take {unknown[0]!r}; "
                f'write @pytest.mark.{_MARKER}(app="module:attribute", workers=2), or one of the two.',
                pytrace=False,
            )
        marked.update(marker.kwargs)
    return marked


def _spec(request: pytest.FixtureRequest) -> str:
    spec = _marked(request).get("app") or request.config.getini(_SETTING)
    if not spec:
        pytest.fail(
            f'No app is named. Put {_SETTING} = "module:attribute" into pytest\'s settings, or mark the test '
            f'with @pytest.mark.{_MARKER}(app="module:attribute").',
            pytrace=False,
        )
    return str(spec)
