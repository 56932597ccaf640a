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
from collections.abc import Iterator, Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec, PathFinder
from pathlib import Path

from qml_mp.child.import_errors import is_users
from qml_mp.sources import anchored

_ATTACHES = "attach"
_VARIABLE = "QML_MP_URL"
"""A module whose code has one of these words may change the URL later."""
_CHANGE_DIRECTORY = ("chdir", "fchdir")


class NotPlain(Exception):
    """What the source says has to be found out by importing it.

    `urls` are those that it can be, where all else is plain: a file in the current directory, or in that of
    the module, to which the import may change.
    """

    def __init__(self, urls: Sequence[str] = ()) -> None:
        super().__init__("only an import can tell the URL")
        self.urls = urls


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
    if url is not None and anchored(url, Path(os.sep)) != url and _import_changes_directory(module):
        raise NotPlain([url, anchored(url, file.parent.absolute())])
    return url


def _file_of(module: str) -> Path:
    """The source file that an import would load, found as Python does and without importing the packages
    around it. As for Python, a folder that may not be entered holds nothing."""
    *packages, name = module.split(".")
    folders = [Path(entry or os.curdir) for entry in sys.path]
    for package in packages:
        found = next((folder / package for folder in folders if os.path.isdir(folder / package)), None)
        if found is None or not os.path.isfile(found / "__init__.py"):
            raise NotPlain
        folders = [found]
    for folder in folders:
        compiled = (folder / f"{name}{end}" for end in EXTENSION_SUFFIXES)
        if os.path.isdir(folder / name) or any(map(os.path.exists, compiled)):
            raise NotPlain  # a package, or compiled
        if os.path.isfile(folder / f"{name}.py"):
            return folder / f"{name}.py"
    raise NotPlain


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


def _import_changes_directory(module: str) -> bool:
    """Whether the import may do so, by what stands in the module, in the packages around it, or in what these
    import of the user's own code. What cannot be read is passed over: it does not import either."""
    names, seen = [module], {""}
    while names:
        name = names.pop()
        if name in seen:
            continue
        seen.add(name)
        names.append(name.rpartition(".")[0])
        found = _found_by_import(name)
        if found is None or found.origin is None or not is_users(found.origin):
            continue
        tree = _tree_of(Path(found.origin))
        if tree is None:
            continue
        if _changes_directory(tree):
            return True
        is_package = found.submodule_search_locations is not None
        names += _imported(tree, package=name if is_package else name.rpartition(".")[0])
    return False


def _found_by_import(module: str) -> ModuleSpec | None:
    """Where an import would find it; the packages around it are not imported for that."""
    folders: list[str] | None = None  # sys.path
    found = None
    for name in module.split("."):
        found = PathFinder.find_spec(name, folders)
        if found is None:
            return None
        folders = found.submodule_search_locations or []
    return found


def _imported(tree: ast.Module, *, package: str) -> Iterator[str]:
    """What a module of the package imports; of `from a import b`, b may be a module too."""
    for node in _run_at_import(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            around = package.rsplit(".", node.level - 1)[0] if node.level else ""
            name = ".".join(filter(None, [around, node.module]))
            yield name
            yield from (f"{name}.{alias.name}" for alias in node.names)


def _changes_directory(tree: ast.Module) -> bool:
    return any(
        value in _CHANGE_DIRECTORY for node in _run_at_import(tree) for _, value in ast.iter_fields(node)
    )


def _run_at_import(tree: ast.Module) -> Iterator[ast.AST]:
    """What an import runs; what functions do is their callers' affair, as jobs run elsewhere."""
    nodes: list[ast.AST] = [node for node in tree.body if not _is_of_a_program(node)]
    for node in nodes:
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            nodes += ast.iter_child_nodes(node)


def _is_of_a_program(node: ast.AST) -> bool:
    """Whether it is run when the module is run as a program, and not when it is imported."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'" and not node.orelse


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
