"""Mutants: what a mutant is, and a copy of the project that has its changes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

ROOT = Path(__file__).parents[2]
_COPIED = ("qml_mp", "tests", "examples", "scripts", "pyproject.toml", "README.md")
# What pytest compiles names the file that it was compiled from, also in a copy.
_NOT_COPIED = shutil.ignore_patterns("*-pytest-*.pyc", ".hypothesis")


_LESS_PATIENT = ("tests/until.py", "PATIENCE_S = 60.0", "PATIENCE_S = 12.0")
"""A test that waits for what never comes has failed before a run has used up its time."""


class DoesNotApplyError(Exception):
    """The text of a change is not in its file exactly once."""


@dataclass(frozen=True, slots=True)
class Change:
    """In this file, this text, which is there exactly once, becomes another one."""

    file: str
    old: str
    new: str

    def apply(self, root: Path) -> None:
        """Change the file below this folder."""
        path = root / self.file
        text = path.read_text() if path.exists() else ""
        found = text.count(self.old)
        if found != 1:
            raise DoesNotApplyError(f"does not apply: {self.file} has the text {found} times: {self.old!r}")
        path.write_text(text.replace(self.old, self.new))


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """A change of behaviour. Its name says what is wrong; the texts are those of today's code."""

    name: str
    promise: str
    """What users were promised and no longer get, in one sentence."""
    changes: tuple[Change, ...]
    tests: tuple[str, ...]
    """Arguments of pytest: a few quick tests at a seam, of which at least one must fail."""


@contextmanager
def project_copy(changes: tuple[Change, ...]) -> Iterator[Path]:
    """A copy of the project with these changes, for the length of the block."""
    folder = Path(mkdtemp(prefix="qml-mp-mutant-"))
    try:
        for name in _COPIED:
            source, target = ROOT / name, folder / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=_NOT_COPIED)
            else:
                shutil.copy2(source, target)
        for change in (Change(*_LESS_PATIENT), *changes):
            change.apply(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
