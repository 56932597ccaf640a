"""The URL of an app, read in its source: only where an import would find the very same."""

from __future__ import annotations

from pathlib import Path

import pytest

from qml_mp.app import QmlApp
from qml_mp.child.source import import_named
from qml_mp.cli.url_in_source import NotPlain, url_in_source

_HEAD = "raise AssertionError('it was imported')\n"
_IMPORT = "from qml_mp import QmlApp\n"
_GO = "import os\nos.chdir('/')\n"
_SETUP = "import os\ndef setup(): os.chdir('/')\n"
_CONF = "import os\nclass Conf:\n    def __init__(self): os.chdir('/')\n"
_IN_SHOP = {"shop/__init__.py": "", "shop/base.py": _GO}


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


@pytest.mark.parametrize(
    ("code", "files"),
    [
        ("import base", {"base.py": _GO}),
        ("import one", {"one.py": "import two", "two.py": f"import one\n{_GO}"}),
        ("from shop import base", {"shop/__init__.py": "", "shop/base.py": _GO}),
        ("import shop.base", {"shop/__init__.py": _GO, "shop/base.py": ""}),
        ("import shop", {"shop/__init__.py": "from .base import name", "shop/base.py": _GO}),
        (
            "import shop.sub.tasks",
            {"shop/sub/__init__.py": "", "shop/sub/tasks.py": "from .. import base", "shop/base.py": _GO},
        ),
        ("from shop import (  # all (or so)\n    other as o,\n    base,\n)", _IN_SHOP),
        ("from shop \\\n    import other, base as b", _IN_SHOP),
        ("from shop import other; import os, shop.base", _IN_SHOP),
        ("if 'import' not in (): import base", {"base.py": _GO}),
        ("text = 'import (of this)'; import base", {"base.py": _GO}),
        ("from shop import (  # to import (or not\n    other,\n    base,\n)", _IN_SHOP),
        ("from base import setup\nsetup()", {"base.py": _SETUP}),
        ("from base import setup as go\ngo()", {"base.py": _SETUP}),
        ("import base\nwith base.setup(): ...", {"base.py": _SETUP}),
        ("import base\n@base.setup\ndef f(): ...", {"base.py": _SETUP}),
        ("import base\ndef f(x=base.setup()): ...", {"base.py": _SETUP}),
        ("import conf\nconf.load()", {"conf.py": "import base\ndef load(): base.setup()", "base.py": _SETUP}),
        (
            "import shop.base",
            {"shop/__init__.py": "from .base import setup\nsetup()", "shop/base.py": _SETUP},
        ),
        ("from base import Conf\nConf()", {"base.py": _CONF}),
        ("import base\nclass Mine(base.Conf): ...\nMine()", {"base.py": _CONF}),
        ("from base import go\ngo()", {"base.py": "import os\ngo = lambda: os.chdir('/')"}),
        ("import large", {"large.py": "def f(): os.chdir('/')\n" + "#" * 300_000}),  # which is not parsed
    ],
)
def test_what_the_module_imports_may_change_the_directory(
    folder: Path, code: str, files: dict[str, str]
) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "led_app.py").write_text(f"{_IMPORT}{code}\napp = QmlApp('sqlite:///a.db')\n")

    with pytest.raises(NotPlain) as caught:
        url_in_source("led_app:app")

    assert caught.value.urls == ["sqlite:///a.db", f"sqlite:///{folder}/a.db"]


def test_an_import_finds_the_same(folder: Path) -> None:
    (folder / "same_app.py").write_text(_IMPORT + 'app = QmlApp("sqlite:///d.db")\n')

    app = import_named("same_app:app")

    assert isinstance(app, QmlApp)
    assert app.program.url == url_in_source("same_app:app")
