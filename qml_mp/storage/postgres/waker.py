"""Supervisor: wake-ups from PostgreSQL's NOTIFY, through a connection of their own."""

from __future__ import annotations

import os
import select

import psycopg
from psycopg import pq

from qml_mp.errors import StorageUnreachable
from qml_mp.storage.postgres.errors import translate
from qml_mp.storage.postgres.link import Link
from qml_mp.storage.postgres.queries.common import Told
from qml_mp.storage.postgres.target import Target
from qml_mp.storage.waiting import WakeUp

_WHAT = "listening for new work"


class NotifyWaker:
    """`Waker` by NOTIFY. A connection of its own, because libpq hands out a notification on the
    connection that listens, and the storage's own one is closed and opened as the work wants it."""

    def __init__(self, target: Target, link: Link) -> None:
        """It owns the link from now on."""
        self._target = target
        self._pid = os.getpid()
        self._link: Link | None = link
        try:
            link.execute(f"LISTEN {target.quoted_channel}".encode())
        except psycopg.Error as error:
            self.close()
            raise translate(error, what=_WHAT, target=target) from error

    def fileno(self) -> int:
        """The connection's socket; readable when something was committed, or when it is lost."""
        return self._open().fileno()

    def drain(self, *, soon: bool = True) -> WakeUp | None:  # noqa: ARG002
        link = self._open()
        readable = select.poll()
        readable.register(link.fileno(), select.POLLIN)
        try:
            while readable.poll(0):  # to the end: a goodbye and the end behind it come in two reads
                link.pgconn.consume_input()
        except psycopg.Error as error:
            raise translate(error, what=_WHAT, target=self._target) from error
        told: WakeUp | None = None
        while (notification := link.pgconn.notifies()) is not None:
            new = _wake_up(notification.extra.decode(errors="replace"))
            told = new if told is None else WakeUp(jobs=told.jobs + new.jobs, more=told.more or new.more)
        if link.pgconn.status != pq.ConnStatus.OK:
            raise self._lost()
        return told

    def close(self) -> None:
        link, self._link = self._link, None
        if link is None:
            return
        if self._pid == os.getpid():
            link.close()
        else:
            self._link = link  # it is the parent's: kept and never touched

    def _open(self) -> Link:
        if self._link is None or self._pid != os.getpid():
            raise self._lost()
        return self._link

    def _lost(self) -> StorageUnreachable:
        return StorageUnreachable(
            f"The connection to {self._target.display_url} for {_WHAT} is lost; polling must do until "
            "another is open."
        )


def _wake_up(payload: str) -> WakeUp:
    """What was told; other programs may tell anything, and another version something else."""
    match payload:
        case Told.ONE_JOB:
            return WakeUp(jobs=1, more=False)
        case Told.NO_JOB:
            return WakeUp(jobs=0)
        case _:
            return WakeUp()
