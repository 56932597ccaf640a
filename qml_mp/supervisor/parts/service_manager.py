"""Supervisor: tells systemd, or another manager that speaks its protocol (sd_notify), what the server does.

The watchdog's word is sent from the supervisor's own loop, so it stays out when that hangs.
"""

from __future__ import annotations

import errno
import logging
import socket

from qml_mp.core.answers import ReloadState
from qml_mp.sources import NotifySocket
from qml_mp.supervisor.part import Part
from qml_mp.supervisor.parts.reload import Reload
from qml_mp.supervisor.run import Run
from qml_mp.units import n_workers

logger = logging.getLogger(__name__)

_TRY_AGAIN_S = 0.1
_GONE_TRY_AGAIN_S = 1.0  # at most: a short watchdog would run out meanwhile
_MOST_CHARACTERS = 600
"""Of the status: a message of more than 4 KiB is ignored, and a character takes up to six bytes."""
_FULL = (errno.EAGAIN, errno.ENOBUFS, errno.EMFILE, errno.ENFILE)


class ServiceManager(Part):
    """READY once all workers are for the first time, RELOADING and READY again, STOPPING, STATUS, WATCHDOG.
    Without a socket nothing is told. A manager that is gone is looked for again, and then told all anew."""

    def __init__(self, run: Run, address: NotifySocket | None, *, reload: Reload) -> None:
        self._run = run
        self._address = address
        self._reload = reload
        self._has_been_ready = False
        self._was_ready = self._is_reloading = self._is_stopping = False
        """What was told. Of a manager that could not be reached none but a reload is: it may be a new one."""
        self._told_reload = reload.began_at
        self._is_gone = False
        self._status = ""
        self._try_again_at = float("inf")
        watchdog = None if address is None else address.watchdog
        self._every_s = float("inf") if watchdog is None else watchdog.total_seconds() / 2
        self._alive_at = run.clock.monotonic() + self._every_s

    def next_at(self) -> float:
        if self._address is None:
            return float("inf")
        # What found no room is tried again then, and not at once because the watchdog's word is due.
        return self._alive_at if self._try_again_at == float("inf") else self._try_again_at

    def turn(self) -> None:
        if self._address is None or (self._is_gone and self._run.clock.monotonic() < self._try_again_at):
            return
        self._try_again_at = float("inf")
        self._tell_phase()
        status = self._in_words()
        if status != self._status and self._send(f"STATUS={status}"):
            self._status = status
        now = self._run.clock.monotonic()
        if now >= self._alive_at and self._send("WATCHDOG=1"):
            self._alive_at = now + self._every_s

    def _tell_phase(self) -> None:
        pool = self._run.pool
        if self._run.stop.has_begun:
            self._is_stopping = self._is_stopping or self._send("STOPPING=1")
        elif not self._was_ready:
            self._has_been_ready = self._has_been_ready or (
                pool.is_whole and all(worker.is_ready for worker in pool)
            )
            self._was_ready = self._has_been_ready and self._send("READY=1")
        else:
            self._tell_reload()

    def _tell_reload(self) -> None:
        """Also one that has ended before anybody looked, or while there was no room for a word: the newer
        kind of reload (Type=notify-reload) waits for both, and for one that began after its signal."""
        began_at = self._reload.began_at
        if began_at != self._told_reload:
            usec = int(self._run.clock.monotonic() * 1_000_000)
            if not self._send(f"RELOADING=1\nMONOTONIC_USEC={usec}"):
                return
            self._told_reload, self._is_reloading = began_at, True
        if self._is_reloading and not self._reload.is_under_way and self._send("READY=1"):
            self._is_reloading = False

    def _in_words(self) -> str:
        says, size = self._run.registration.says, self._run.pool.size
        what = "stopping" if self._run.stop.has_begun else n_workers(size)
        reload = says.answers.reload
        if reload is not None and not reload.is_final:
            done = f"{reload.replaced} of {reload.workers} replaced"
            if reload.state is ReloadState.LOOKING:
                done = "importing the new code"
            what += f", reloading ({done})"
        what += ", paused" if says.paused else ""
        words = what if says.trouble is None else " ".join(f"{what}. {says.trouble}".split())
        return words[:_MOST_CHARACTERS]

    def _send(self, text: str) -> bool:
        """Whether it was taken. Never waits: what finds no room, or nobody, is sent again a moment later."""
        address, now = self._address, self._run.clock.monotonic()
        if address is None or (self._is_gone and now < self._try_again_at < float("inf")):
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
                connection.setblocking(False)
                # What is no UTF-8, such as a path in an error, is told as an escape.
                connection.sendto(text.encode(errors="backslashreplace"), address.path)
        except OSError as error:
            if error.errno in _FULL:
                self._try_again_at = now + _TRY_AGAIN_S
            else:
                self._try_again_at = now + min(_GONE_TRY_AGAIN_S, self._every_s / 2)
                self._miss(error)
            return False
        if self._is_gone:
            self._is_gone = False
            logger.info("The service manager can be told again (NOTIFY_SOCKET)")
        return True

    def _miss(self, error: OSError) -> None:
        if self._is_gone:
            return
        self._is_gone = True
        logger.warning("The service manager cannot be told anything (NOTIFY_SOCKET): %s", error)
        self._status = ""
        self._is_stopping = False
        if self._is_reloading:
            self._told_reload = None  # a READY before the word of the reload would end it
        else:
            self._was_ready = False
