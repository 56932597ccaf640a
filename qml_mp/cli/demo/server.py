"""Client: the supervisor that `qml-mp demo` runs, a process of its own, and its temporary SQLite file."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from qml_mp.errors import QmlError
from qml_mp.sources import environment_without_settings

_APP = "qml_mp.cli.demo.tasks:app"
_STOP_WAIT_S = 15.0
_LOG_LINES = 20


class DemoServer:
    """`qml-mp start` on a storage in a folder that is removed afterwards."""

    def __init__(self, folder: Path, *, workers: int, verbose: bool) -> None:
        self.url = f"sqlite:///{quote(str(folder / 'demo.db'))}"
        self._folder = folder
        self.workers = workers
        self._verbose = verbose
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it. It has a session of its own, so that Ctrl-C reaches it only through us."""
        command = [
            sys.executable, "-m", "qml_mp", "-A", _APP, "--url", self.url,
            "start", "-w", str(self.workers), "--server-name", "demo", "--shutdown-timeout", "5s",
        ]  # fmt: skip
        (self._folder / "qml-mp.toml").touch()  # so that no settings file of the user's is found from there
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=None if self._verbose else log,
                cwd=self._folder, env=environment_without_settings(), start_new_session=True,
            )  # fmt: skip

    def check(self) -> None:
        """Raise `QmlError` with the last lines of its log when it has gone before its time."""
        if self._process is not None and self._process.poll() is not None:
            raise self._gone(self._process.returncode)

    def stop(self) -> None:
        """Stop it, once the last job has ended. Raises `QmlError` unless it leaves well."""
        self.end()
        if self._process is not None and self._process.returncode != 0:
            raise self._gone(self._process.returncode)

    def end(self) -> None:
        """End it whatever it does; harmless when it has left."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_WAIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def _log(self) -> Path:
        return self._folder / "server.log"

    def _gone(self, code: int) -> QmlError:
        lines = self._log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
        return QmlError(f"The supervisor ended with exit code {code}. Its last lines: {' | '.join(lines)}")


@contextmanager
def demo_server(*, workers: int, verbose: bool) -> Iterator[DemoServer]:
    """A server, not yet started. Afterwards it is gone and so is its folder, whatever happens."""
    with tempfile.TemporaryDirectory(prefix="qml-mp-demo-") as folder:
        server = DemoServer(Path(folder), workers=workers, verbose=verbose)
        try:
            yield server
        finally:
            server.end()
