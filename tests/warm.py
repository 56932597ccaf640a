"""Tests: commands as copies of a Python that has already imported what they need.

The suite runs more than a thousand commands, and to come up costs each of them some 0.2 s of a processor,
most of what the suite takes. So a test run keeps one process (this module run as a program) that imports all
of the project once and then forks: the copy gets the arguments, environment, folder and standard streams of
the command, and runs the module as `python -m` does. It is a process of its own in everything that commands
do; what the start of an interpreter does is left to those that are started otherwise (see `launch`).

    python -m tests.warm SOCKET PADDING     serve until standard input ends
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import setproctitle

SOCKET = "QML_MP_TEST_WARM"
"""Where the warm process listens; without it every command is started as ever."""
_ROOT = Path(__file__).resolve().parent.parent
_LENGTH = struct.Struct("!I")
_STATUS = struct.Struct("!ii")  # pid, exit code
_READ_AT_START = ("LANG", "LC_", "PYTHON")  # beginnings of variables that an interpreter reads when it starts
_OF_EXTRAS = tuple(f"qml_mp.{name}" for name in ("cli.top", "metrics", "otel", "pytest_plugin", "web"))
"""Whoever asks for an extra imports it. In all copies it would cost each fork its pages, and a command that
does not ask would have it all the same."""
_ROOM_FOR_TITLES = "-" * 1000  # a process can show no title longer than its first arguments and environment
_TAKEN_OVER = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")


class Process(Protocol):
    """What tests do with a command that runs, as `subprocess.Popen` has it."""

    returncode: int | None

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int) -> None: ...
    def kill(self) -> None: ...


def launch(
    command: Sequence[str | bytes],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stdin: int,
    stdout: int,
    stderr: int,
    fresh: bool = False,
    new_session: bool = False,
) -> Process:
    """Start a command. It is a warm copy if it is `python -m MODULE …` of this interpreter and nothing about
    it concerns the start of an interpreter; otherwise, and with `fresh`, a program of its own."""
    if fresh or not _is_for_the_warm(command, env) or any(map(os.isatty, (stdin, stdout, stderr))):
        return subprocess.Popen(
            command, cwd=cwd, env=dict(env), stdin=stdin, stdout=stdout, stderr=stderr,
            start_new_session=new_session,
        )  # fmt: skip
    request = {
        "arguments": [os.fsdecode(each) for each in command[2:]], "cwd": str(cwd), "env": dict(env),
        "new_session": new_session,
    }  # fmt: skip
    return _WarmProcess(json.dumps(request).encode(), (stdin, stdout, stderr))


def _is_for_the_warm(command: Sequence[str | bytes], env: Mapping[str, str]) -> bool:
    def of_the_start(variables: Mapping[str, str]) -> dict[str, str]:
        return {
            name: value
            for name, value in variables.items()
            if name.startswith(_READ_AT_START) and name not in _TAKEN_OVER
        }

    return (
        SOCKET in os.environ
        and [*command[:2]] == [sys.executable, "-m"]
        and of_the_start(env) == of_the_start(os.environ)
    )


@contextmanager
def warm_python() -> Iterator[None]:
    """Have such a process within the block, where the system has what it takes."""
    if not hasattr(os, "pidfd_open"):
        yield
        return
    environment = {name: value for name, value in os.environ.items() if not name.startswith("QML_MP_")}
    environment.pop("PYTHONPATH", None)
    with tempfile.TemporaryDirectory(prefix="qml-mp-warm-", dir="/tmp") as folder:
        path = f"{folder}/socket"
        with subprocess.Popen(
            [sys.executable, "-m", "tests.warm", path, _ROOM_FOR_TITLES],
            cwd=_ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        ) as process:  # fmt: skip
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            os.environ[SOCKET] = path
            try:
                yield
            finally:
                del os.environ[SOCKET]
                process.stdin.close()


class _WarmProcess:
    """A copy that runs, seen from the test: the connection by which it was asked for tells its end."""

    def __init__(self, request: bytes, streams: Sequence[int]) -> None:
        self.returncode: int | None = None
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(os.environ[SOCKET])
        socket.send_fds(self._connection, [_LENGTH.pack(len(request))], streams)
        self._connection.sendall(request)
        self.pid, _ = _STATUS.unpack(_read_exactly(self._connection, _STATUS.size))

    def poll(self) -> int | None:
        """The exit code, or minus the signal; None while it runs."""
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        """The same, waited for; `subprocess.TimeoutExpired` when it does not come in time."""
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return code

    def send_signal(self, sig: int) -> None:
        """Nothing, when it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _look(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._connection], [], [], timeout)[0]:
            _, self.returncode = _STATUS.unpack(_read_exactly(self._connection, _STATUS.size))
            self._connection.close()
        return self.returncode

    def __del__(self) -> None:
        self._connection.close()


def _read_exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise ConnectionError("The warm process is gone.")
        data += more
    return data


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    arguments: list[str]
    cwd: str
    env: dict[str, str]
    new_session: bool

    def run(self) -> int:
        """In the copy: be what was asked for; the exit code."""
        if self.new_session:
            os.setsid()
        os.chdir(self.cwd)
        os.environ.clear()
        os.environ.update(self.env)
        added = self.env.get("PYTHONPATH")
        sys.path[:] = [self.cwd, *(added.split(os.pathsep) if added else ()), *sys.path[1:]]
        sys.dont_write_bytecode = bool(self.env.get("PYTHONDONTWRITEBYTECODE"))
        importlib.invalidate_caches()
        sys.argv[:] = self.arguments
        try:
            runpy.run_module(self.arguments[0], run_name="__main__", alter_sys=True)
        except SystemExit as left:
            return left.code if isinstance(left.code, int) else int(left.code is not None)
        except BaseException:
            traceback.print_exc()
            return 1
        return 0


class _Service:
    """The warm process."""

    def __init__(self, path: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(64)
        self._running: dict[int, tuple[int, socket.socket]] = {}
        """By the pidfd of a copy: its pid, and the connection that waits for its end."""
        self._poll = select.poll()
        for fd in (0, self._listener.fileno()):
            self._poll.register(fd, select.POLLIN)

    def serve(self) -> _Request | None:
        """Returns in each copy what it is to do, and None in the warm process itself, at its end."""
        while True:
            for fd, _ in self._poll.poll():
                if fd == 0:
                    return None
                if fd in self._running:
                    self._tell_the_end(fd)
                elif (request := self._copy()) is not None:
                    return request

    def _copy(self) -> _Request | None:
        connection, _ = self._listener.accept()
        head, streams, _, _ = socket.recv_fds(connection, _LENGTH.size, 3)
        request = _Request(**json.loads(_read_exactly(connection, *_LENGTH.unpack(head))))
        pid = os.fork()
        if pid == 0:
            self._leave(connection, streams)
            return request
        for fd in streams:
            os.close(fd)
        pidfd = os.pidfd_open(pid)
        self._running[pidfd] = pid, connection
        self._poll.register(pidfd, select.POLLIN)
        connection.sendall(_STATUS.pack(pid, 0))
        return None

    def _leave(self, connection: socket.socket, streams: Sequence[int]) -> None:
        """In the copy: hold nothing of the warm process, and the command's own streams."""
        for pidfd, (_, other) in self._running.items():
            os.close(pidfd)
            other.close()
        connection.close()
        self._listener.close()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, fd in enumerate(streams):
            os.dup2(fd, number)
            os.close(fd)

    def _tell_the_end(self, pidfd: int) -> None:
        pid, connection = self._running.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with suppress(OSError):  # nobody may wait for it any more
            connection.sendall(_STATUS.pack(pid, code))
        connection.close()


def _import_everything() -> None:
    import qml_mp

    for module in pkgutil.walk_packages(qml_mp.__path__, "qml_mp."):
        if not module.name.endswith("__main__") and not module.name.startswith(_OF_EXTRAS):
            importlib.import_module(module.name)
    importlib.import_module("croniter")  # which the project imports at first use
    setproctitle.getproctitle()  # finds where titles are written, which nobody can once `environ` has changed


if __name__ == "__main__":
    _import_everything()
    gc.collect()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, whose end is the end of this too
    service = _Service(sys.argv[1])
    print("ready", flush=True)
    if (command := service.serve()) is not None:
        status = command.run()
        atexit._run_exitfuncs()
        for stream in filter(None, (sys.stdout, sys.stderr)):
            with suppress(OSError, ValueError):  # who listened is gone, or it was closed
                stream.flush()
        os._exit(status)  # to free all that was imported would take longer than most commands
