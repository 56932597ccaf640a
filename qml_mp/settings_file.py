"""Client, supervisor: the nearest settings file.

It is `qml-mp.toml`, or `pyproject.toml` with a table `[tool.qml-mp]`; the first directory that has one, from
the current one upwards (of a command: from that in which it was called), is the only one read.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from qml_mp.errors import ConfigurationError
from qml_mp.settings import SETTINGS

_OWN = "qml-mp.toml"
ALIASES: Mapping[str, str] = MappingProxyType({"workers": "worker_count"})
"""Short names of settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsFile:
    """Its values as they are written, under the names of settings."""

    path: Path
    values: Mapping[str, object]


def nearest_file(directory: str | None) -> SettingsFile | None:
    """The file of the first directory upwards from this one (None: from the current one) that has one; a
    pyproject.toml without our table is none. `os.path` sees none in a directory that may not be entered,
    where `Path.is_file` raises."""
    try:
        start = Path.cwd() if directory is None else Path(directory)
    except OSError:  # it was removed
        return None
    for folder in (start, *start.parents):
        own = folder / _OWN
        if os.path.isfile(own):
            return _checked(own, _read_toml(own))
        project = folder / "pyproject.toml"
        if os.path.isfile(project):
            tool = _read_toml(project).get("tool")
            tables = tool if isinstance(tool, dict) else {}
            for name in tables:
                if name != "qml-mp" and name.lower().replace("_", "-") == "qml-mp":
                    raise ConfigurationError(f"{project} has [tool.{name}]; did you mean [tool.qml-mp]?")
            if "qml-mp" in tables:
                return _checked(project, tables["qml-mp"])
    return None


def _read_toml(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"The settings file {path} cannot be read: {error}") from None


def _checked(path: Path, values: object) -> SettingsFile:
    if not isinstance(values, dict):
        raise ConfigurationError(f"tool.qml-mp in {path} must be a table: [tool.qml-mp].")
    known = ["url", "app", *ALIASES, *SETTINGS]
    for key, value in values.items():
        if key not in known and isinstance(value, dict):
            where = "at the top, in no table" if path.name == _OWN else "in [tool.qml-mp] itself"
            raise ConfigurationError(f"{path} has the table [{key}]; the settings stand {where}.")
        if key not in known:
            close = difflib.get_close_matches(key.replace("-", "_"), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}."
            raise ConfigurationError(f"{path} has the unknown setting {key!r}; {hint}")
    return SettingsFile(path=path, values=values)
