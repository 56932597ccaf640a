"""Client and web process: a kind of failure as a line of a list."""

from __future__ import annotations

from dataclasses import dataclass

from qml_mp.core.failure_kinds import user_frame
from qml_mp.storage.values import FailureKind


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureLine:
    """What is said of it."""

    kind: FailureKind
    error: str
    """Of its newest job, type and message."""
    frame: str | None
    """The line of the user's code nearest to it; None: not known."""

    @classmethod
    def of(cls, kind: FailureKind) -> FailureLine:
        """The line for this kind."""
        error = kind.newest.last_error
        if error is None:
            return cls(kind=kind, error="No error is known.", frame=None)
        return cls(kind=kind, error=f"{error.type}: {error.message}", frame=user_frame(error.traceback))
