"""Worker: the current directory, as it was when it was ready."""

from __future__ import annotations

import os

from qml_mp import host
from qml_mp.host import identity_of_file


class CurrentFolder:
    """Known by a descriptor too, since its path may lead elsewhere by now, or nowhere: a deploy removes the
    folder of an earlier release, and what runs in it goes on."""

    def __init__(self) -> None:
        self._path = host.current_directory()
        try:
            self._fd: int | None = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
        except OSError:  # this user may be in it, but not read it
            self._fd = None
        self._file = None if self._fd is None else identity_of_file(self._fd)

    @property
    def fds(self) -> frozenset[int]:
        """Its descriptor. Nobody but a job closes it."""
        return frozenset() if self._fd is None else frozenset({self._fd})

    def is_current(self) -> bool:
        """Whether this process is still in it."""
        try:
            if os.getcwd() == self._path:
                return True
        except OSError:
            pass  # it was removed, whichever it is
        return self._file is not None and identity_of_file(".") == self._file

    def go_back(self) -> None:
        """Raises `OSError` where that cannot be."""
        if self._fd is not None:
            os.fchdir(self._fd)
        elif self._path is not None:
            os.chdir(self._path)
