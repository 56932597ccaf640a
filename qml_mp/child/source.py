"""Worker: where the program comes from: by name, imported after the fork, or handed over in memory."""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass
from typing import Protocol

from qml_mp.errors import AppImportError
from qml_mp.processing.program import Program


class ProgramSource(Protocol):
    """Gives a worker its program. Called once in each worker."""

    @property
    def label(self) -> str:
        """What process titles show: "tasks:app"."""

    def load(self) -> Program:
        """The program. Raises whatever the user's module raises when it is imported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedProgram:
    """An app named "module:attribute", found with the current directory importable."""

    spec: str

    @property
    def label(self) -> str:
        return self.spec

    def load(self) -> Program:
        """Import the module and return the app's program; `AppImportError` when it is no app."""
        found = import_named(self.spec)
        program = found if isinstance(found, Program) else getattr(found, "program", None)
        if not isinstance(program, Program):
            raise AppImportError(f"{self.spec!r} is a {type(found).__name__}, not a QmlApp.")
        return program


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedProgram:
    """A program in memory, which a fork hands to the worker."""

    program: Program
    label: str = "program"

    def load(self) -> Program:
        return self.program


def import_named(spec: str) -> object:
    """What "module:attribute" names, found with the current directory importable.

    Raises `AppImportError` where it names nothing, and whatever the user's module raises at its import.
    """
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute:
        raise AppImportError(f'The app {spec!r} is not of the form "module:attribute", e.g. "tasks:app".')
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    found: object = importlib.import_module(module_name)
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise AppImportError(f"The module {module_name!r} has no attribute {attribute!r}.") from None
    return found
