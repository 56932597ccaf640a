"""Tests: `python -m tests.nightly.moved LOCKED` says which versions here differ from the locked ones."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_PINNED = re.compile(r"^[A-Za-z0-9][^\s=]*==[^\\#]+", re.MULTILINE)
_NOT_OF_THE_LIST = {"pip", "setuptools", "wheel", "qml-mp"}


def main() -> int:
    """Print a line for each package: its name, the locked version, and the one that is installed."""
    locked = _locked(Path(sys.argv[1]).read_text())
    installed = {str(canonicalize_name(each.name)): each.version for each in metadata.distributions()}
    lines = list(moved(locked, installed))
    print("\n".join(lines) or "none")
    return 0


def moved(locked: Mapping[str, str], installed: Mapping[str, str]) -> Iterator[str]:
    """A line for each package whose versions differ, by name."""
    for name in sorted(locked.keys() | installed.keys() - _NOT_OF_THE_LIST):
        before, now = locked.get(name, "not locked"), installed.get(name, "not installed")
        if before != now:
            yield f"{name} {before} → {now}"


def _locked(text: str) -> dict[str, str]:
    """Name to version, of what is meant for this Python and this system."""
    requirements = map(Requirement, _PINNED.findall(text))
    return {
        str(canonicalize_name(each.name)): str(each.specifier).removeprefix("==")
        for each in requirements
        if each.marker is None or each.marker.evaluate()
    }


if __name__ == "__main__":
    raise SystemExit(main())
