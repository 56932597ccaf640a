"""Supervisor: what it hears of a worker by, and tells it something by, besides the slot."""

from __future__ import annotations

import os
from dataclasses import dataclass

from qml_mp.ipc.ended import EndedOutcomes
from qml_mp.ipc.pipe import open_pipe
from qml_mp.ipc.stack import open_stack_file
from qml_mp.ipc.tickets import TicketPipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Channels:
    """Those of one worker, as its supervisor holds them."""

    pipe_fd: int
    """The writing end of the pipe to it."""
    stack_fd: int
    tickets: TicketPipe
    """Of the claims that it holds and has not begun."""
    ended: EndedOutcomes
    """Of its jobs that have ended, and are not written to storage."""

    @property
    def fds(self) -> frozenset[int]:
        """All descriptors of it."""
        return self.tickets.fds | {self.pipe_fd, self.stack_fd}

    def close(self) -> None:
        """All of them, in this process."""
        self.tickets.close()
        os.close(self.pipe_fd)
        os.close(self.stack_fd)


def open_channels(ended: EndedOutcomes) -> tuple[int, Channels]:
    """The worker's end of a new pipe, and what the supervisor keeps. Nothing stays open after an error."""
    reading, writing = open_pipe()
    opened = [reading, writing]
    try:
        tickets = TicketPipe()
        opened += tickets.fds
        return reading, Channels(pipe_fd=writing, stack_fd=open_stack_file(), tickets=tickets, ended=ended)
    except BaseException:
        for fd in opened:
            os.close(fd)
        raise
