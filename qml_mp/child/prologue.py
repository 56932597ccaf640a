"""Both sides of a fork: the first lines of the child, run with every signal blocked, and what is done at
the forks of jobs.

What a child inherits and must not keep: pipe ends of other workers (they would hide the supervisor's
death), the parent's handlers and wake-up descriptor (on 3.11 a SIGTERM would run them), its
terminal input and its place in the terminal's process group.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _thread
import contextlib
import ctypes
import gc
import os
import random
import signal
import stat
import sys
import threading
from collections.abc import Callable, Collection
from functools import cache, partial

_PR_SET_PDEATHSIG = 1
# As the interpreter has them: what `signal` makes enums of, for all signals in each process, is memory that
# a worker would not share any more.
_ALL_SIGNALS = tuple(map(int, signal.valid_signals()))
_RESET = tuple(
    number
    for number in _ALL_SIGNALS
    if number not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ)
)
_set_handler: Callable[[int, int | Callable[[int, object], None]], object] = _signal.signal
_set_mask: Callable[[int, Collection[int]], set[int]] = _signal.pthread_sigmask


def prologue(*, own_fds: Collection[int], keep_fds: Collection[int], die_with_parent: int | None) -> None:
    """Cut what ties this process to its parent. The descriptors in `keep_fds` stay open.

    `own_fds` are the supervisor's: they are closed. Pipes and sockets of a host are replaced by the null
    device: an object that still holds such a number cannot write into a file that is given the number
    later. Files of a host (a log) stay open.
    `die_with_parent` is the parent's pid: this process gets a SIGTERM when that process dies.
    """
    gc.freeze()  # what was inherited: a collection writes to all that it looks at, and would copy it (4 MB)
    os.setpgid(0, 0)
    signal.set_wakeup_fd(-1)
    for number in _RESET:
        with contextlib.suppress(OSError, ValueError):  # the C library keeps a few for itself
            _set_handler(number, _signal.SIG_DFL)
    _set_handler(signal.SIGINT, pass_over_sigint)  # the supervisor handles Ctrl-C
    _set_handler(signal.SIGPIPE, _signal.SIG_IGN)  # as every Python has it, unless a host has changed that
    _set_handler(signal.SIGTTOU, _signal.SIG_IGN)  # a job may print to the terminal from its own group
    if die_with_parent is not None:
        send_sigterm_when_parent_dies()
        if os.getppid() != die_with_parent:  # it died before the line above
            os.kill(os.getpid(), signal.SIGTERM)
    _drop_descriptors(own_fds, keep_fds)
    _reseed()


def pass_over_sigint(_signal: int, _frame: object) -> None:
    """What a worker does at SIGINT: nothing. A handler, as an ignored signal stays ignored in all programs
    that jobs start, and these could not be interrupted."""


def open_channels() -> frozenset[str]:
    """The descriptors of this process that a child finds replaced by the null device, each as "socket 7"."""
    return frozenset(f"{_kind(fd)} {fd}" for fd in _open_fds() if fd > 2 and _is_channel(fd))


def block_signals() -> set[int]:
    """All of them; which were blocked before, for `unblock_signals`."""
    return _set_mask(_signal.SIG_BLOCK, _ALL_SIGNALS)


def unblock_signals(blocked: Collection[int] = ()) -> None:
    """All but those. The last line of the prologue, when the worker's own handlers are in place."""
    _set_mask(_signal.SIG_SETMASK, blocked)


def send_sigterm_when_parent_dies() -> None:
    """Linux. The signal wakes a blocking call; its handler then sees the end of the pipe. A second call is
    harmless."""
    if sys.platform == "linux":
        prctl()(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


@cache
def prctl() -> Callable[[int, int, int, int, int], int]:
    """Looked up once, by the parent, so that its children need not. Linux."""
    function: Callable[[int, int, int, int, int], int] = ctypes.CDLL(None).prctl
    return function


def _reseed() -> None:
    """The generators that all copies of the parent would share the state of, each drawing the same."""
    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        with contextlib.suppress(Exception):  # the app has put another generator there, which takes no seed
            numpy_random.seed()


def _drop_descriptors(own_fds: Collection[int], keep_fds: Collection[int]) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    for fd in _open_fds():
        if fd <= 2 or fd == null or fd in keep_fds:
            continue
        if fd in own_fds:
            os.close(fd)
        elif _is_channel(fd):
            try:
                os.dup2(null, fd, inheritable=False)
            except OSError:  # above the limit, which was lowered later: no new file gets that number
                os.close(fd)
    os.close(null)


def _open_fds() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/dev/fd")]
    except OSError:
        return list(range(3, os.sysconf("SC_OPEN_MAX")))


def _is_channel(fd: int) -> bool:
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return False  # closed by now: the listing's own descriptor
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISCHR(mode) or stat.S_ISBLK(mode))


def _kind(fd: int) -> str:
    mode = os.fstat(fd).st_mode
    return "socket" if stat.S_ISSOCK(mode) else "pipe" if stat.S_ISFIFO(mode) else "descriptor"


class _Masks(threading.local):
    """Which signals were blocked before each fork that is under way. Of each thread, since any thread of a
    job may fork; several, since what is called at a fork may fork."""

    def __init__(self) -> None:
        self.of_forks: list[set[int]] = []


def cut_off_descendants(*, fds: Collection[int], detach: Callable[[], None]) -> None:
    """Call `detach` in each process that this one forks from now on, and put the null device in the
    place of `fds` there. Once in a worker: what is called at forks cannot be taken back.

    A copy that reads the pipe would take messages that are not meant for it, and one that kept the
    worker's SIGTERM handler could not be terminated by the job that made it, as `multiprocessing` does.
    """
    worker_pid = os.getpid()
    masks = _Masks()

    def before() -> None:
        # A SIGTERM for the new process waits until the worker's handler is gone from it.
        masks.of_forks.append(signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]))

    def after_in_parent() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.of_forks.pop())

    def after_in_child() -> None:
        if os.getppid() == worker_pid:  # in a descendant's own child the numbers may be other files
            detach()
            null = os.open(os.devnull, os.O_RDWR)
            for fd in fds:
                os.dup2(null, fd, inheritable=False)
            os.close(null)
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.of_forks.pop())

    os.register_at_fork(before=before, after_in_parent=after_in_parent, after_in_child=after_in_child)


class ForksUnderWay:
    """Those of this process, on whatever thread, and whether a SIGTERM is to be handled when they are over.

    Python passes over what is raised in a function that it calls at a fork. So an error that a handler
    raises to end a job has to wait until the fork is over.
    """

    def __init__(self) -> None:
        self._forks: list[None] = []
        """One for each. Written by what is called at forks."""
        self._has_to_handle_again = False
        """Written by the handler, read at the end of a fork."""
        self._main_thread = threading.main_thread().ident or 0

    def watch(self) -> None:
        """Know of each fork from now on. Once in a worker, and after all else that is called at forks: the
        last to register is called first before a fork, and last after it."""
        # No function in Python, which a signal would interrupt before its first line.
        begin: Callable[[], None] = partial(self._forks.append, None)
        os.register_at_fork(before=begin, after_in_parent=self._end)

    def forget(self) -> None:
        """Before each job: a handler of the one before may have raised at the end of a fork."""
        del self._forks[:]
        self._has_to_handle_again = False

    def put_off_sigterm(self) -> bool:
        """Whether a fork is under way: then SIGTERM's handler is called once more when it is over."""
        if self._forks:
            self._has_to_handle_again = True
        return bool(self._forks)

    def _end(self) -> None:
        if _thread.get_ident() == self._main_thread:
            handle_again = map(_thread.interrupt_main, (_signal.SIGTERM,))
        else:  # the main thread may be in a call, which only a signal ends
            handle_again = map(_signal.pthread_kill, (self._main_thread,), (_signal.SIGTERM,))
        # Python handles signals after a call. There is none from here on that it would look after, so what
        # comes now, or is simulated here, is handled where the program goes on after its fork.
        del self._forks[-1:]
        if self._has_to_handle_again and not self._forks:
            self._has_to_handle_again = False
            _ = [*handle_again]
