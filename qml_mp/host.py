"""Anywhere: who a process is on this machine, so that a pid used again is never mistaken for it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from qml_mp.core.server_info import ProcessIdentity

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_STATE_FIELD, _START_FIELD, _RSS_FIELD = 0, 19, 21  # in /proc/<pid>/stat, counted after the command's ")"


def identity(pid: int | None = None) -> ProcessIdentity:
    """The identity of a process of this machine (default: this one).

    Where the system does not tell start times (not Linux), `started_ticks` is 0.
    Raises `ProcessLookupError` when there is no such process.
    """
    pid = os.getpid() if pid is None else pid
    return ProcessIdentity(host=_host(), pid=pid, started_ticks=_started_ticks(pid))


def is_alive(process: ProcessIdentity) -> bool | None:
    """True: it runs. False: it is proved dead. None: it cannot be told from here (another host,
    another pid namespace, or a system that does not tell start times)."""
    if process.host != _host():
        return None
    try:
        if _has_proc():
            fields = _stat_fields(process.pid)
            return int(fields[_START_FIELD]) == process.started_ticks and fields[_STATE_FIELD] not in "ZX"
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return None


def rss_bytes(pid: int) -> int | None:
    """Resident memory of a process of this machine; None when it is gone or not told."""
    try:
        return int(_stat_fields(pid)[_RSS_FIELD]) * os.sysconf("SC_PAGE_SIZE") if _has_proc() else None
    except ProcessLookupError:
        return None


def shares_its_group(pid: int) -> bool | None:
    """Whether other processes are in the process group that `pid` leads; None where it is not told."""
    if not _has_proc():
        return None
    others = (int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != pid)
    return any(_group_of(other) == pid for other in others)


def thread_count() -> int | None:
    """Native threads of this process; None where the system does not tell."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return None


def _host() -> str:
    """This running kernel and pid namespace; after a reboot or in another container it differs."""
    try:
        return f"{_BOOT_ID.read_text().strip()}:{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _has_proc() -> bool:
    return os.path.exists("/proc/self/stat")


def _started_ticks(pid: int) -> int:
    return int(_stat_fields(pid)[_START_FIELD]) if _has_proc() else 0


def oom_kills() -> int | None:
    """How often the kernel's OOM killer has struck on this machine; None where it is not told."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def _stat_fields(pid: int) -> list[str]:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        raise ProcessLookupError(f"no process {pid}") from None
    return text[text.rindex(")") + 2 :].split()
