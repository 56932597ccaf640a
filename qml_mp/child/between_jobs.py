"""Worker: what it does between two jobs besides: calls for jobs that have failed, spans of dead workers."""

from __future__ import annotations

from qml_mp.child.failure_calls import FailureCalls
from qml_mp.child.lost_attempts import LostAttemptExport


class BetweenJobs:
    """Both, as the loop asks for them."""

    def __init__(self, failure_calls: FailureCalls, lost_attempts: LostAttemptExport) -> None:
        self._failure_calls = failure_calls
        self._lost_attempts = lost_attempts

    @property
    def is_due(self) -> bool:
        """Whether it is time to look for something to do."""
        return self._failure_calls.is_due or self._lost_attempts.is_due

    @property
    def wait_s(self) -> float:
        """How long an idle worker waits for the next such time, unless it is woken."""
        return min(self._failure_calls.wait_s, self._lost_attempts.wait_s)

    def look(self) -> None:
        """Do what there is. No job is in hand and none is unwritten."""
        if self._failure_calls.is_due:
            self._failure_calls.make_one()
        if self._lost_attempts.is_due:
            self._lost_attempts.export()
