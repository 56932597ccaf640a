"""Client: a folder beside an SQLite file, on the same disk, with another SQLite file in it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from urllib.parse import quote

from qml_mp.errors import StorageUnreachable

_PREFIX = "qml-mp-bench-"
_FILE = "bench.db"


class SqliteScratch:
    """`Scratch` as a folder that is locked (flock) by the process that made it.

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
            shutil.rmtree(self.place)
        except FileNotFoundError:
            pass  # gone already
        except OSError as error:
            raise StorageUnreachable(
                f"The folder {self.place} cannot be removed: {error.strerror}. Remove it by hand."
            ) from error
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _locked_folder(beside: str) -> tuple[str, int | None]:
    """A new folder for this user alone, and the descriptor that holds its lock."""
    while True:
        try:
            path = tempfile.mkdtemp(prefix=_PREFIX, dir=beside)  # mode 0700
        except OSError as error:
            raise StorageUnreachable(
                f"No folder can be made in {beside}: {error.strerror}. One is needed on the same "
                "disk as the SQLite file, which is not touched. See that the place exists and that this user "
                "may write to it, or name another file."
            ) from error
        fd = _lock(path)
        if fd is not None:
            return path, fd
        # Somebody has taken it for an orphan before the lock was ours.


def _remove_orphans(beside: str) -> None:
    """Remove this user's folders there that no process holds."""
    for path in list(_folders(beside)):
        fd = _lock(path)
        if fd is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(fd)


def _folders(beside: str) -> Iterator[str]:
    with contextlib.suppress(OSError), os.scandir(beside) as entries:
        for entry in entries:
            if entry.name.startswith(_PREFIX) and entry.stat(follow_symlinks=False).st_uid == os.getuid():
                yield entry.path


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
