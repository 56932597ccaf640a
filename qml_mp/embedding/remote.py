"""Host: a supervisor in another process, as its host holds it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

from qml_mp import errors
from qml_mp.child.prologue import unblock_signals
from qml_mp.child.source import NamedProgram, PickledProgram
from qml_mp.errors import QmlError, StorageError, WorkerBootError
from qml_mp.settings import ServerConfig
from qml_mp.sources import load_web_token
from qml_mp.supervisor.wait import TimeSeen, wait_for
from qml_mp.supervisor.workers.fork import Child, fork_child, pidfd_of, reap
from qml_mp.supervisor.workers.program import command_of

READY = "ready"
_LOOK_EVERY_S = 0.02
_CLOSED = -1
_PARTING_S = 5.0  # beyond the server's own deadline, before it is killed


class RemoteSupervisor:
    """A running supervisor: its process and the host's two pipe ends."""

    def __init__(self, child: Child, *, host_fd: int, status_fd: int) -> None:
        self.child = child
        self._owner_pid = os.getpid()
        self._host_fd = host_fd
        self._status_fd = status_fd
        os.set_blocking(status_fd, False)
        self._status = ""
        self._was_told_to_stop = False
        """Written by `stop`, read by `wait_until_ready`."""
        self._turns = threading.RLock()
        """Held by the thread that uses the pipe ends, or looks for the end of the process and closes them;
        not while it waits. A signal handler may call `stop` in the middle, in the thread that has it."""
        self.exit_code: int | None = None

    def is_running(self) -> bool:
        """Whether the process lives. Collects it when it does not."""
        with self._turn():
            if self.exit_code is None:
                process = reap(self.child)
                if process is not None:
                    self._let_go(
                        process.exit_code if process.exit_code is not None else -(process.signal or 0)
                    )
            return self.exit_code is None

    def wait_until_ready(self, timeout_s: float) -> None:
        """Return when the server is ready, or has ended because of a `stop` meanwhile; raise the error it
        reports, or `WorkerBootError`."""
        waited = TimeSeen(time.monotonic())
        while waited.look(time.monotonic()) < timeout_s + _PARTING_S:
            with self._turn():
                self._read_status()
            if self._status.startswith(READY):
                return
            if not self.is_running():
                if self._was_told_to_stop and not self._status:
                    return
                raise _reported(self._status)
            # Another thread may close it meanwhile; the wait is only a pause.
            status_fd = self._status_fd
            if status_fd != _CLOSED:
                wait_for([status_fd], until=time.monotonic() + _LOOK_EVERY_S)
        self.stop(timeout_s=0)
        raise WorkerBootError(f"The server was not ready after {timeout_s:.0f} s and was stopped.")

    def stop(self, *, timeout_s: float) -> int:
        """Let the server stop gracefully within `timeout_s`, then kill it; its exit code.

        In a copy that the host has forked, nothing is done: the server is the host's own affair.
        """
        if os.getpid() != self._owner_pid:
            return 0
        self._was_told_to_stop = True
        with self._turn(), contextlib.suppress(OSError), _without_sigpipe():
            if self.exit_code is None:
                os.write(self._host_fd, b"s")
        deadline = time.monotonic() + timeout_s + _PARTING_S
        while self.is_running():
            if time.monotonic() >= deadline:
                self.child.signal(signal.SIGKILL)  # its guardian and the next server do the rest
            # Where a pidfd tells, looks are rare: a host that collects any child should come first.
            pause_s = 1.0 if self.child.fds else _LOOK_EVERY_S
            wait_for(self.child.fds, until=time.monotonic() + pause_s)
        return self.exit_code or 0

    def _turn(self) -> contextlib.AbstractContextManager[object]:
        """In a copy that the host has forked, there may be nobody who would give the lock back."""
        return self._turns if os.getpid() == self._owner_pid else contextlib.nullcontext()

    def _read_status(self) -> None:
        with contextlib.suppress(OSError):  # it says nothing yet, or the pipe is closed
            said = os.read(self._status_fd, 65536).decode(errors="replace")
            self._status += said

    def _let_go(self, exit_code: int) -> None:
        """Once or twice: a signal handler may do the same in the middle of it."""
        self._read_status()
        self.exit_code = exit_code
        fds = {self._host_fd, self._status_fd} - {_CLOSED}
        self._host_fd = self._status_fd = _CLOSED
        for fd in fds:
            os.close(fd)


def fork_supervisor(run: Callable[[list[int], Callable[[], None]], int]) -> RemoteSupervisor:
    """Fork a process that runs `run(host_fds, on_ready)`; the host must have a single thread."""
    host_pid = os.getpid()
    host_reading, host_writing = os.pipe()
    status_reading, status_writing = os.pipe()

    def main() -> int:
        unblock_signals()
        host_fds = [host_reading, *watch_host(host_pid)]
        return report(status_writing, lambda on_ready: run(host_fds, on_ready))

    child = fork_child(main, ours={host_writing, status_reading}, theirs={host_reading, status_writing})
    return RemoteSupervisor(child, host_fd=host_writing, status_fd=status_reading)


def spawn_supervisor(
    config: ServerConfig, url: str, source: NamedProgram | PickledProgram, *, log_level: int | None = None
) -> RemoteSupervisor:
    """Start a fresh interpreter that supervises; safe whatever threads the host has. It has the host's own
    options, path and qml-mp; raises `ConfigurationError` where there is no interpreter to start.

    Its standard input carries the arguments (the URL may hold a password, so it is no argument), then the
    program if it goes by value, and stays open as the pipe whose end says that the host is gone. It logs what
    the host does, unless a level is given.
    """
    program = source.data if isinstance(source, PickledProgram) else b""
    arguments = {
        "config": config.plain(),
        "url": url,
        "app": source.spec if isinstance(source, NamedProgram) else None,
        "program_bytes": len(program),
        "host_pid": os.getpid(),
        "web_token": load_web_token(),
        "log_level": logging.getLogger("qml_mp").getEffectiveLevel() if log_level is None else log_level,
    }
    said = json.dumps(arguments).encode() + b"\n" + program
    status_reading, status_writing = os.pipe()
    try:
        import subprocess

        process = subprocess.Popen(
            command_of("qml_mp.embedding.interpreter", str(status_writing)),
            stdin=subprocess.PIPE,
            pass_fds=(status_writing,),
            process_group=0,  # the host's Ctrl-C is the host's affair
        )
    except BaseException:
        os.close(status_reading)
        raise
    finally:
        os.close(status_writing)
    assert process.stdin is not None
    host_fd = os.dup(process.stdin.fileno())
    # It may have died; its status tells.
    with contextlib.suppress(BrokenPipeError), _without_sigpipe(), process.stdin as stream:
        stream.write(said)
    process.returncode = 0  # collected by its Child, not by the Popen object
    child = Child(pid=process.pid, pidfd=pidfd_of(process.pid), started_ticks=0)
    return RemoteSupervisor(child, host_fd=host_fd, status_fd=status_reading)


def watch_host(host_pid: int) -> list[int]:
    """Descriptors that are readable once the host is dead, its pipe aside (in the supervisor's process).

    The pipe alone would not do: a child that the host forks by itself inherits its writing end.
    """
    pidfd = pidfd_of(host_pid)
    if os.getppid() != host_pid:  # it died before; asked after, so that the pidfd is the host's
        os.kill(os.getpid(), signal.SIGTERM)
    return [] if pidfd is None else [pidfd]


def report(status_fd: int, run: Callable[[Callable[[], None]], int]) -> int:
    """Run the supervisor and tell the host: ready, or the error (in the supervisor's process)."""
    try:
        return run(lambda: _tell(status_fd, READY))
    except QmlError as error:
        _tell(status_fd, json.dumps({"type": type(error).__name__, "message": str(error)}))
        return 3 if isinstance(error, WorkerBootError) else 1


@contextlib.contextmanager
def _without_sigpipe() -> Iterator[None]:
    """A write of this thread to a pipe that nobody reads raises `BrokenPipeError`, and no more: a host may
    have set SIGPIPE so that it ends its process, and its handlers are not touched. On macOS, which sends it
    to the process and not to the thread, that holds where no other thread takes it."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPIPE])
    try:
        yield
    finally:
        if signal.SIGPIPE not in blocked:
            if signal.SIGPIPE in signal.sigpending():
                _take(signal.SIGPIPE)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPIPE])


def _take(number: signal.Signals) -> None:
    """What waits for this thread, or for any: another one may be sooner."""
    if hasattr(signal, "sigtimedwait"):
        signal.sigtimedwait([number], 0)
    else:
        signal.sigwait([number])


def _tell(status_fd: int, text: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(status_fd, text.encode())


def _reported(status: str) -> QmlError:
    try:
        told = json.loads(status)
        kind = getattr(errors, told["type"])
    except (ValueError, AttributeError, KeyError):
        return StorageError("The supervisor's process died before it was ready; its output says why.")
    error: QmlError = kind(told["message"])
    return error
