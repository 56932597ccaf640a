"""The URL of an app, read in its source: only where an import would find the very same."""

from __future__ import annotations

import py_compile
import re
import sys
import tracemalloc
from pathlib import Path

import pytest

from qml_mp.app import QmlApp
from qml_mp.child.source import LoadedProgram, NamedProgram, import_named, probe, read_facts
from qml_mp.cli.url_in_source import NotFound, NotPlain, url_in_source

_HEAD = "raise AssertionError('it was imported')\n"
_IMPORT = "from qml_mp import QmlApp\n"
_GO = "import os\nos.chdir('/')\n"
_SETUP = "import os\ndef setup(): os.chdir('/')\n"
_AROUND = """
import os
def in_root(f):
    def call():
        os.chdir("/")
        return f()
    return call
"""
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


def test_modules_in_packages_are_found_without_importing_those(folder: Path) -> None:
    (folder / "shop" / "jobs").mkdir(parents=True)
    for package in ("shop", "shop/jobs"):
        (folder / package / "__init__.py").write_text(_HEAD)
    (folder / "shop" / "jobs" / "tasks.py").write_text(_IMPORT + 'app = QmlApp("sqlite:///c.db")\n')

    assert url_in_source("shop.jobs.tasks:app") == "sqlite:///c.db"


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


def test_what_the_module_imports_leaves_the_url_plain_where_it_does_not_change_the_directory(
    folder: Path,
) -> None:
    """Also what is not found, is no Python, or is of the standard library, which has functions for that; and
    what jobs do."""
    (folder / "base.py").write_text("import led_app\ndef f():\n    import os\n    os.chdir('/')\n")
    (folder / "broken.py").write_text("(")
    (folder / "around.py").write_text(_AROUND)
    imports = "import base, broken, not_there, shutil\nfrom around import in_root\n"
    job = "@app.job()\n@in_root\ndef render(): base.f()\n"
    (folder / "led_app.py").write_text(f"{_IMPORT}{imports}app = QmlApp('sqlite:///a.db')\n{job}")

    assert url_in_source("led_app:app") == "sqlite:///a.db"


def bytes_to_find(url: str, spec: str) -> int:
    """How much memory it takes at most."""
    tracemalloc.start()
    found = url_in_source(spec)
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == url
    return most_bytes


def test_a_large_module_that_is_imported_is_not_parsed(folder: Path) -> None:
    """As a tree it takes more than ten times its size."""
    data = "".join(f"    {number}: ('name {number}', {number / 7}),\n" for number in range(20_000))
    (folder / "table.py").write_text(f"TABLE = {{\n{data}}}\n")
    (folder / "led_app.py").write_text(f"{_IMPORT}import table\napp = QmlApp('sqlite:///a.db')\n")

    assert bytes_to_find("sqlite:///a.db", "led_app:app") < 10 * len(data)


def test_a_long_line_with_the_word_import_in_it_is_searched_once(folder: Path) -> None:
    """As a tool writes it that puts a text into a module."""
    text = "we import, mix, sell, and export, " * 500
    (folder / "bundle.py").write_text(f"TEXT = {text!r}\n")
    (folder / "led_app.py").write_text(f"{_IMPORT}import bundle\napp = QmlApp('sqlite:///a.db')\n")

    assert bytes_to_find("sqlite:///a.db", "led_app:app") < 100 * len(text)


def test_a_text_is_not_searched_anew_for_each_of_the_functions_that_call_one_another(folder: Path) -> None:
    (folder / "table.py").write_text("TABLE = 1\n")
    (folder / "led_app.py").write_text(f"{_IMPORT}import chain, table\napp = QmlApp('sqlite:///a.db')\n")

    def searches(depth: int) -> int:
        calls = "".join(f"def f{number + 1}(): f{number}()\n" for number in range(depth))
        (folder / "chain.py").write_text(f"{_SETUP}def f0(): setup()\n{calls}")
        made = 0

        def count(_frame: object, event: str, function: object) -> None:
            nonlocal made
            made += event == "c_call" and isinstance(getattr(function, "__self__", None), re.Pattern)

        before = sys.getprofile()
        sys.setprofile(count)
        try:
            assert url_in_source("led_app:app") == "sqlite:///a.db"
        finally:
            sys.setprofile(before)
        return made

    assert searches(30) == searches(3)


@pytest.mark.parametrize("spec", ["no_such_module:app", "no.such:app", "plain_folder:app", "json:app"])
def test_a_module_that_is_no_file_here_has_to_be_imported(folder: Path, spec: str) -> None:
    (folder / "plain_folder").mkdir()

    with pytest.raises(NotPlain):
        url_in_source(spec)


@pytest.mark.parametrize(
    ("spec", "is_seen"),
    [
        ("shop.tasks:app", True),
        ("shop.jobs.tasks:app", True),
        ("spread.tasks:app", True),
        ("spread.jobs.tasks:app", True),
        ("spread_too.tasks:app", True),
        ("shop.taskz:app", False),
        ("shop.jobz.tasks:app", False),
    ],
)
def test_a_module_of_a_package_is_not_said_to_be_missing_where_an_import_may_find_it(
    folder: Path, spec: str, is_seen: bool
) -> None:
    """As it is compiled alone, or the package has folders elsewhere."""
    inits = {
        "shop": "",
        "shop/jobs": "",
        "spread": "from pkgutil import extend_path\n__path__ = extend_path(__path__, __name__)\n",
        "spread_too": "__import__('pkg_resources').declare_namespace(__name__)\n",
    }
    for package, code in inits.items():
        (folder / package).mkdir()
        (folder / package / "__init__.py").write_text(code)
    for package in ("shop", "shop/jobs"):
        source = folder / package / "tasks.py"
        source.write_text(_IMPORT + "app = QmlApp()\n")
        py_compile.compile(str(source), str(source.with_suffix(".pyc")))
        source.unlink()

    with pytest.raises(NotPlain) as caught:
        url_in_source(spec)

    assert isinstance(caught.value, NotFound) is not is_seen


def test_an_import_finds_the_same(folder: Path) -> None:
    (folder / "same_app.py").write_text(_IMPORT + 'app = QmlApp("sqlite:///d.db")\n')

    app = import_named("same_app:app")

    assert isinstance(app, QmlApp)
    assert app.program.url == url_in_source("same_app:app")


def test_an_app_whose_module_changes_the_directory_has_one_file_for_producers_and_servers(
    folder: Path,
) -> None:
    (folder / "elsewhere").mkdir()
    code = 'import os\nos.chdir("elsewhere")\napp = QmlApp("sqlite:///jobs.db")\n'
    (folder / "moving_app.py").write_text(_IMPORT + code)
    source = NamedProgram(spec="moving_app:app")

    told = read_facts(probe(source)).url
    app = import_named(source.spec)  # the directory is changed by now

    assert isinstance(app, QmlApp)
    assert told == app.storage.url == f"sqlite:///{folder}/elsewhere/jobs.db"
    app.close()


@pytest.mark.parametrize("url", ["sqlite:///", "sqlite:///:memory:", "postgresql://host/jobs", None])
def test_what_names_no_relative_path_is_told_as_it_is(url: str | None) -> None:
    source = LoadedProgram(program=QmlApp(url).program)

    assert read_facts(probe(source)).url == url
