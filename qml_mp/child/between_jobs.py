"""Worker: what it does between two jobs besides: calls for jobs that have failed, spans of dead workers."""

from __future__ import annotations

from qml_mp.child.commands import Commands
from qml_mp.child.failure_calls import FailureCalls
from qml_mp.child.lost_attempts import LostAttemptExport


class BetweenJobs:
    """Both, as the loop asks for them. A worker whose claims are paused does neither, and is woken when they
    are not any more."""

    def __init__(
        self, failure_calls: FailureCalls, lost_attempts: LostAttemptExport, *, commands: Commands
    ) -> None:
        self._failure_calls = failure_calls
        self._lost_attempts = lost_attempts
        self._commands = commands

    @property
    def is_due(self) -> bool:
        """Whether it is time to look for something to do."""
        return not self._commands.paused and (self._failure_calls.is_due or self._lost_attempts.is_due)

    @property
    def wait_s(self) -> float:
        """How long an idle worker waits for the next such time, unless it is woken."""
        if self._commands.paused:  # what is due stays due: the wait would end at once, again and again
            return float("inf")
        return min(self._failure_calls.wait_s, self._lost_attempts.wait_s)

    def look(self) -> None:
        """Do what there is. No job is in hand and none is unwritten."""
        if self._failure_calls.is_due:
            self._failure_calls.make_one()
        if self._lost_attempts.is_due:
            self._lost_attempts.export()
