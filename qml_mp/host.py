"""Anywhere: who a process is on this machine, so that a pid used again is never mistaken for it."""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import sys
import threading
import time
from functools import cache

from qml_mp.core.server_info import ProcessIdentity

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_NAMESPACE = "/proc/self/ns/pid"
_ENDING_S = 1.0
_LOOK_EVERY_S = 0.001
_BETWEEN = ":"  # the boot and the pid namespace
_USER_FIELD, _SYSTEM_FIELD = 11, 12
_STATE_FIELD, _START_FIELD, _RSS_FIELD = 0, 19, 21  # in /proc/<pid>/stat, counted after the command's ")"


def identity(pid: int | None = None) -> ProcessIdentity:
    """The identity of a process of this machine (default: this one).

    Where the system does not tell start times (not Linux, or of this process), `started_ticks` is 0.
    Raises `ProcessLookupError` when there is no such process.
    """
    pid = os.getpid() if pid is None else pid
    fields = _stat_fields(pid)
    started_ticks = 0 if fields is None else int(fields[_START_FIELD])
    return ProcessIdentity(host=_host(), pid=pid, started_ticks=started_ticks)


FileIdentity = tuple[int, int]
"""What tells a file from any other that has or had its name, or its descriptor."""


def identity_of_file(file: str | int) -> FileIdentity | None:
    """That of the file of this name, or of the open file of this descriptor; None where there is none."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def current_directory() -> str | None:
    """Its path; None: it has none any more, since it was removed. Deploys do that under servers that run."""
    try:
        return os.getcwd()
    except OSError:
        return None


def shown_directory() -> str:
    """The current directory, for people."""
    return current_directory() or "a directory that was removed"


def user_at_host() -> str:
    """Who runs this process, for people: "anna@laptop"."""
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container may have no name for it
        user = f"uid {os.geteuid()}"
    return f"{user}@{socket.gethostname()}"


def is_alive(process: ProcessIdentity, *, is_local: bool = False) -> bool | None:
    """True: it runs. False: it is proved dead. None: it cannot be told from here (another host,
    another pid namespace, a process that /proc hides from this user, or a system that does not tell
    start times, or which kernel it runs), or it runs and works on another storage. None is no verdict: judge
    by heartbeat or by age.

    `is_local`: the caller knows that the process is of this kernel and pid namespace. Where the system does
    not tell which those are, there is only a name, which others may have too: that no such process is seen
    proves the death of a local one alone.
    """
    kernel = _kernel()
    if process.host != (kernel or _name()):
        return None
    dead = False if is_local or kernel is not None else None
    try:
        fields = _stat_fields(process.pid)
    except ProcessLookupError:
        return dead
    if fields is None or not process.started_ticks:
        return None
    runs = int(fields[_START_FIELD]) == process.started_ticks and fields[_STATE_FIELD] not in "ZX"
    if not runs:
        return dead
    return True if process.works_here else None


def is_of_another_boot(process: ProcessIdentity) -> bool:
    """Whether its host is another running kernel: another machine, or this one before it was booted."""
    boot, separator, _ = process.host.partition(_BETWEEN)
    own, own_separator, _ = _host().partition(_BETWEEN)
    return bool(separator and own_separator) and boot != own


def rss_bytes(pid: int) -> int | None:
    """Resident memory of a process of this machine; None when it is gone or not told."""
    try:
        fields = _stat_fields(pid)
    except ProcessLookupError:
        return None
    return None if fields is None else int(fields[_RSS_FIELD]) * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float | None:
    """What all threads of a process of this machine have had of the processors; None when it is gone or not
    told."""
    try:
        fields = _stat_fields(pid)
    except ProcessLookupError:
        return None
    ticks = 0 if fields is None else int(fields[_USER_FIELD]) + int(fields[_SYSTEM_FIELD])
    return None if fields is None else ticks / os.sysconf("SC_CLK_TCK")


def handles_signal(pid: int, number: int) -> bool | None:
    """Whether a process has a handler for the signal, and does not ignore it; None where it is not told."""
    try:
        lines = _text_of(f"/proc/{pid}/status").splitlines()
    except OSError:
        return None
    caught = next((int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:")), None)
    return None if caught is None else bool(caught >> (number - 1) & 1)


def ran_s(pid: int) -> float | None:
    """What the main thread of a process has had of the processors; other threads are not counted. None when
    there is no such process, or the system does not tell."""
    try:
        return int(_text_of(f"/proc/{pid}/schedstat").split()[0]) / 1e9
    except (OSError, ValueError):
        return None


def is_ready(pid: int) -> bool | None:
    """Whether the process runs, or would if others did not; None as with `ran_s`."""
    try:
        fields = _stat_fields(pid)
    except ProcessLookupError:
        return None
    return None if fields is None else fields[_STATE_FIELD] == "R"


def is_stopped(pid: int) -> bool:
    """Whether somebody has stopped the process (SIGSTOP, a debugger); False where that is not told."""
    try:
        fields = _stat_fields(pid)
    except ProcessLookupError:
        return False
    return fields is not None and fields[_STATE_FIELD] in ("T", "t")


def shares_its_group(pid: int) -> bool | None:
    """Whether other processes are in the process group that `pid` leads; None where it is not told."""
    if not os.path.exists("/proc/self/stat"):
        return None
    others = (int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != pid)
    return any(_group_of(other) == pid for other in others)


def core_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_count() -> int | None:
    """Native threads of this process; None where the system does not tell."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return None


def native_thread_names() -> list[str]:
    """What the system calls the threads of this process besides its first one, those of Python too. Empty
    where it does not tell."""
    names: list[str] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir("/proc/self/task"):
            if int(thread) != os.getpid():
                with contextlib.suppress(OSError):  # it has ended
                    names.append(_text_of(f"/proc/self/task/{thread}/comm").strip())
    return sorted(names)


def other_python_threads() -> list[str]:
    """The names of the threads that run Python code, besides the calling one. A lock that one of them holds
    stays locked for ever in a copy of the process. Threads that a native library runs for itself are not
    listed: they hold no locks of Python."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    here = threading.get_ident()
    return [names.get(ident, f"thread {ident}") for ident in sys._current_frames() if ident != here]


def lasting_thread_count() -> int | None:
    """`thread_count`, when those have gone that Python has joined: the system lists an ended thread until it
    comes to take it away, on a busy machine some time later. Waits for that, for at most a second. Where the
    system does not tell: the threads that Python knows of, if there are several, as these exist for sure."""
    until = time.monotonic() + _ENDING_S
    while True:
        is_last_look = time.monotonic() >= until
        count = thread_count()
        if count is None:
            known = threading.active_count()
            return known if known > 1 else None
        may_be_ending = count > 1 and threading.active_count() == 1
        if not may_be_ending or is_last_look:
            return count
        time.sleep(_LOOK_EVERY_S)


def _host() -> str:
    return _kernel() or _name()


def _kernel() -> str | None:
    """This running kernel and pid namespace; after a reboot or in another container it differs. None where
    the system does not tell (not Linux, systemd's ProcSubset=pid, no /proc)."""
    try:
        boot_id = _boot_id()
        return f"{boot_id}{_BETWEEN}{os.readlink(_NAMESPACE)}" if boot_id else None
    except OSError:
        return None


def _name() -> str:
    """What there is in its place. Other machines and containers may be called the same."""
    namespace = identity_of_file(_NAMESPACE)
    return socket.gethostname() if namespace is None else f"{socket.gethostname()}/{namespace[1]}"


@cache
def _boot_id() -> str:
    return _text_of(_BOOT_ID).strip()


def oom_kills() -> int | None:
    """How often the kernel's OOM killer has struck on this machine; None where it is not told."""
    try:
        lines = _text_of("/proc/vmstat").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def _stat_fields(pid: int) -> list[str] | None:
    """What the kernel says of a process; None when it says nothing although there is one: /proc may
    hide the processes of other users (hidepid, systemd's ProtectProc), or not be there at all.
    Raises `ProcessLookupError` when there is none."""
    try:
        text = _text_of(f"/proc/{pid}/stat")
    except OSError:
        with contextlib.suppress(PermissionError):
            os.kill(pid, 0)  # the kernel's own word, whatever /proc shows
        return None
    return text[text.rindex(")") + 2 :].split()


def _text_of(path: str) -> str:
    """Of a file in /proc. By system calls: a `Path` has a new worker copy 0.1 MB of what it shares."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = b""
        while part := os.read(fd, 65536):
            data += part
        return data.decode(errors="replace")
    finally:
        os.close(fd)
