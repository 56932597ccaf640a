"""Both ends of the stack file: where faulthandler writes a worker's Python stack without the GIL.

One unnamed file per worker, opened by the supervisor before the fork. The worker hands it to
faulthandler, which writes when the process dies of a fatal signal and whenever `STACK_SIGNAL`
comes; the supervisor reads it. Writes go to the end, so that it can be emptied at any time.
"""

from __future__ import annotations

import faulthandler
import fcntl
import os
import re
import signal
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from qml_mp.core.failure_kinds import OURS, is_foreign
from qml_mp.core.job import ClaimKey

STACK_SIGNAL: int = signal.SIGWINCH
"""Makes a worker write its stack, also in C code that holds the GIL.

One that does nothing where nobody has asked for it: a job that resets it keeps us from a stack, and is
never killed by the question. No terminal sends it either, because workers are in groups of their own.
"""
_MOST_BYTES = 32 * 1024
_MOST_DUMPED_BYTES = 1024 * 1024
"""What one that was asked for takes at most, of a hundred threads with a hundred frames each."""
_AT_DEATH = re.compile(rb"^Fatal Python error: ", re.MULTILINE)
_FRAME = re.compile(r'  File "(.*)", line (\S+) in (.*)')
_WORKER = os.path.join(OURS, "child") + os.sep


def open_stack_file() -> int:
    """A new unnamed file."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("qml-mp-stack", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_APPEND)
    return fd


def write_stacks_to(fd: int) -> None:
    """Have this process's stacks written there (worker: at first, and when a job may have undone it)."""
    faulthandler.disable()  # or enabling would leave the handlers as they are
    faulthandler.enable(file=fd, all_threads=True)
    faulthandler.unregister(STACK_SIGNAL)
    faulthandler.register(STACK_SIGNAL, file=fd, all_threads=True, chain=False)


def empty(fd: int) -> None:
    """Forget what was written (supervisor)."""
    os.ftruncate(fd, 0)


def read_stack(fd: int) -> str | None:
    """What was written since it was emptied (the beginning of it, when it is long), as `as_traceback` has it;
    None: nothing."""
    return _told(os.pread(fd, _MOST_BYTES, 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class LastStack:
    """What a dead worker has told of its stack."""

    at_death: str | None = None
    """What it wrote when it died of a fatal signal."""
    asked: str | None = None
    """What it wrote when it was asked, which may have been long before."""
    key: ClaimKey | None = None
    """The claim in hand when it was asked; None: none was."""

    def of(self, key: ClaimKey) -> str | None:
        """What is told of its death with this claim in hand: nothing that is of another one."""
        return self.at_death or (self.asked if self.key == key else None)


def read_last_stack(fd: int, *, asked_in: ClaimKey | None) -> LastStack:
    """What a dead worker has left. `asked_in` is the claim that it had in hand when it was asked last."""
    written = os.pread(fd, _MOST_DUMPED_BYTES + _MOST_BYTES, 0)
    fatal = next(_AT_DEATH.finditer(written), None)
    asked = written if fatal is None else written[: fatal.start()]
    at_death = b"" if fatal is None else written[fatal.start() :]
    return LastStack(at_death=_told(at_death), asked=_told(asked), key=asked_in)


def _told(written: bytes) -> str | None:
    return as_traceback(written[:_MOST_BYTES].decode(errors="replace")) or None


def as_traceback(dump: str) -> str:
    """What faulthandler wrote, in the form of a traceback: innermost frame last, and without those that are
    the same in every worker, outside of the job's function."""
    told: list[str] = []
    frames: list[_Frame] = []
    for line in [*dump.partition("\nExtension modules:")[0].splitlines(), ""]:
        frame = _FRAME.fullmatch(line)
        if frame is not None:
            frames.insert(0, _Frame(frame[1], f'  File "{frame[1]}", line {frame[2]}, in {frame[3]}'))
        elif frames and line.strip() == "...":  # there are more, further outside
            frames.insert(0, _Frame("", line))
        else:
            told += [frame.text for frame in _of_the_job(frames)]
            told.append(line.replace("most recent call first", "most recent call last"))
            frames = []
    return "\n".join(told).strip()


class _Frame(NamedTuple):
    file: str
    text: str


def _of_the_job(frames: Sequence[_Frame]) -> Sequence[_Frame]:
    """From its function on; where no job runs, what the worker does; of another thread all of it."""
    begins = next((at for at, frame in enumerate(frames) if frame.file.startswith(_WORKER)), None)
    if begins is None:
        return frames
    others = [at for at, frame in enumerate(frames) if at > begins and not frame.file.startswith(OURS)]
    users = [at for at in others if not is_foreign(frames[at].file, has_source=False)]
    return frames[next(iter(users or others), begins) :]
