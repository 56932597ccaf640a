"""Client: single keys read from the terminal."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from qml_mp.cli.top.choice import Key

_SEQUENCES = {
    b"\x1b[A": Key.UP, b"\x1b[B": Key.DOWN, b"\x1bOA": Key.UP, b"\x1bOB": Key.DOWN, b"\t": Key.TAB,
    b"k": Key.UP, b"j": Key.DOWN, b"\x03": Key.LEAVE,
}  # fmt: skip
_LAST_BYTES = range(0x40, 0x7F)
"""Of a sequence."""
_MOST_BYTES = 64


class Keyboard:
    """Keys as they are pressed; see `keyboard`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._keys: deque[str] = deque()

    def next(self, timeout_s: float) -> str | None:
        """The next key, a `Key` or a letter; None when there was none in time. `Key.LEAVE` when the terminal
        is gone."""
        if not self._keys and select.select([self._fd], [], [], max(0.0, timeout_s))[0]:
            data = os.read(self._fd, _MOST_BYTES)
            self._keys.extend(keys_of(data) if data else [Key.LEAVE])
        return self._keys.popleft() if self._keys else None


def keys_of(data: bytes) -> Iterator[str]:
    """The keys that a terminal says were pressed; sequences without a meaning here are left out."""
    while data:
        sequence = next((each for each in _SEQUENCES if data.startswith(each)), None)
        if sequence is not None:
            yield _SEQUENCES[sequence]
            data = data[len(sequence) :]
        elif data.startswith(b"\x1b"):  # up to the byte that ends it
            ends = (place for place, byte in enumerate(data[2:], 3) if byte in _LAST_BYTES)
            data = data[next(ends, len(data)) :]
        else:
            yield chr(data[0])
            data = data[1:]


@contextmanager
def keyboard() -> Iterator[Keyboard]:
    """In the block the terminal gives each key at once and shows none."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        yield Keyboard(fd)
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
