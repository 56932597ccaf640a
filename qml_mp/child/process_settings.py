"""Worker: whose the process is, and what else is set for all of it, as it was when it was ready.

The system's: user, groups, root directory, processors, niceness, soft resource limits. Python's: locale,
limit of recursion, default timeout of sockets, what `logging` lets through and where to, and whether garbage
is collected.
"""

from __future__ import annotations

import gc
import locale
import logging
import os
import resource
import socket
import sys
from collections.abc import Callable
from operator import attrgetter

from qml_mp.child.own_loggers import ABOVE_ALL, our_loggers
from qml_mp.child.prologue import send_sigterm_when_parent_dies
from qml_mp.host import identity_of_file

_LIMITS = tuple(sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}))
# Real, effective and saved ones; where the system does not tell the saved ones, the others.
_user_ids: Callable[[], tuple[int, ...]] = getattr(os, "getresuid", lambda: (os.getuid(), os.geteuid()))
_group_ids: Callable[[], tuple[int, ...]] = getattr(os, "getresgid", lambda: (os.getgid(), os.getegid()))
_set_user_ids: Callable[..., None] = getattr(os, "setresuid", os.setreuid)
_is_disabled = attrgetter("disabled")
_set_group_ids: Callable[..., None] = getattr(os, "setresgid", os.setregid)


class ProcessSettings:
    """Looked at after jobs. What cannot be put back is told by `put_back` alone."""

    def __init__(self) -> None:
        self._users, self._groups = _user_ids(), _group_ids()
        self._other_groups = os.getgroups()
        self._root = identity_of_file("/")
        self._processors = _processors()
        self._niceness = _niceness()
        self._limits = {limit: resource.getrlimit(limit) for limit in _LIMITS}
        self._locale = locale.setlocale(locale.LC_ALL)
        self._recursion_limit = sys.getrecursionlimit()
        self._timeout_s = socket.getdefaulttimeout()
        self._logging = _Logging()
        self._collects = gc.isenabled()

    def look_unchanged(self) -> bool:
        """Whether nothing is changed of what takes no system call to tell, or is worth one after every job:
        the ids, with which the next job would write files that are another's, or not be let in."""
        return (
            self.has_its_ids()
            and locale.setlocale(locale.LC_ALL) == self._locale
            and sys.getrecursionlimit() == self._recursion_limit
            and socket.getdefaulttimeout() == self._timeout_s
            and self._logging.is_unchanged()
            and gc.isenabled() is self._collects
        )

    def has_its_ids(self) -> bool:
        """Whether the process is still the user's that it was, and the group's."""
        return _user_ids() == self._users and _group_ids() == self._groups

    def has_its_root(self) -> bool:
        """Whether paths begin at the directory at which they did."""
        return identity_of_file("/") == self._root

    def are_unchanged(self) -> bool:
        """The same of the rest."""
        return (
            os.getgroups() == self._other_groups
            and self.has_its_root()
            and _processors() == self._processors
            and _niceness() == self._niceness
            and all(resource.getrlimit(limit) == bounds for limit, bounds in self._limits.items())
        )

    def put_back(self) -> None:
        """Have all as it was. Raises `OSError` where the process may not."""
        if not self.has_its_ids() or os.getgroups() != self._other_groups:
            self._put_back_ids()
        for limit, bounds in self._limits.items():
            if resource.getrlimit(limit) != bounds:
                resource.setrlimit(limit, bounds)
        if self._processors is not None and _processors() != self._processors and sys.platform == "linux":
            os.sched_setaffinity(0, self._processors)
            self._processors = _processors()  # somebody may have taken some from the worker, not the job
        if _niceness() != self._niceness:
            try:
                os.setpriority(os.PRIO_PROCESS, 0, self._niceness)
            except OSError as error:
                raise PermissionError(f"its niceness was {self._niceness}: {error}") from error
        if locale.setlocale(locale.LC_ALL) != self._locale:
            locale.setlocale(locale.LC_ALL, self._locale)
        sys.setrecursionlimit(self._recursion_limit)
        socket.setdefaulttimeout(self._timeout_s)
        self._logging.put_back()
        (gc.enable if self._collects else gc.disable)()
        if not self.has_its_root():
            raise PermissionError("the root directory is another for good")

    def _put_back_ids(self) -> None:
        """The user first, who may be the one that may change the rest."""
        try:
            _set_user_ids(*self._users)
            if os.getgroups() != self._other_groups:
                os.setgroups(self._other_groups)
            _set_group_ids(*self._groups)
        except OSError as error:
            raise PermissionError(f"the process is another user's or group's for good: {error}") from error
        send_sigterm_when_parent_dies()  # the kernel forgets it with a change of the ids


class _Logging:
    """What `dictConfig` and `fileConfig` take away: handlers and level of the root logger and, unless told
    otherwise, all loggers there are, ours too: nothing would be told of the next jobs. What they add is left,
    since an app may do so once, in its first job."""

    def __init__(self) -> None:
        self._disabled_level = logging.root.manager.disable
        self._level, self._handlers = logging.root.level, list(logging.root.handlers)
        ours = our_loggers()
        self._disabled = [logger for logger in ours if logger.disabled]  # by the app, for good
        self._watched = [each for each in ours if not each.disabled] if ABOVE_ALL.disabled else [ABOVE_ALL]

    def is_unchanged(self) -> bool:
        root = logging.root
        return (
            not any(map(_is_disabled, self._watched))
            and root.manager.disable == self._disabled_level
            and root.level <= self._level
            and (root.handlers == self._handlers or all(each in root.handlers for each in self._handlers))
        )

    def put_back(self) -> None:
        logging.disable(self._disabled_level)
        root = logging.root
        root.setLevel(min(root.level, self._level))
        added = [each for each in root.handlers if each not in self._handlers]
        root.handlers[:] = [*self._handlers, *added]
        for logger in our_loggers():  # those that have come since, too
            logger.disabled = logger in self._disabled


def _processors() -> set[int] | None:
    """None: they cannot be chosen here."""
    return os.sched_getaffinity(0) if sys.platform == "linux" else None


def _niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, 0)
