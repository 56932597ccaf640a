"""Supervisor: all loops of a server: the four of the reference, and those beside them."""

from __future__ import annotations

from qml_mp.supervisor.loops.burst import BurstLoop
from qml_mp.supervisor.loops.cancels import CancelLoop
from qml_mp.supervisor.loops.cleanup import CleanupLoop
from qml_mp.supervisor.loops.clock import ClockLoop
from qml_mp.supervisor.loops.heartbeat import HeartbeatLoop
from qml_mp.supervisor.loops.loop import Loop
from qml_mp.supervisor.loops.neighbours import NeighbourLoop
from qml_mp.supervisor.loops.recurring import RecurringLoop
from qml_mp.supervisor.loops.scheduler import SchedulerLoop
from qml_mp.supervisor.loops.self_description import SelfDescriptionLoop
from qml_mp.supervisor.loops.settle import SettleLoop
from qml_mp.supervisor.loops.templates import TemplatesLoop
from qml_mp.supervisor.loops.unknown_methods import UnknownMethodsLoop
from qml_mp.supervisor.loops.unshown_claims import UnshownClaimsLoop
from qml_mp.supervisor.recovery.judging import Judging
from qml_mp.supervisor.run import Run


def all_loops(
    run: Run, *, settling: SettleLoop, templates: TemplatesLoop, on_one_machine: bool, burst: bool
) -> list[Loop]:
    """In the order in which they run when several are due. `on_one_machine`: so is every server of this
    storage."""
    config = run.config
    judging = Judging(config, on_one_machine=on_one_machine) if config.enable_heartbeat else None
    firing: list[Loop] = []
    if config.enable_scheduler:
        firing.append(SchedulerLoop(run))
    if config.enable_recurring:
        firing.append(RecurringLoop(run))
    return [
        settling,
        CancelLoop(run),
        SelfDescriptionLoop(run),
        templates,
        *([] if judging is None else [HeartbeatLoop(run, judging=judging)]),
        ClockLoop(run, on_one_machine=on_one_machine, due_by_it=firing),
        *firing,
        *([CleanupLoop(run)] if config.enable_cleanup else []),
        NeighbourLoop(run, judging=judging),
        UnknownMethodsLoop(run),
        UnshownClaimsLoop(run, settling=settling),
        *([BurstLoop(run, settling=settling)] if burst else []),
    ]
