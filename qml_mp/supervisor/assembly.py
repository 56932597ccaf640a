"""Supervisor: makes its parts and connects them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qml_mp.child.probe import AppFacts
from qml_mp.child.source import LoadedProgram, ProgramSource
from qml_mp.clock import SystemClock
from qml_mp.events.emitter import Emitter, new_emitter
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
from qml_mp.supervisor.probe import Probe
from qml_mp.supervisor.registration import ServerRegistration
from qml_mp.supervisor.stopping import Stop
from qml_mp.supervisor.urgent import Urgent, UrgentFirst
from qml_mp.supervisor.workers.ladder import Graces
from qml_mp.supervisor.workers.pool import WorkerPool
from qml_mp.supervisor.workers.spawning import WorkerSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembly:
    """The parts that the supervisor deals with by name, and all of them in groups."""

    events: Emitter
    registration: ServerRegistration
    stop: Stop
    pool: WorkerPool
    settling: SettleLoop
    inbox: SignalInbox
    host: HostLink
    guardian: Guardian
    reaper: Reaper
    memory: MemoryWatch
    waiting: UrgentFirst
    listener: StorageListener
    loops: LoopTable
    urgent: Parts
    """Those that never wait for storage, in the order of a turn."""
    everyone: Parts


def assemble(
    supervisor: Urgent,
    config: ServerConfig,
    storage: Storage,
    source: ProgramSource,
    *,
    facts: AppFacts,
    queues_of: Callable[[AppFacts], Sequence[str]] | None,
    burst: bool,
    host: Host,
) -> Assembly:
    """For the arguments of a `Supervisor`."""
    events, clock, rng, graces = new_emitter(), SystemClock(), random.Random(), Graces.of(config)
    urgent, everyone = Parts(), Parts()

    def start_probe() -> Probe:
        everyone.before_fork()
        return Probe(source, timeout=config.boot_timeout, own_fds=everyone.own_fds())

    def on_commit() -> None:
        loops.hasten()
        pool.wake_idle()

    reaching = Retrying(events, fails=StorageLost, works=StorageBack(), rng=rng)
    registration = ServerRegistration(config, events=events, methods=facts.methods)
    spec = WorkerSpec(server_id=registration.id, config=config, url=storage.url, source=source)
    pool = WorkerPool(spec, everyone=everyone, clock=clock, events=events)
    stop = Stop(pool=pool, graces=graces, reaching=reaching, clock=clock, events=events)
    waiting = UrgentFirst(supervisor, storage)

    settling = SettleLoop(config, pool=pool, stop=stop, clock=clock, rng=rng, events=events)
    templates = TemplatesLoop()
    loops = LoopTable(
        all_loops(
            config,
            on_one_machine=storage.is_on_one_machine,
            settling=settling,
            templates=templates,
            registration=registration,
            pool=pool,
            graces=graces,
            clock=clock,
            events=events,
            stop_when_idle=stop if burst else None,
        ),
        storage=storage,
        reaching=reaching,
        may_run=stop.has_time_for_storage,
        between=lambda may_fork: waiting.between(may_fork=may_fork),
        clock=clock,
        tries=lambda works: Retrying(events, works=works, rng=rng),
    )
    listener = StorageListener(storage, stop=stop, reaching=reaching, on_commit=on_commit, clock=clock)

    inbox = SignalInbox(ends_process=host.ends_process)
    link = HostLink(host, stop=stop)
    guardian = Guardian(pool.slots, orphan_grace=config.orphan_grace, everyone=everyone)
    reaper = Reaper(pool=pool, settling=settling, stop=stop)
    memory = MemoryWatch(config, pool=pool, stop=stop, clock=clock)
    reload = Reload(
        None if isinstance(source, LoadedProgram) else start_probe,
        queues_of=queues_of,
        stop=stop,
        pool=pool,
        registration=registration,
        templates=templates,
        events=events,
    )
    signals = SignalHandling(inbox, stop=stop, pool=pool, reload=reload, registration=registration)
    pusher = Pusher(pool=pool, graces=graces, stop=stop, clock=clock)
    urgent.add(signals, link, reload, reaper, guardian, pool, memory, pusher)
    everyone.add(urgent, listener, loops, waiting)
    return Assembly(
        events=events,
        registration=registration,
        stop=stop,
        pool=pool,
        settling=settling,
        inbox=inbox,
        host=link,
        guardian=guardian,
        reaper=reaper,
        memory=memory,
        waiting=waiting,
        listener=listener,
        loops=loops,
        urgent=urgent,
        everyone=everyone,
    )
