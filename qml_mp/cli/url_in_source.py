"""Client: the URL that an app's code gives, read in its source without running it.

To import an app may take seconds, and it fails in the middle of a deploy. A command that needs the URL alone
is spared both where the source says plainly what it is: one `app = QmlApp("…")` at the top of the module. In
every other case nothing is said, and the app has to be imported.
"""

from __future__ import annotations

import ast
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import EXTENSION_SUFFIXES, PathFinder
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

from qml_mp.cli.directory_changes import import_changes_directory
from qml_mp.sources import anchored

_ATTACHES = "attach"
_VARIABLE = "QML_MP_URL"
"""A module whose code has one of these words may change the URL later."""
_MORE_FOLDERS = (b"__path__", b"declare_namespace")
"""A package whose code has one of these words may have others than its own."""


class NotPlain(Exception):
    """What the source says has to be found out by importing it.

    `urls` are those that it can be, where all else is plain: a file in the current directory, or in that of
    the module, to which the import may change.
    """

    def __init__(self, urls: Sequence[str] = ()) -> None:
        super().__init__("only an import can tell the URL")
        self.urls = urls


class NotFound(NotPlain):
    """No module is seen by its name, in the current directory or where else Python looks."""


def url_in_source(spec: str) -> str | None:
    """The URL that is written in the code of "module:attribute"; None: it leaves that to the environment.

    Raises `NotPlain` where only an import can tell.
    """
    module, _, attribute = spec.partition(":")
    file = _file_of(module)
    tree = _tree_of(file)
    if tree is None:
        raise NotPlain
    if any(text == _ATTACHES or _VARIABLE in text for text in _words(tree)):
        raise NotPlain
    app = _only_value(tree, attribute)
    if not (isinstance(app, ast.Call) and isinstance(app.func, ast.Name)):
        raise NotPlain
    if not _is_the_class(tree, app.func.id):
        raise NotPlain
    url = _url_argument(app)
    if url is not None and anchored(url, Path(os.sep)) != url and import_changes_directory(module):
        raise NotPlain([url, anchored(url, file.parent.absolute())])
    return url


def guessed_url(spec: str, *, if_not_found: Callable[[], str]) -> tuple[str | None, str | None]:
    """The URL of "module:attribute" for who imports it in no case, and what to say where its import may name
    another; None: nothing. A URL of None: the environment may have it, and where it has none yet, the import
    may put one there, which counts before that of a settings file. `if_not_found` gives a sentence, or "",
    that is said, too, where there is no such source."""
    doubt = f"What storage the app {spec!r} uses is not plain from its source"
    try:
        url = url_in_source(spec)
    except NotFound:
        doubt = f"The source of the app {spec!r} is not found from here: mend that name, or name the storage"
        return None, f"{doubt} by --url or QML_MP_URL. {if_not_found()}".rstrip()
    except NotPlain as error:
        url = next(filter(_names_a_file, error.urls), next(iter(error.urls), None))
    else:
        if url is not None:
            return url, None
        doubt = f"The URL of the app {spec!r} is left to the environment, which its import may set"
    # A URL in the code is beaten by the flag alone.
    ways = "--url" if url is not None else "--url or QML_MP_URL"
    return url, f"{doubt}, and it is not imported here: name it by {ways}."


def _names_a_file(url: str) -> bool:
    """Of SQLite."""
    return os.path.exists(unquote(url.removeprefix("sqlite:///")))


def _file_of(module: str) -> Path:
    """The source file that an import would load, found as Python does and without importing the packages
    around it. As for Python, a folder that may not be entered holds nothing."""
    *packages, name = module.split(".")
    folders, within = [Path(entry or os.curdir) for entry in sys.path], None
    for package in packages:
        found = next((folder / package for folder in folders if os.path.isdir(folder / package)), None)
        if found is None:
            raise _not_seen(package, within)
        if not os.path.isfile(found / "__init__.py"):
            raise NotPlain
        folders, within = [found], found
    for folder in folders:
        compiled = (folder / f"{name}{end}" for end in EXTENSION_SUFFIXES)
        if os.path.isdir(folder / name) or any(map(os.path.exists, compiled)):
            raise NotPlain  # a package, or compiled
        if os.path.isfile(folder / f"{name}.py"):
            return folder / f"{name}.py"
    raise _not_seen(name, within)


def _not_seen(name: str, package: Path | None) -> NotPlain:
    """Of what is in no folder, or not in that of its package, as a source: it may be compiled, an archive may
    have it, or a finder as editable installs bring; and a package may have further folders."""
    try:
        if package is None:
            is_known = find_spec(name) is not None  # which imports nothing
        else:
            is_known = PathFinder.find_spec(name, [str(package)]) is not None or _has_more_folders(package)
    except (ImportError, ValueError):
        is_known = False
    return NotPlain() if is_known else NotFound()


def _has_more_folders(package: Path) -> bool:
    try:
        code = (package / "__init__.py").read_bytes()
    except OSError:
        return False
    return any(word in code for word in _MORE_FOLDERS)


def _tree_of(file: Path) -> ast.Module | None:
    """None: it cannot be read. What Python warns of in it is told where it is imported."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return ast.parse(file.read_bytes())
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def _words(tree: ast.Module) -> Iterator[str]:
    """Every name and text that the code has; no comments, and no texts that stand alone, as docstrings do."""
    nodes = list(ast.walk(tree))
    prose = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.Constant) and id(node) in prose:
            continue
        for _, value in ast.iter_fields(node):
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str | bytes):
                    yield text if isinstance(text, str) else text.decode("latin-1")


def _bound(tree: ast.Module, name: str) -> list[ast.AST]:
    """Every place, at whatever depth, that gives the name a meaning."""
    return [
        node for node in ast.walk(tree)
        if (isinstance(node, ast.Name) and node.id == name and not isinstance(node.ctx, ast.Load))
        or (isinstance(node, ast.alias) and (node.asname or node.name) in (name, "*"))
        or (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == name)
    ]  # fmt: skip


def _only_value(tree: ast.Module, name: str) -> ast.expr:
    """What is assigned to the name, once and at the top of the module."""
    bound = _bound(tree, name)
    if len(bound) == 1:
        for statement in tree.body:
            match statement:
                case ast.Assign(targets=[ast.Name() as target], value=value) if target is bound[0]:
                    return value
                case ast.AnnAssign(target=target, value=ast.expr() as value) if target is bound[0]:
                    return value
    raise NotPlain


def _is_the_class(tree: ast.Module, name: str) -> bool:
    """Whether the name means `qml_mp.QmlApp` and nothing else."""
    bound = _bound(tree, name)
    return len(bound) == 1 and any(
        alias is bound[0] and alias.name == "QmlApp"
        for statement in tree.body
        if isinstance(statement, ast.ImportFrom) and statement.module == "qml_mp" and not statement.level
        for alias in statement.names
    )


def _url_argument(call: ast.Call) -> str | None:
    if any(isinstance(each, ast.Starred) for each in call.args) or any(
        keyword.arg is None for keyword in call.keywords
    ):
        raise NotPlain
    named = [keyword.value for keyword in call.keywords if keyword.arg == "url"]
    match [*call.args, *named]:
        case []:
            return None
        case [ast.Constant(value=str() | None as url)]:
            return url
    raise NotPlain
