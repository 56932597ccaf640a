"""Every process: where an SQLite file lies, and whether all who use it find its log beside it.

SQLite looks for the log under the name of the file. A file that has two names in two folders, of which one
program uses one and one the other, has two logs; each program writes over what the other has written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qml_mp.errors import StorageError

_MOUNTS = Path("/proc/self/mountinfo")
_SHARED_KINDS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "fuse.sshfs", "ceph", "fuse.glusterfs"}
)
_ESCAPES = ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\"))  # the backslash last


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """What a path lies on."""

    point: str
    kind: str
    """The type of its file system, as Linux names it."""


def check_has_its_folder(path: str, *, mounts: Path = _MOUNTS) -> None:
    """Raise `StorageError` for a file that was mounted without its folder, as by `docker -v
    ./jobs.db:/app/jobs.db`: its log is in the container, and goes with it. Nothing where it is not told.
    """
    mount = mount_of(path, mounts=mounts)
    if mount is None or mount.point != os.path.realpath(path):
        return
    log = f"{mount.point}-wal"
    left = f" Before this container is removed, copy {log} to beside that file." if _has_content(log) else ""
    raise StorageError(
        f"The SQLite file {path} is mounted by itself, without its folder. Its -wal and -shm files, which "
        "hold what was committed last, would stay in this container: lost when it is removed, and unseen by "
        "others that use the file. Mount the folder that the file is in (docker -v ./data:/app/data)."
        f"{left}"
    )


def caveats_of(path: str, *, mounts: Path = _MOUNTS) -> Iterator[str]:
    """What can be well and can lose jobs, one text each; nothing of a file that is not there."""
    try:
        names = os.stat(path).st_nlink
    except OSError:
        return
    if names > 1:
        yield (
            f"the file has {names} names (hard links): programs that use it by different ones destroy each "
            "other's jobs, and what `cp -l` has made is no copy of it"
        )
    mount = mount_of(path, mounts=mounts)
    if mount is not None and mount.kind in _SHARED_KINDS:
        yield (
            f"the file is on {mount.kind}, which several machines can share: only programs of one of them "
            "may use it, and only if its locks work; a local disk is safe"
        )


def mount_of(path: str, *, mounts: Path) -> Mount | None:
    """The mount that a file is on, links followed; None where it is not told (not Linux, no /proc)."""
    real = os.path.realpath(path)
    try:
        lines = os.fsdecode(mounts.read_bytes()).split("\n")
    except OSError:
        return None
    found = None
    # "36 35 98:0 /there /here rw,noatime master:1 - ext3 /dev/root rw"
    for before, _, after in (line.partition(" - ") for line in lines):
        fields = before.split(" ")
        if len(fields) > 4 and _is_on(real, point := _unescaped(fields[4])):
            found = Mount(point=point, kind=after.partition(" ")[0])  # a later one lies over those before it
    return found


def device_of(path: str) -> tuple[int, int] | None:
    """Major and minor number of the file system that a file is on, links followed, as locks are shown with
    them; None where it is not told. On some (btrfs, overlay) they are not those of the file itself.
    """
    try:
        # Of the folder, with which the file is mounted; the file itself is opened by SQLite alone.
        folder = os.open(os.path.dirname(os.path.realpath(path)), os.O_PATH | os.O_CLOEXEC)
    except (OSError, AttributeError):  # the latter where there is no O_PATH
        return None
    try:
        shown = Path(f"/proc/self/fdinfo/{folder}").read_text()
        lines = _MOUNTS.read_bytes().split(b"\n")
    except OSError:
        return None
    finally:
        os.close(folder)
    mount = next((line.split()[1] for line in shown.splitlines() if line.startswith("mnt_id:")), "")
    for identity, _, device, *_ in (line.split(b" ", 3) for line in lines if line.count(b" ") > 2):
        if identity == mount.encode():
            major, _, minor = device.partition(b":")
            return int(major), int(minor)
    return None


def _has_content(path: str) -> bool:
    try:
        return os.path.getsize(path) > 0
    except OSError:
        return False


def _is_on(real: str, point: str) -> bool:
    return real == point or real.startswith(point.rstrip("/") + "/")


def _unescaped(text: str) -> str:
    for escape, character in _ESCAPES if "\\" in text else ():
        text = text.replace(escape, character)
    return text
