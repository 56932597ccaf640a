"""Tests: the real command, run as a process of its own in a folder of its own."""

from __future__ import annotations

import ctypes
import json
import os
import pty
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from tests.warm import launch

_CAP_DAC_OVERRIDE = 1
_CAP_DAC_READ_SEARCH = 2
_PR_CAPBSET_DROP = 24
_PATIENCE_S = 120  # bounds a command that hangs, and judges nothing
_STOP_PATIENCE_S = 30

TASKS = """
import signal
import time

from qml_mp import QmlApp, RetryPolicy

app = QmlApp()

@app.job(queue="images")
def resize(path: str, width: int = 800) -> dict[str, object]:
    return {"path": path, "width": width}

@app.job(retry=RetryPolicy.none())
def boom() -> None:
    raise ValueError("it went wrong")

@app.job()
def stubborn() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open("begun", "w").close()
    while True:
        try:
            time.sleep(60)  # for ever, whatever is raised
        except BaseException:
            pass
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
        module: str = "qml_mp",
    ) -> Ended:
        """Run it to its end. With `file_modes_bind`, modes of files hold for root too. `module`: another one
        that runs the command."""
        command = [sys.executable, "-m", module, *arguments]
        if file_modes_bind:
            ended = subprocess.run(
                command, input=stdin.encode(), capture_output=True, timeout=_PATIENCE_S, check=False,
                cwd=self.folder, env=self.environment(env), preexec_fn=_give_up_root_access,
            )  # fmt: skip
            return Ended(code=ended.returncode, out=ended.stdout.decode(), err=ended.stderr.decode())
        with TemporaryFile() as given, TemporaryFile() as out, TemporaryFile() as err:
            given.write(stdin.encode())
            given.seek(0)
            process = launch(
                command, cwd=self.folder, env=self.environment(env),
                stdin=given.fileno(), stdout=out.fileno(), stderr=err.fileno(),
            )  # fmt: skip
            code = process.wait(_PATIENCE_S)
            out.seek(0)
            err.seek(0)
            return Ended(code=code, out=out.read().decode(), err=err.read().decode())

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """This process's environment without settings of qml-mp, and the extra variables."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("QML_MP_")}
        return {**own, **(extra or {})}

    @contextmanager
    def started(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """`qml-mp -A tasks:app start` with the arguments, running in the background; stopped at the end."""
        with subprocess.Popen(
            [sys.executable, "-m", "qml_mp", "-A", "tasks:app", "start", *arguments],
            cwd=self.folder, env=self.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            try:
                yield process
            finally:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_STOP_PATIENCE_S)
                process.kill()

    def until(self, *arguments: str, shows: Callable[[Any], bool], server: subprocess.Popen[bytes]) -> Any:
        """Run a reading command with --json over and over until its value is as wanted; that value.

        Fails when the server leaves meanwhile, with what it said.
        """
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            ended = self(*arguments, "--json")
            if ended.code == 0 and shows(ended.value):
                return ended.value
            assert server.poll() is None, server.communicate()
            assert time.monotonic() < deadline, f"{arguments} never showed it: {ended}"

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
    """In the child, before exec: root loses the capabilities to pass over the modes of files and folders."""
    if os.geteuid() == 0:
        for capability in (_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH):
            ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


def on_a_terminal(
    qml: Qml, *arguments: str, no_color: str, check: bool = True, stream: str = "stdout"
) -> bytes:
    """What the command shows on one, of 80 columns, by this stream; the variable NO_COLOR is so. `check`: it
    has to end with 0."""
    leader, follower = pty.openpty()
    subprocess.run(
        [sys.executable, "-m", "qml_mp", *arguments], cwd=qml.folder,
        env=qml.environment({"NO_COLOR": no_color, "TERM": "xterm"}), check=check,
        stdout=follower if stream == "stdout" else subprocess.DEVNULL,
        stderr=follower if stream == "stderr" else None,
    )  # fmt: skip
    os.close(follower)
    shown = b""
    with suppress(OSError):  # the end: nobody has the other side, and all that came from there is read
        while part := os.read(leader, 65536):
            shown += part
    os.close(leader)
    return shown
