"""Beside a server: whether it lives, and whether it is ready, judged from its newest report. Pure.

A report is made within a turn of the supervisor and bears the instant. So a supervisor that hangs, or was
stopped, cannot pass for one that turns: its newest report grows old, whoever looks at it.
"""

from __future__ import annotations

from qml_mp.ipc.side import LoopReport, ServerReport
from qml_mp.metrics.storage_looks import StorageLook

TURNED_WITHIN_S = 10.0
"""A supervisor that has not turned for longer does not live. It turns four times a second, and reports that
once a second."""
_BOOTING_S = 30.0  # the first report has as long
_FAILING_S = 5.0  # a loop is tried again within two seconds
_LATE_S = 15.0  # one that is due waits for others, and for storage


def why_not_alive(report: ServerReport | None, *, now: float, since: float) -> list[str]:
    """Reasons; none: it lives. `since` is when this process began to listen. Instants are monotonic."""
    if report is None:
        return [] if now - since <= _BOOTING_S else ["the supervisor has not reported yet"]
    silent_s = now - report.at
    return [] if silent_s <= TURNED_WITHIN_S else [f"the supervisor has not turned for {silent_s:.0f} s"]


def why_not_ready(
    report: ServerReport | None, look: StorageLook | None, *, now: float, since: float
) -> list[str]:
    """Reasons; none: it can do its work. None of them names a path or an address."""
    reasons = why_not_alive(report, now=now, since=since)
    if look is None or not look.answers:
        reasons.append("the storage does not answer")
    elif not look.schema_fits:
        reasons.append("the schema of the storage is not that of this version")
    if report is None:
        return reasons or ["the supervisor has not reported yet"]
    if report.is_stopping:
        reasons.append("the server is stopping")
    if report.storage_fails:
        reasons.append("the supervisor cannot reach the storage")
    ready = sum(worker.state in ("idle", "busy") for worker in report.workers)
    if report.wanted_workers and not ready:
        reasons.append("no worker is ready")
    if not report.is_stopping and not report.storage_fails:  # which keep all of them
        reasons += filter(None, (_why_stale(loop, at=report.at) for loop in report.loops))
    return reasons


def _why_stale(loop: LoopReport, *, at: float) -> str | None:
    failing_s = 0.0 if loop.failing_since is None else at - loop.failing_since
    late_s = 0.0 if loop.due_since is None else at - loop.due_since
    if failing_s > _FAILING_S:
        return f"the {loop.name} loop has failed for {failing_s:.0f} s"
    return f"the {loop.name} loop has been due for {late_s:.0f} s" if late_s > _LATE_S else None
