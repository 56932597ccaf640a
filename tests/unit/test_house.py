"""Tests: files, functions and constructors of the package stay within a reader's reach."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "qml_mp"
MOST_FILE_LINES = 320
MOST_FUNCTION_LINES = 50
MOST_PARAMETERS = 7
PROCESSES = {"client", "host", "supervisor", "web process"}
"""As docstrings name them; a worker imports what it was forked with."""
ENTRY_POINT = "child/main.py"
"""Whoever forks a worker imports it, and runs nothing of it."""


@pytest.fixture(scope="module")
def modules() -> dict[str, ast.Module]:
    """By path within the package."""
    return {
        str(path.relative_to(PACKAGE)): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def test_no_file_is_longer_than_a_sitting() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.rglob("*.py")}

    assert {path: lines for path, lines in lengths.items() if lines > MOST_FILE_LINES} == {}


def test_no_function_is_longer_than_a_screen(modules: dict[str, ast.Module]) -> None:
    """From its first decorator to its last line, the docstring included."""
    lengths = {
        f"{name}:{function.name}": lines_of(function)
        for name, module in modules.items()
        for function in ast.walk(module)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
    }

    assert {name: lines for name, lines in lengths.items() if lines > MOST_FUNCTION_LINES} == {}


def test_no_constructor_takes_more_than_seven_things(modules: dict[str, ast.Module]) -> None:
    """Counted are the parameters of `__init__` beside self, and the fields that the constructor of a
    dataclass takes (not those with `init=False`), with a default or without.

    A frozen dataclass does not count. It is a record, such as a row, a message or the settings: it has as
    many fields as there are facts, and does nothing.
    """
    numbers = {
        f"{name}:{each.name}": len(list(constructor_parameters(each)))
        for name, module in modules.items()
        for each in ast.walk(module)
        if isinstance(each, ast.ClassDef)
    }

    assert {name: number for name, number in numbers.items() if number > MOST_PARAMETERS} == {}


@pytest.mark.parametrize("folder", ["child", "supervisor", "views"])
def test_the_first_words_of_a_docstring_name_the_process_of_each_module_that_imports_it(
    modules: dict[str, ast.Module], folder: str
) -> None:
    """Where several share a module, that tells nothing of what it imports."""
    unnamed = {
        (imported, process)
        for module in modules.values()
        for imported in imports_of(module)
        if imported.startswith(f"{folder}/") and imported in modules and imported != ENTRY_POINT
        if (process := where_it_runs(module)) in PROCESSES and not runs_in(process, modules[imported])
    }

    assert unnamed == set()


def where_it_runs(module: ast.Module) -> str:
    return (ast.get_docstring(module) or "").partition(":")[0].lower()


def runs_in(process: str, module: ast.Module) -> bool:
    words = where_it_runs(module)
    return process in words or words.startswith(("every process", "both sides"))


def imports_of(module: ast.Module) -> Iterator[str]:
    """Modules of the package, as paths within it."""
    for each in ast.walk(module):
        if isinstance(each, ast.ImportFrom) and (each.module or "").startswith("qml_mp."):
            yield (each.module or "").removeprefix("qml_mp.").replace(".", "/") + ".py"


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])
    return (function.end_lineno or first) - first + 1


def constructor_parameters(each: ast.ClassDef) -> Iterator[str]:
    """What must or may be given to make one; nothing for a record."""
    decorators = [ast.unparse(decorator) for decorator in each.decorator_list]
    is_mutable = any(text.startswith("dataclass") and "frozen=True" not in text for text in decorators)
    for part in each.body:
        match part:
            case ast.FunctionDef(name="__init__", args=taken):
                parameters = [*taken.posonlyargs, *taken.args, *taken.kwonlyargs]
                yield from (parameter.arg for parameter in parameters[1:])  # the first is self
            case ast.AnnAssign(target=ast.Name(id=field)) if is_mutable:
                if "ClassVar" not in ast.unparse(part.annotation) and "init=False" not in ast.unparse(part):
                    yield field
