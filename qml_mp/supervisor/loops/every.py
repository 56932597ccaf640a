"""Supervisor: all that runs as ticks: the four loops of the reference and the chores beside them."""

from __future__ import annotations

from collections.abc import Callable

from qml_mp.clock import Clock
from qml_mp.settings import ServerConfig
from qml_mp.supervisor.loops.burst import burst_tick
from qml_mp.supervisor.loops.cleanup import cleanup_tick
from qml_mp.supervisor.loops.clock_steps import clock_tick
from qml_mp.supervisor.loops.heartbeat import heartbeat_tick, neighbour_tick
from qml_mp.supervisor.loops.loop import Tick
from qml_mp.supervisor.loops.recurring import recurring_tick
from qml_mp.supervisor.loops.scheduler import scheduler_tick
from qml_mp.supervisor.loops.settlement import Chores
from qml_mp.supervisor.loops.templates import Templates
from qml_mp.supervisor.loops.unknown_methods import unknown_tick
from qml_mp.supervisor.loops.unshown_claims import unshown_tick
from qml_mp.supervisor.registration import ServerRegistration
from qml_mp.supervisor.workers.pool import Fleet


def all_ticks(
    config: ServerConfig,
    *,
    presence: ServerRegistration,
    fleet: Fleet,
    chores: Chores,
    templates: Templates,
    clock: Clock,
    wake: Callable[[], None],
    hasten: Callable[[], None],
    declared_dead: Callable[[], None],
    leave: Callable[[str], None] | None,
) -> list[Tick]:
    """In the order in which they run when several are due. `leave` is given with `--burst`."""

    def own_id() -> str:
        return presence.id

    ticks = [
        chores.settle_tick(wake=wake),
        chores.cancel_tick(own_id=own_id),
        presence.tick(),
        templates.tick(),
    ]
    judging = presence.judging()
    if judging is not None:
        ticks.append(
            heartbeat_tick(
                config, judging=judging, own_id=own_id, worker_pids=fleet.pids, declared_dead=declared_dead,
                wake=wake,
            )
        )  # fmt: skip
    ticks.append(clock_tick(on_one_machine=presence.is_on_one_machine, clock=clock, hasten=hasten))
    if config.enable_scheduler:
        ticks.append(scheduler_tick(config, wake=wake))
    if config.enable_recurring:
        ticks.append(recurring_tick(config, presence=presence, wake=wake))
    if config.enable_cleanup:
        ticks.append(cleanup_tick(config))
    ticks.append(
        neighbour_tick(config, judging=judging, own_id=own_id, declared_dead=declared_dead, wake=wake)
    )
    ticks.append(unknown_tick(presence))
    ticks.append(
        unshown_tick(config, own_id=own_id, fleet=fleet, unsettled=chores.unsettled_ids, wake=wake)
    )  # fmt: skip
    if leave is not None:
        ticks.append(burst_tick(presence, everybody_is_idle=chores.everybody_is_idle, leave=leave))
    return ticks
