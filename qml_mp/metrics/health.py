"""Beside a server: whether it lives, and whether it is ready, judged from its newest report. Pure.

A report is made within a turn of the supervisor and bears the instant. So a supervisor that hangs, or was
stopped, cannot pass for one that turns: its newest report grows old, whoever looks at it.
"""

from __future__ import annotations

from collections.abc import Iterator

from qml_mp.ipc.side import LoopReport, ServerReport
from qml_mp.metrics.storage_looks import StorageLook

TURNED_WITHIN_S = 10.0
"""A supervisor that has not turned for longer does not live. It turns four times a second, and reports that
once a second."""
_BOOTING_S = 30.0  # the first report has as long
_LATE_TICKS = 3
_LATE_S = 15.0  # beside the ticks; a loop that waits for storage with others is not late yet


def why_not_alive(report: ServerReport | None, *, now: float, since: float) -> list[str]:
    """Reasons; none: it lives. `since` is when this process began to listen. Instants are monotonic."""
    if report is None:
        return [] if now - since <= _BOOTING_S else ["the supervisor has not reported yet"]
    silent_s = now - report.at
    return [] if silent_s <= TURNED_WITHIN_S else [f"the supervisor has not turned for {silent_s:.0f} s"]


def why_not_ready(
    report: ServerReport | None, look: StorageLook | None, *, now: float, wall: float, since: float
) -> list[str]:
    """Reasons; none: it can do its work. `wall` is unix time. None of them names a path or an address."""
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
    return [*reasons, *_late_loops(report, wall=wall)]


def _late_loops(report: ServerReport, *, wall: float) -> Iterator[str]:
    for loop in report.loops:
        age_s = wall - (loop.succeeded_at or report.started_at)
        if loop.is_failing and (loop.every_s is None or age_s > _LATE_S):
            yield f"the {loop.name} loop fails"
        elif age_s > _allowed_s(loop):
            yield f"the {loop.name} loop has not succeeded for {age_s:.0f} s"


def _allowed_s(loop: LoopReport) -> float:
    """One without an interval ticks when it has something to do, and is late only when that fails."""
    return float("inf") if loop.every_s is None else _LATE_TICKS * loop.every_s + _LATE_S
