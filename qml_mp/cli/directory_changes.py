"""Client: whether the import of a module may change the current directory, found out without running it.

Of the program that it imports the text is searched, and only a module with the word in it is parsed: to parse
all takes longer than to import it, and hundreds of megabytes of memory for one with much data.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import decode_source
from pathlib import Path

from qml_mp.child.import_errors import is_users

_CHANGE_DIRECTORY = ("chdir", "fchdir")
_BY_IMPORT = ""
"""In the place of a function's name."""
_MOST_PARSED = 256 * 1024
"""Characters, whose trees take a hundred times as many bytes. What is more may do anything."""

# No statement has a second `import` in it. What one takes no other looks at again, however long a line is.
_IMPORT = re.compile(r"\bimport\b[ \t\f]*(\((?:#.*+|(?!\bimport\b)[^)#])*+|(?:(?!\bimport\b)[^\n;])*+)")
_FROM = re.compile(r"\bfrom([\s.]*)([\w.]*)\s*$")
_LONGEST_FROM = 300
_DEFINED = re.compile(r"\b(?:def|class|as)[\s\\]+(\w+)")
_WORD = re.compile(r"[^\W\d]\w*")


def import_changes_directory(module: str) -> bool:
    """Whether the import may do so, by what stands in the module, in the packages around it, or in what these
    import of the user's own code, and by the functions that are called there. What cannot be read is passed
    over: it does not import either."""
    texts = list(_texts(module))
    names = set(_CHANGE_DIRECTORY)
    if not any(name in text for text in texts for name in names):
        return False
    # Each text is searched once, however long the chain of callers is, and for what may be one of them.
    known = names.union(*map(_DEFINED.findall, texts))
    words = {text: known.intersection(word[0] for word in _WORD.finditer(text)) for text in texts}
    calls: dict[str, list[tuple[str, set[str]]]] = {}
    while True:
        said = [text for text in texts if names & words[text]]
        if sum(map(len, said)) > _MOST_PARSED:
            return True
        calls |= {text: _calls(text) for text in said if text not in calls}
        callers = {caller for text in said for caller, called in calls[text] if called & names}
        if _BY_IMPORT in callers:
            return True
        if callers <= names:
            return False
        names |= callers


def _texts(module: str) -> Iterator[str]:
    """Of the module and of what it imports of the user's own."""
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
        text = _text_of(found.origin)
        yield text
        is_package = found.submodule_search_locations is not None
        names += _imported(text, package=name if is_package else name.rpartition(".")[0])


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


def _text_of(file: str) -> str:
    try:
        return decode_source(Path(file).read_bytes())
    except (OSError, ValueError, SyntaxError):
        return ""


def _imported(text: str, *, package: str) -> Iterator[str]:
    """What a module of the package may import; of `from a import b`, b may be a module too.

    Also what functions import, and what is only said to be in a text or a comment: too many do no harm.
    """
    text = text.replace("\\\n", " ")
    for statement in _IMPORT.finditer(text):
        listed = re.sub("#.*", "", statement[1]).split(",")
        names = [word[0] for each in listed if (word := re.search(r"[\w.]+", each))]
        start = statement.start()
        of = _FROM.search(text[max(start - _LONGEST_FROM, 0) : start].rpartition("\n")[2])
        if of is None:
            yield from names
            continue
        level = of[1].count(".")
        around = package.rsplit(".", level - 1)[0] if level else ""
        name = ".".join(filter(None, [around, of[2]]))
        yield name
        yield from (f"{name}.{each}" for each in names)


def _calls(text: str) -> list[tuple[str, set[str]]]:
    """What is called, by name, where the module is imported and in each function; of a class, what makes its
    instances calls. Whose name is the same is taken for the same."""
    try:
        with warnings.catch_warnings(action="ignore"):  # Python tells of it where it is imported
            tree = ast.parse(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return []
    calls = [(_BY_IMPORT, _called([node for node in tree.body if not _is_of_a_program(node)]))]
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) if not _is_special(name):
                calls.append((name, _called(node.body)))
            case ast.ClassDef(name=name):
                calls.append((name, {_name_of(base) for base in node.bases}))
                special = (each for each in node.body if isinstance(each, ast.FunctionDef))
                calls += [(name, _called(each.body)) for each in special if _is_special(each.name)]
            case ast.alias(name=name, asname=str(other)):
                calls.append((other, {name}))
    return calls


def _is_special(name: str) -> bool:
    """Whether Python calls the method, as `__init__`."""
    return name.startswith("__") and name.endswith("__")


def _called(statements: Sequence[ast.AST]) -> set[str]:
    """Who may change the directory is taken to be called where it is named, in whatever way."""
    names = set[str]()
    for node in _run(statements):
        names.update(value for _, value in ast.iter_fields(node) if value in _CHANGE_DIRECTORY)
        if isinstance(node, ast.Call):
            names.add(_name_of(node.func))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.update(map(_name_of, node.decorator_list))
    return names


def _name_of(node: ast.AST) -> str:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def _run(statements: Sequence[ast.AST]) -> Iterator[ast.AST]:
    """What runs with them; what functions do that they define is for those to say that call them."""
    nodes = list(statements)
    for node in nodes:
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            nodes += [*node.decorator_list, node.args]
        else:
            nodes += ast.iter_child_nodes(node)


def _is_of_a_program(node: ast.AST) -> bool:
    """Whether it is run when the module is run as a program, and not when it is imported."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'" and not node.orelse
