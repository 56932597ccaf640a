"""Supervisor: a process that runs beside the workers and shows people how the server does: the page, or the
metrics.

It is a fresh interpreter of which nothing is known here but its command line. It ends when the pipe to it
does; should it hang then, the guardian ends it. It is started again when it dies, after a pause, and nothing
waits for it, for its replies or for room in the pipe.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress

from qml_mp.core.outcome import ProcessFacts
from qml_mp.ipc.side import SideArguments, SideWord
from qml_mp.sources import load_web_token
from qml_mp.supervisor.part import Part
from qml_mp.supervisor.parts.server_report import ServerReports
from qml_mp.supervisor.run import Run
from qml_mp.supervisor.workers.death import how_it_died
from qml_mp.supervisor.workers.fork import kill_and_reap, reap
from qml_mp.supervisor.workers.program import StartedProgram, start_program

logger = logging.getLogger(__name__)

_PROGRAM = "qml_mp.side"
_REPORT_EVERY_S = 1.0
_FULL_PIPE_S = 0.05  # until the rest of a report is tried
_READ_BYTES = 16 * 1024  # of what it says, at most in one turn
_LONGEST_LINE_BYTES = 64 * 1024
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 30.0
_GOOD_LIFE = 10  # times the pause before it


class RestartPauses:
    """Pure: how long to wait before the next start. A pause doubles unless the life after it was ten times as
    long; so a process that dies again and again takes little of a processor."""

    def __init__(self) -> None:
        self._pause_s = 0.0

    def after(self, served_s: float) -> float:
        """The pause after a process that has served for so long (zero: it has not)."""
        was_good = served_s >= _GOOD_LIFE * max(self._pause_s, _FIRST_PAUSE_S)
        longer_s = min(2 * self._pause_s, _LONGEST_PAUSE_S) or _FIRST_PAUSE_S
        self._pause_s = _FIRST_PAUSE_S if was_good else longer_s
        return self._pause_s


class SideProcess(Part):
    """One such process, where its setting names an address; else nothing. `kind` is that of the program,
    `index` its place in the table that the guardian reads."""

    def __init__(
        self,
        run: Run,
        *,
        kind: str,
        address: str | None,
        index: int,
        reports: ServerReports | None = None,
    ) -> None:
        self._run = run
        self._kind = kind
        self._address = address
        self._index = index
        self._reports = reports
        self._program: StartedProgram | None = None
        self._is_listening = False
        self._heard, self._unsent = b"", b""
        self._report_at = self._start_at = 0.0
        self._serves_since: float | None = None
        self._pauses = RestartPauses()
        self._told = ""

    def fds(self) -> list[int]:
        if self._program is None:
            return []
        return [*self._program.child.fds, *([self._program.from_fd] if self._is_listening else [])]

    def own_fds(self) -> list[int]:
        return [] if self._program is None else self._program.fds

    def next_at(self) -> float:
        if self._address is None:
            return float("inf")
        if self._program is None:
            return float("inf") if self._run.stop.has_begun else self._start_at
        return float("inf") if self._reports is None and not self._unsent else self._report_at

    def start_if_missing(self) -> None:
        """Start it when there is none and the pause is over."""
        now = self._run.clock.monotonic()
        if self._address is None or self._program is not None or now < self._start_at:
            return
        try:
            self._program = start_program(_PROGRAM, self._kind)
        except OSError as error:
            self._try_later(0.0)
            self._tell_trouble(f"The process that serves the {self._kind} cannot be started: {error}")
            return
        child = self._program.child
        self._run.side_slots.set_process(self._index, pid=child.pid, started_ticks=child.started_ticks)
        arguments = SideArguments(
            address=self._address,
            url=self._run.url,
            supervisor_pid=os.getpid(),
            log_level=logging.getLogger("qml_mp").getEffectiveLevel(),
            config=self._run.config.plain(),
            token=load_web_token(),
        )
        self._heard, self._unsent, self._is_listening = b"", arguments.line(), True
        self._report_at, self._serves_since = now, None
        if self._reports is not None:
            self._reports.begin()
            self._unsent += self._reports.make().line()  # before anybody can ask for it
        self._send()

    def turn(self) -> None:
        if self._program is None:
            return
        self._listen(self._program)
        process = reap(self._program.child)
        if process is not None:
            self._listen(self._program)
            self._note_death(process)
            return
        if self._run.clock.monotonic() >= self._report_at:
            if self._reports is not None and not self._unsent:
                self._unsent = self._reports.make().line()
            self._send()

    def close(self) -> None:
        """End it, with the server."""
        if self._program is not None:
            kill_and_reap(self._program.child)
            self._forget()

    def _send(self) -> None:
        """What is left of a line, as far as there is room."""
        assert self._program is not None
        with suppress(BlockingIOError, BrokenPipeError):
            self._unsent = self._unsent[os.write(self._program.to_fd, self._unsent) :]
        pause_s = _FULL_PIPE_S if self._unsent else _REPORT_EVERY_S
        self._report_at = self._run.clock.monotonic() + pause_s

    def _listen(self, program: StartedProgram) -> None:
        if not self._is_listening:
            return
        with suppress(BlockingIOError):
            data = os.read(program.from_fd, _READ_BYTES)
            self._is_listening = bool(data)
            *lines, rest = (self._heard + data).split(b"\n")
            self._heard = rest[-_LONGEST_LINE_BYTES:]
            for line in lines:
                self._hear(SideWord.of(line), pid=program.child.pid)

    def _hear(self, word: SideWord | None, *, pid: int) -> None:
        if word is None:
            return
        if word.serves_at is not None:
            self._serves_since, self._told = self._run.clock.monotonic(), ""
            logger.info("The %s: %s", self._kind, word.serves_at)
        if word.cannot is not None:
            self._tell_trouble(f"The {self._kind} cannot be served, which is tried again: {word.cannot}")
        if word.log is not None:
            _log_as_made_there(*word.log, pid=pid)

    def _note_death(self, process: ProcessFacts) -> None:
        since = self._serves_since
        how = f"The process that serves the {self._kind} (pid {process.pid}) {how_it_died(process)}"
        self._forget()
        self._try_later(0.0 if since is None else self._run.clock.monotonic() - since)
        if since is not None:
            logger.warning("%s; it is started again", how)
        elif not self._told:
            self._tell_trouble(f"{how} before it served, and is started again")

    def _try_later(self, served_s: float) -> None:
        self._start_at = self._run.clock.monotonic() + self._pauses.after(served_s)

    def _tell_trouble(self, text: str) -> None:
        """Once, however often it comes about."""
        if text != self._told:
            logger.error("%s", text)
        self._told = text

    def _forget(self) -> None:
        assert self._program is not None
        self._program.close()
        self._program = None
        self._run.side_slots.set_process(self._index, pid=0, started_ticks=0)


def _log_as_made_there(level: int, name: str, message: str, trace: str | None, *, pid: int) -> None:
    """Log the record of another process: with its pid, and its traceback where a formatter looks for one."""
    its_logger = logging.getLogger(name)
    if its_logger.isEnabledFor(level):
        record = its_logger.makeRecord(name, level, "", 0, "%s", (message,), None)
        record.process, record.exc_text = pid, trace
        its_logger.handle(record)
