"""Every process: the folders of `memory://` storages, and those that killed processes have left behind.

A process that is killed removes nothing. So each folder says whose it is, and whoever makes the next one,
or starts a server, removes those of this user whose owner is proved dead.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from qml_mp import host
from qml_mp.core.server_info import ProcessIdentity

MEMORY_URL = "memory://"
_SHARED_MEMORY = "/dev/shm"
_PREFIX = "qml-mp-memory-"
_OWNER = "owner.json"
_OLD_AFTER_S = 3600.0
"""Between a folder's making and its owner's file there are two steps of one process."""


def make_memory_folder() -> str:
    """A folder in shared memory for this user alone, removed when this process exits."""
    remove_orphaned_folders()
    folder = tempfile.mkdtemp(prefix=_PREFIX, dir=_place())  # mode 0700
    Path(folder, _OWNER).write_text(json.dumps(asdict(host.identity())))
    atexit.register(remove_if_ours, folder, os.getpid())
    return folder


def url_for_others(url: str | None) -> str | None:
    """The URL as another process is told it: `memory://` for a file in such a folder, which goes with its
    process."""
    in_folder = f"sqlite:///{_place()}/{_PREFIX}"
    return MEMORY_URL if url is not None and url.startswith(in_folder) else url


def remove_orphaned_folders() -> None:
    """Remove the folders of this user whose owner is dead. Those of whom nothing is known stay, unless they
    are empty and older than any that is just being made."""
    with contextlib.suppress(OSError), os.scandir(_place()) as entries:
        for entry in entries:
            if not entry.name.startswith(_PREFIX) or not _is_own_folder(entry):
                continue
            if _is_orphaned(entry.path):
                shutil.rmtree(entry.path, ignore_errors=True)
            elif _is_old(entry):
                with contextlib.suppress(OSError):
                    os.rmdir(entry.path)  # the system refuses it of one that holds anything


def _place() -> str:
    is_there = os.path.isdir(_SHARED_MEMORY) and os.access(_SHARED_MEMORY, os.W_OK)
    return _SHARED_MEMORY if is_there else tempfile.gettempdir()


def _is_own_folder(entry: os.DirEntry[str]) -> bool:
    """Not a link, and not made by another user for us to follow."""
    try:
        is_own = entry.stat(follow_symlinks=False).st_uid == os.getuid()
    except OSError:
        return False  # removed by now
    return is_own and entry.is_dir(follow_symlinks=False)


def _is_old(entry: os.DirEntry[str]) -> bool:
    """Whether nothing has come into it or gone for an hour. One that is empty then was left by a process that
    was killed before it could say whose it is."""
    try:
        changed_at_s = entry.stat(follow_symlinks=False).st_mtime
    except OSError:
        return False
    return time.time() - changed_at_s > _OLD_AFTER_S


def _is_orphaned(folder: str) -> bool:
    try:
        owner = ProcessIdentity(**json.loads(Path(folder, _OWNER).read_text()))
    except (OSError, ValueError, TypeError):
        return False  # just being made, or not by us
    return host.is_alive(owner) is False


def remove_if_ours(folder: str, maker_pid: int) -> None:
    """Remove the folder; harmless when it is gone."""
    if os.getpid() == maker_pid:  # a forked child inherits this callback and must leave the file alone
        shutil.rmtree(folder, ignore_errors=True)
