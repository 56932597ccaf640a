"""Both ends of the pipe: fixed-size messages from a supervisor to one worker, written without ever waiting.

A message about a job names the claim it means, so that one that arrives late never hits the next job.
The supervisor alone holds the writing end; the end of file on the reading end therefore says
that the supervisor is gone. Descriptors are plain numbers: nothing here closes one by itself.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import termios
from array import array
from dataclasses import dataclass
from enum import IntEnum

from qml_mp.core.job import KEY_BYTES, ClaimKey
from qml_mp.processing.cancel import CancelReason
from qml_mp.standard_streams import occupy_standard_streams

_FORMAT = struct.Struct(f"<BB{KEY_BYTES}s6x")
MESSAGE_BYTES = _FORMAT.size
_READ_BYTES = MESSAGE_BYTES * 128
_LONGEST_WAIT_S = 86_400.0  # poll counts milliseconds in 32 bits
_REASONS = tuple(CancelReason)
_NO_KEY = bytes(KEY_BYTES)


class Kind(IntEnum):
    """What the supervisor wants."""

    WAKE = 1
    """There may be work: look now."""
    LEAVE = 2
    """Finish the job in hand, claim no other, exit."""
    CANCEL = 3
    """Set `ctx.cancel` of the named claim, with its reason."""
    INTERRUPT = 4
    """Raise inside the named claim's job. A SIGTERM follows, so that a blocking call returns."""
    PAUSE = 5
    """Claim nothing until WAKE."""
    DOUBT = 6
    """You hold a claim that you do not seem to know of: look before you claim another."""
    PROBE = 7
    """Nothing: that it is read shows that you do not hang."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message; `key` and `reason` are set for CANCEL and INTERRUPT."""

    kind: Kind
    key: ClaimKey | None = None
    reason: CancelReason | None = None

    def encode(self) -> bytes:
        """`MESSAGE_BYTES` bytes, few enough that the kernel writes them to a pipe whole or not at all."""
        reason = 0 if self.reason is None else 1 + _REASONS.index(self.reason)
        return _FORMAT.pack(self.kind, reason, packed_key(self.key))


def holds_messages(fd: int) -> bool:
    """Whether something lies in the pipe of which this is an end; False where the system does not tell."""
    size = array("i", [0])
    try:
        fcntl.ioctl(fd, termios.FIONREAD, size)
    except OSError:
        return False
    return size[0] > 0


def decode(data: bytes) -> list[Message]:
    """The messages in the bytes read from the pipe (always a whole number of them)."""
    messages = []
    for kind, reason, key in _FORMAT.iter_unpack(data):
        why = _REASONS[reason - 1] if reason else None
        messages.append(Message(kind=Kind(kind), key=unpacked_key(key), reason=why))
    return messages


def packed_key(key: ClaimKey | None) -> bytes:
    """The key as `KEY_BYTES` bytes, zeros when there is none; `unpacked_key` is the way back."""
    return _NO_KEY if key is None else key.packed


def unpacked_key(packed: bytes) -> ClaimKey | None:
    """None: there is none."""
    return None if packed == _NO_KEY else ClaimKey.unpacked(packed)


def open_pipe() -> tuple[int, int]:
    """A pipe (reading end, writing end), neither of which blocks or survives an exec."""
    occupy_standard_streams()
    return os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) if hasattr(os, "pipe2") else _portable_pipe()


def send(fd: int, message: Message) -> bool:
    """Write the message; False when the pipe is full (the reader has plenty to read) or closed."""
    try:
        return os.write(fd, message.encode()) == MESSAGE_BYTES
    except (BlockingIOError, BrokenPipeError):
        return False


class PipeReader:
    """The worker's end. `eof` is True once the supervisor is gone, and stays so."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.eof = False

    def read(self) -> list[Message]:
        """What has arrived, without waiting. One system call when nothing has."""
        try:
            data = os.read(self.fd, _READ_BYTES)
        except BlockingIOError:
            return []
        if not data:
            self.eof = True
        return decode(data)

    def wait(self, timeout_s: float) -> None:
        """Return when something can be read, the supervisor is gone, or the time is over; after a day at
        most. Several threads, and signal handlers, may wait at a time."""
        if not self.eof:
            poll = select.poll()  # one of each wait: it serves one at a time
            poll.register(self.fd, select.POLLIN)
            poll.poll(min(max(0, timeout_s), _LONGEST_WAIT_S) * 1000)


def _portable_pipe() -> tuple[int, int]:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    return reading, writing
