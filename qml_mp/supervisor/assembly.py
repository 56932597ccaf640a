"""Supervisor: makes its parts and connects them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qml_mp.child.source import AppFacts, ProgramSource
from qml_mp.clock import SystemClock
from qml_mp.events.emitter import new_emitter
from qml_mp.events.facts import StorageBack, StorageLost
from qml_mp.events.retrying import Retrying
from qml_mp.settings import ServerConfig
from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.every import all_loops
from qml_mp.supervisor.loops.loop import LoopTable
from qml_mp.supervisor.loops.settle import SettleLoop
from qml_mp.supervisor.loops.templates import TemplatesLoop
from qml_mp.supervisor.part import Parts
from qml_mp.supervisor.parts.guardian import Guardian
from qml_mp.supervisor.parts.host_process import Host, HostLink
from qml_mp.supervisor.parts.memory import MemoryWatch
from qml_mp.supervisor.parts.pusher import Pusher
from qml_mp.supervisor.parts.reaper import Reaper
from qml_mp.supervisor.parts.reload import Reload
from qml_mp.supervisor.parts.signals import SignalHandling, SignalInbox
from qml_mp.supervisor.parts.storage_listener import StorageListener
from qml_mp.supervisor.registration import ServerRegistration
from qml_mp.supervisor.run import Run
from qml_mp.supervisor.stopping import Stop
from qml_mp.supervisor.urgent import UrgentFirst
from qml_mp.supervisor.workers.ladder import Graces
from qml_mp.supervisor.workers.pool import WorkerPool
from qml_mp.supervisor.workers.spawning import WorkerSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembly:
    """The parts that the supervisor deals with by name; `urgent` are those that never wait for storage."""

    inbox: SignalInbox
    host: HostLink
    guardian: Guardian
    reaper: Reaper
    memory: MemoryWatch
    urgent: Parts
    urgent_first: UrgentFirst
    settling: SettleLoop
    listener: StorageListener
    loops: LoopTable


def new_run(config: ServerConfig, url: str, source: ProgramSource, *, facts: AppFacts) -> Run:
    """What all parts share."""
    events, clock, rng, graces = new_emitter(), SystemClock(), random.Random(), Graces.of(config)
    everyone = Parts()
    registration = ServerRegistration(config, events=events, methods=facts.methods)
    reaching = Retrying(events, fails=StorageLost, works=StorageBack(), rng=rng)
    spec = WorkerSpec(server_id=registration.id, config=config, url=url, source=source)
    pool = WorkerPool(spec, everyone=everyone, clock=clock, events=events)
    return Run(
        config=config,
        events=events,
        clock=clock,
        rng=rng,
        graces=graces,
        reaching=reaching,
        registration=registration,
        pool=pool,
        stop=Stop(pool=pool, graces=graces, reaching=reaching, clock=clock, events=events),
        everyone=everyone,
    )


def assemble(
    run: Run,
    storage: Storage,
    source: ProgramSource,
    *,
    queues_of: Callable[[AppFacts], Sequence[str]] | None,
    burst: bool,
    host: Host,
    manage_workers: Callable[[], None],
) -> Assembly:
    """For the arguments of a `Supervisor`."""
    urgent = Parts()
    urgent_first = UrgentFirst(urgent, storage=storage, stop=run.stop, manage_workers=manage_workers)
    settling, templates = SettleLoop(run), TemplatesLoop()
    loops = LoopTable(
        all_loops(
            run, settling=settling, templates=templates, on_one_machine=storage.is_on_one_machine, burst=burst
        ),
        storage=storage,
        reaching=run.reaching,
        may_run=run.stop.has_time_for_storage,
        between=urgent_first.between,
        clock=run.clock,
        tries=run.retrying,
    )

    def on_commit() -> None:
        loops.hasten()
        run.pool.wake_idle()

    listener = StorageListener(run, storage, on_commit=on_commit)
    inbox = SignalInbox(ends_process=host.ends_process)
    reload = Reload(run, source, queues_of=queues_of, templates=templates)
    signals = SignalHandling(run, inbox=inbox, reload=reload)
    host_link, guardian, memory = HostLink(run, host), Guardian(run), MemoryWatch(run)
    reaper, pusher = Reaper(run, settling=settling), Pusher(run)
    urgent.add(signals, host_link, reload, reaper, guardian, run.pool, memory, pusher)
    run.everyone.add(urgent, listener, loops, urgent_first)
    return Assembly(
        inbox=inbox,
        host=host_link,
        guardian=guardian,
        reaper=reaper,
        memory=memory,
        urgent=urgent,
        urgent_first=urgent_first,
        settling=settling,
        listener=listener,
        loops=loops,
    )
