"""Anywhere: descriptors 0, 1 and 2 stay what programs take them for.

The lowest free number is what the kernel gives to the next file. Where one of the three is closed, the
next connection to storage would get it, and whatever prints then would be sent to the database as a part
of the protocol. So they are seen to be open before a descriptor of ours is made.
"""

from __future__ import annotations

import contextlib
import os

STREAMS = (0, 1, 2)


def occupy_standard_streams() -> None:
    """Put the null device in the place of each of the three that is closed; harmless when none is."""
    for fd in STREAMS:
        if not is_open(fd):
            with contextlib.suppress(OSError):  # not one is left: then there is none for a connection either
                null = os.open(os.devnull, os.O_RDWR)
                if null == fd:
                    os.set_inheritable(fd, True)  # as the three are
                else:
                    os.dup2(null, fd)
                    os.close(null)


def is_open(fd: int) -> bool:
    """Whether this process has the descriptor."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
