"""Supervisor: all loops of a server: the four of the reference, and those beside them."""

from __future__ import annotations

from qml_mp.clock import Clock
from qml_mp.events.emitter import Emitter
from qml_mp.settings import ServerConfig
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
from qml_mp.supervisor.registration import ServerRegistration
from qml_mp.supervisor.stopping import Stop
from qml_mp.supervisor.workers.ladder import Graces
from qml_mp.supervisor.workers.pool import WorkerPool


def all_loops(
    config: ServerConfig,
    *,
    on_one_machine: bool,
    settling: SettleLoop,
    templates: TemplatesLoop,
    registration: ServerRegistration,
    pool: WorkerPool,
    graces: Graces,
    clock: Clock,
    events: Emitter,
    stop_when_idle: Stop | None,
) -> list[Loop]:
    """In the order in which they run when several are due. `stop_when_idle` is given with `--burst`."""
    judging = Judging(config, on_one_machine=on_one_machine) if config.enable_heartbeat else None
    loops: list[Loop] = [
        settling,
        CancelLoop(registration=registration, pool=pool, graces=graces, clock=clock, events=events),
        SelfDescriptionLoop(registration),
        templates,
    ]
    if judging is not None:
        loops.append(
            HeartbeatLoop(config, judging=judging, registration=registration, pool=pool, events=events)
        )
    firing: list[Loop] = []
    if config.enable_scheduler:
        firing.append(SchedulerLoop(config, wake=pool.wake_idle))
    if config.enable_recurring:
        firing.append(RecurringLoop(config, registration=registration, wake=pool.wake_idle, events=events))
    loops += [ClockLoop(on_one_machine=on_one_machine, clock=clock, due_by_it=firing), *firing]
    if config.enable_cleanup:
        loops.append(CleanupLoop(config))
    loops += [
        NeighbourLoop(config, judging=judging, registration=registration, pool=pool, events=events),
        UnknownMethodsLoop(registration),
        UnshownClaimsLoop(config, registration=registration, pool=pool, settling=settling),
    ]
    if stop_when_idle is not None:
        loops.append(BurstLoop(registration=registration, pool=pool, settling=settling, stop=stop_when_idle))
    return loops
