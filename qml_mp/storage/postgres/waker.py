"""Supervisor and client: wake-ups from PostgreSQL's NOTIFY, through a connection of their own."""

from __future__ import annotations

import os
import select
from collections.abc import Collection

import psycopg
from psycopg import pq

from qml_mp.errors import StorageUnreachable
from qml_mp.storage.postgres.errors import translate
from qml_mp.storage.postgres.link import Link
from qml_mp.storage.postgres.queries.common import Told
from qml_mp.storage.postgres.target import Target
from qml_mp.storage.waiting import WakeUp


class Listener:
    """What is told by NOTIFY. A connection of its own, because libpq hands out a notification on the
    connection that listens, and the storage's own one is closed and opened as the work wants it."""

    def __init__(self, target: Target, link: Link, *, channel: str, what: str) -> None:
        """It owns the link from now on. `what` says what it listens for, in errors."""
        self._target = target
        self._what = what
        self._pid = os.getpid()
        self._link: Link | None = link
        try:
            link.execute(f'LISTEN "{channel}"'.encode())
        except psycopg.Error as error:
            self.close()
            raise translate(error, what=what, target=target) from error

    def fileno(self) -> int:
        """The connection's socket; readable when something was committed, or when it is lost."""
        return self._open().fileno()

    def payloads(self) -> list[str]:
        """What has been told since. Raises `StorageUnavailable` when the connection is lost."""
        link = self._open()
        readable = select.poll()
        readable.register(link.fileno(), select.POLLIN)
        try:
            while readable.poll(0):  # to the end: a goodbye and the end behind it come in two reads
                link.pgconn.consume_input()
        except psycopg.Error as error:
            raise translate(error, what=self._what, target=self._target) from error
        told = []
        while (notification := link.pgconn.notifies()) is not None:
            told.append(notification.extra.decode(errors="replace"))
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
            f"The connection to {self._target.display_url} for {self._what} is lost; polling must do until "
            "another is open."
        )


class NotifyWaker(Listener):
    """`Waker`."""

    def __init__(self, target: Target, link: Link) -> None:
        super().__init__(target, link, channel=target.channel, what="listening for new work")

    def drain(self, *, soon: bool = True) -> WakeUp | None:  # noqa: ARG002
        told: WakeUp | None = None
        for payload in self.payloads():
            new = _wake_up(payload)
            told = new if told is None else WakeUp(jobs=told.jobs + new.jobs, more=told.more or new.more)
        return told


class EndedListener(Listener):
    """`EndedWaker`."""

    def __init__(self, target: Target, link: Link) -> None:
        super().__init__(target, link, channel=target.ended_channel, what="waiting for jobs")

    def drain(self) -> Collection[str] | None:
        told = self.payloads()
        # An empty one stands for more ids than a notification can hold.
        return None if "" in told else {job_id for payload in told for job_id in payload.split(",")}


def _wake_up(payload: str) -> WakeUp:
    """What was told; other programs may tell anything, and another version something else."""
    match payload:
        case Told.ONE_JOB:
            return WakeUp(jobs=1, more=False)
        case Told.NO_JOB:
            return WakeUp(jobs=0)
        case _:
            return WakeUp()
