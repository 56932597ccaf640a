"""Client: a folder beside an SQLite file, on the same disk, with another SQLite file in it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from qml_mp.errors import StorageUnreachable

_PREFIX = "qml-mp-bench-"
_FILE = "bench.db"
_MARK = "made-by-qml-mp-bench"
_MARK_TEXT = "`qml-mp bench` has made this folder, and removes it.\n"
"""The name alone proves nothing: it may be a folder of the user's."""
_GONE = "-gone"
"""How the name ends of one that is being removed."""


class SqliteScratch:
    """`Scratch` as a folder that is marked as ours, and locked (flock) by the process that made it.

    Raises `StorageUnreachable` when no folder can be made beside the file at `path`, which need not exist.
    """

    caveats = ()

    def __init__(self, path: str) -> None:
        beside = os.path.dirname(os.path.realpath(path))  # the disk of the file itself, not of a link to it
        _remove_orphans(beside)
        self.place, self._fd = _locked_folder(beside)

    @property
    def url(self) -> str:
        return f"sqlite:///{quote(os.path.join(self.place, _FILE))}"

    def remove(self) -> None:
        try:
            _remove(self.place)
        except FileNotFoundError:
            pass  # gone already
        except OSError as error:
            raise StorageUnreachable(
                f"{error.filename or self.place} cannot be removed: {error.strerror}. Remove it by hand."
            ) from error
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _locked_folder(beside: str) -> tuple[str, int | None]:
    """A new folder for this user alone, and the descriptor that holds its lock."""
    try:
        path = tempfile.mkdtemp(prefix=_PREFIX, dir=beside)  # mode 0700
        fd = _lock(path)
        if fd is not None:  # nobody else may remove it while it cannot be locked
            Path(path, _MARK).write_text(_MARK_TEXT)
    except OSError as error:
        raise StorageUnreachable(
            f"No folder can be made in {beside}: {error.strerror}. One is needed on the same "
            "disk as the SQLite file, which is not touched. See that the place exists and that this user "
            "may write to it, or name another file."
        ) from error
    return path, fd


def _remove_orphans(beside: str) -> None:
    """Remove the folders there that such a process has made for this user, and that none holds."""
    for path in list(_folders(beside)):
        fd = _lock(path)
        if fd is not None:
            with contextlib.suppress(OSError):
                _remove(path)
            os.close(fd)


def _remove(path: str) -> None:
    """Under another name first, so that a process which ends just now makes no new file in it; and the mark
    last, so that the next run goes on where this one is killed."""
    gone = path if path.endswith(_GONE) else f"{path}{_GONE}"
    os.rename(path, gone)
    for name in sorted(os.listdir(gone), key=_MARK.__eq__):
        os.unlink(os.path.join(gone, name))
    os.rmdir(gone)


def _folders(beside: str) -> Iterator[str]:
    with contextlib.suppress(OSError), os.scandir(beside) as entries:
        for entry in entries:
            is_own = (
                entry.name.startswith(_PREFIX) and entry.stat(follow_symlinks=False).st_uid == os.getuid()
            )
            if is_own and entry.is_dir(follow_symlinks=False) and _is_marked(entry.path):
                yield entry.path


def _is_marked(folder: str) -> bool:
    try:
        return Path(folder, _MARK).read_text() == _MARK_TEXT
    except (OSError, ValueError):
        return False


def _lock(path: str) -> int | None:
    """A descriptor that holds the folder's lock; None when another process does, or the folder is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.stat(path)  # whoever has removed it held the lock until then
        return fd
    except OSError:
        os.close(fd)
        return None
