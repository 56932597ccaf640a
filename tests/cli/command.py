"""Tests: the real command, run as a process of its own in a folder of its own."""

from __future__ import annotations

import ctypes
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CAP_DAC_OVERRIDE = 1
_PR_CAPBSET_DROP = 24
_PATIENCE_S = 60

TASKS = """
from qml_mp import QmlApp

app = QmlApp()

@app.job(queue="images")
def resize(path: str, width: int = 800) -> dict[str, object]:
    return {"path": path, "width": width}

@app.job()
def boom() -> None:
    raise ValueError("it went wrong")
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[Any]:
        """Standard output as JSON, one value per line."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def value(self) -> Any:
        """Standard output as the one JSON value that it is."""
        return json.loads(self.out)


@dataclass(frozen=True, slots=True, kw_only=True)
class Qml:
    """The command `qml-mp` in a folder, which holds the app `tasks:app`."""

    folder: Path

    def __call__(
        self,
        *arguments: str | bytes,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
        file_modes_bind: bool = False,
    ) -> Ended:
        """Run it to its end. With `file_modes_bind`, modes of files hold for root too."""
        ended = subprocess.run(
            [sys.executable, "-m", "qml_mp", *arguments],
            input=stdin.encode(), capture_output=True, timeout=_PATIENCE_S, check=False,
            cwd=self.folder, env=self.environment(env),
            preexec_fn=_give_up_root_access if file_modes_bind else None,
        )  # fmt: skip
        return Ended(code=ended.returncode, out=ended.stdout.decode(), err=ended.stderr.decode())

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """This process's environment without settings of qml-mp, and the extra variables."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("QML_MP_")}
        return {**own, **(extra or {})}

    @property
    def database(self) -> Path:
        """The file that the default URL names."""
        return self.folder / "qml.db"

    def dump(self) -> list[str]:
        """Everything that is in the database, as SQL."""
        connection = sqlite3.connect(self.database)
        try:
            return list(connection.iterdump())
        finally:
            connection.close()

    def files(self) -> set[str]:
        """The names of the files in the folder, save what Python itself leaves."""
        return {path.name for path in self.folder.iterdir()} - {"__pycache__"}


def is_one_error(text: str) -> bool:
    """Whether the text is one paragraph as the command prints errors, and no traceback."""
    return text.startswith("qml-mp: error: ") and text.count("\n") == 1 and text.endswith("\n")


def _give_up_root_access() -> None:
    """In the child, before exec: root loses the capability to pass over the modes of files."""
    if os.geteuid() == 0:
        ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE, 0, 0, 0)
