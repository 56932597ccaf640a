"""Anywhere: `help()` of a class of settings says what its fields mean.

The text below each field is for the reader of the source, and Python drops it. It is looked up there when
somebody asks for the documentation, so that it is written once and costs a process that runs jobs nothing.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from datetime import timedelta
from typing import Any, TypeVar

from qml_mp.units import format_duration

_C = TypeVar("_C", bound=type)
_INDENT = "\n      "


def with_fields_in_doc(cls: _C) -> _C:
    """Decorator of a dataclass: its `__doc__` ends with its fields, each with its type, its default and what
    stands below it in the source; without those that its repr leaves out. Where there is no source, the
    docstring is as it was."""
    setattr(cls, "__doc__", _Doc(cls.__doc__ or ""))  # noqa: B010  # typed as text, and read as that
    return cls


class _Doc:
    """A descriptor: Python gives what it says for `__doc__` of the class."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __get__(self, _instance: object, owner: Any) -> str:
        try:
            (tree,) = ast.parse(inspect.getsource(owner)).body
        except (OSError, TypeError, SyntaxError, ValueError):
            return self._text
        defaults = {each.name: each.default for each in fields(owner) if each.repr}
        told = [] if not isinstance(tree, ast.ClassDef) else _told(tree, defaults)
        return "\n".join([inspect.cleandoc(self._text), "", "Attributes:", *told])


def _told(tree: ast.ClassDef, defaults: Mapping[str, object]) -> Iterator[str]:
    for part, below in zip(tree.body, [*tree.body[1:], None], strict=True):
        match part:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation) if name in defaults:
                text = ""
                match below:
                    case ast.Expr(value=ast.Constant(value=str(words))):
                        text = _INDENT + inspect.cleandoc(words).replace("\n", _INDENT)
                yield f"  {name}: {_type_of(annotation)}{_default_of(defaults[name])}{text}"


def _type_of(annotation: ast.expr) -> str:
    """Without what is noted beside the type, for the machine."""
    match annotation:
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[kind, *_])):
            return ast.unparse(kind)
    return ast.unparse(annotation)


def _default_of(default: object) -> str:
    if default is MISSING:
        return ""
    return f" = {format_duration(default) if isinstance(default, timedelta) else repr(default)}"
