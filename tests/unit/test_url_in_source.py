"""The URL of an app, read in its source: only where an import would find the very same."""

from __future__ import annotations

from pathlib import Path

import pytest

from qml_mp.app import QmlApp
from qml_mp.child.source import import_named
from qml_mp.cli.url_in_source import NotPlain, url_in_source

_HEAD = "raise AssertionError('it was imported')\n"
_IMPORT = "from qml_mp import QmlApp\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("code", "url"),
    [
        ('app = QmlApp("sqlite:///a.db")', "sqlite:///a.db"),
        ('app: QmlApp = QmlApp(url="memory://", name="shop")', "memory://"),
        ("app = QmlApp()", None),
        ('app = QmlApp(None)\nprint(app)\n@app.job()\ndef f(): ...', None),
        ('from qml_mp import QmlApp as Q\napp = Q("sqlite:///b.db")', "sqlite:///b.db"),
        ('"""$QML_MP_URL."""\napp = QmlApp("sqlite:///e.db")  # else QML_MP_URL', "sqlite:///e.db"),
        ('import os\nos.chdir("/")\napp = QmlApp("sqlite:////srv/g.db")', "sqlite:////srv/g.db"),
        ('import os\napp = QmlApp("sqlite:///h.db")\ndef f(): os.chdir("/")', "sqlite:///h.db"),
        (
            'import os\napp = QmlApp("sqlite:///i.db")\nif __name__ == "__main__":\n    os.chdir("/")',
            "sqlite:///i.db",
        ),
        ('app = QmlApp("sqlite:///f.db")\ndef attachments(): return "attached"', "sqlite:///f.db"),
    ],
)  # fmt: skip
def test_a_plain_app_is_not_imported(folder: Path, code: str, url: str | None) -> None:
    (folder / "plain_app.py").write_text(_HEAD + _IMPORT + code + "\n")

    assert url_in_source("plain_app:app") == url


@pytest.mark.parametrize(
    "code",
    [
        "from os import environ\napp = QmlApp(environ['URL'])",
        "if True:\n    app = QmlApp('sqlite:///a.db')",
        "app = QmlApp('sqlite:///a.db')\nif app:\n    app = QmlApp('sqlite:///b.db')",
        "app = QmlApp('sqlite:///a.db')\nglobals()\ndef app(): ...",
        "def make():\n    global app\n    app = 3\napp = QmlApp('sqlite:///a.db')",
        "app = QmlApp('sqlite:///a.db')\napp.attach('sqlite:///b.db')",
        "import os\nos.environ['QML_MP_URL'] = 'sqlite:///b.db'\napp = QmlApp()",
        "import os\nos.environ.update(QML_MP_URL='sqlite:///b.db')\napp = QmlApp()",
        "import os\nos.environb[b'QML_MP_URL'] = b'sqlite:///b.db'\napp = QmlApp()",
        "app = QmlApp('sqlite:///a.db')\ngetattr(app, 'attach')('sqlite:///b.db')",
        "import os\nos.chdir('/')\napp = QmlApp('sqlite:///a.db')",
        "from os import chdir as go\ngo('/')\napp = QmlApp('sqlite:///a.db')",
        "app = QmlApp(*['sqlite:///a.db'])",
        "app = QmlApp(**{'url': 'sqlite:///a.db'})",
        "class QmlApp: ...\napp = QmlApp()",
        "def make(): return QmlApp('sqlite:///a.db')\napp = make()",
        "from other import app",
        "app = QmlApp('sqlite:///a.db')\nfrom other import *",
        "app = other = QmlApp('sqlite:///a.db')",
        "app = (",
    ],
)
def test_what_is_not_plain_has_to_be_imported(folder: Path, code: str) -> None:
    (folder / "odd_app.py").write_text(_IMPORT + code + "\n")

    with pytest.raises(NotPlain):
        url_in_source("odd_app:app")


def test_an_import_finds_the_same(folder: Path) -> None:
    (folder / "same_app.py").write_text(_IMPORT + 'app = QmlApp("sqlite:///d.db")\n')

    app = import_named("same_app:app")

    assert isinstance(app, QmlApp)
    assert app.program.url == url_in_source("same_app:app")
