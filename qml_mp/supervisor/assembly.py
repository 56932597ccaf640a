"""Supervisor: makes its parts and connects them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from qml_mp.child.source import ProgramSource
from qml_mp.storage.store import Storage
from qml_mp.supervisor.looks import Looks
from qml_mp.supervisor.loops.acts import ActDesk, ActsLoop
from qml_mp.supervisor.loops.burst import BurstLoop
from qml_mp.supervisor.loops.cancel import CancelLoop
from qml_mp.supervisor.loops.cleanup import CleanupLoop
from qml_mp.supervisor.loops.clock import ClockLoop
from qml_mp.supervisor.loops.declarations import DeclarationsLoop, SelfDescriptionLoop
from qml_mp.supervisor.loops.description import DescriptionLoop
from qml_mp.supervisor.loops.failure_calls import FailureCallLoop
from qml_mp.supervisor.loops.held_claims import HeldClaims
from qml_mp.supervisor.loops.history import HistoryLoop
from qml_mp.supervisor.loops.loop import Loop, LoopTable
from qml_mp.supervisor.loops.peers import HeartbeatLoop, NeighbourLoop
from qml_mp.supervisor.loops.poll import PollLoop
from qml_mp.supervisor.loops.progress import ProgressLoop
from qml_mp.supervisor.loops.recurring import RecurringLoop
from qml_mp.supervisor.loops.returning import ReturnLoop
from qml_mp.supervisor.loops.scheduler import SchedulerLoop
from qml_mp.supervisor.loops.settle import Reaper, SettleLoop
from qml_mp.supervisor.loops.unknown_methods import UnknownMethodsLoop
from qml_mp.supervisor.loops.unshown_claims import UnshownClaimsLoop
from qml_mp.supervisor.part import Parts
from qml_mp.supervisor.parts.acts import CarryingOut
from qml_mp.supervisor.parts.guardian import Guardian
from qml_mp.supervisor.parts.host_process import Host, HostLink
from qml_mp.supervisor.parts.job_limits import MemoryWatch, Pusher
from qml_mp.supervisor.parts.reload import NewCode, Reload
from qml_mp.supervisor.parts.server_report import ServerReports
from qml_mp.supervisor.parts.service_manager import ServiceManager
from qml_mp.supervisor.parts.side_process import SideProcess
from qml_mp.supervisor.parts.signals import SignalHandling, SignalInbox, StackDump
from qml_mp.supervisor.parts.source_watch import SourceWatch
from qml_mp.supervisor.parts.storage_listener import StorageListener
from qml_mp.supervisor.parts.stuck import StuckWorkers
from qml_mp.supervisor.recovery.judging import Judging
from qml_mp.supervisor.recovery.neighbours import Neighbours
from qml_mp.supervisor.run import Run
from qml_mp.supervisor.urgent import UrgentFirst


class Assembly:
    """All parts, made and connected. Public attributes are what `server.py` uses."""

    def __init__(
        self,
        run: Run,
        storage: Storage,
        source: ProgramSource,
        *,
        new_code: NewCode,
        burst: timedelta | None,
        host: Host,
        manage_workers: Callable[[], None],
    ) -> None:
        self.urgent = Parts()
        """Those that never wait for storage."""
        self.urgent_first = UrgentFirst(
            self.urgent, all_parts=run.all_parts, storage=storage, stop=run.stop,
            manage_workers=manage_workers,
        )  # fmt: skip
        self.settling = SettleLoop(run)
        self.declarations = DeclarationsLoop(run)
        self.desk = ActDesk()
        acts = ActsLoop(run, desk=self.desk, settling=self.settling)
        self.history = HistoryLoop(run, on_one_machine=storage.is_on_one_machine)
        held, limits, neighbours = HeldClaims(run), Parts(), Neighbours(run)
        limits.add(MemoryWatch(run), Pusher(run))
        self.looks = Looks(run, held=held, limits=limits)
        loops = _all_loops(
            run,
            settling=self.settling,
            held=held,
            neighbours=neighbours,
            declarations=self.declarations,
            acts=acts,
            history=self.history,
            on_one_machine=storage.is_on_one_machine,
            burst=burst,
            is_listening=lambda: self.listener.is_open,
            hasten_others=lambda: self.loops.hasten(),
        )
        self.loops = LoopTable(run, loops, storage=storage, between=self.urgent_first.between)
        self.listener = StorageListener(run, storage, loops=self.loops)
        self.inbox = SignalInbox(ends_process=host.ends_process)
        self.host = HostLink(run, host)
        self.reaper = Reaper(run, settling=self.settling)
        self.guardian = Guardian(run)
        self.side_processes = _side_processes(run, self.loops)
        self.reload = Reload(run, source, new_code=new_code, declarations=self.declarations)
        self._add_urgent(run, host, held=held, limits=limits, neighbours=neighbours, reload=self.reload)
        if new_code.watch_since is not None:
            self.urgent.add(SourceWatch(run, self.reload))
        run.all_parts.add(self.urgent, self.listener, self.loops, self.urgent_first)

    def _add_urgent(
        self,
        run: Run,
        host: Host,
        *,
        held: HeldClaims,
        limits: Parts,
        neighbours: Neighbours,
        reload: Reload,
    ) -> None:
        """In the order of their turns."""
        stacks = StackDump(run)
        signals = SignalHandling(run, inbox=self.inbox, reload=reload, stacks=stacks)
        self.urgent.add(signals, self.host, reload, self.reaper, self.guardian)
        self.urgent.add(run.pool, held, stacks, limits, StuckWorkers(run), neighbours)
        self.urgent.add(self.history.periods)
        self.urgent.add(CarryingOut(run, desk=self.desk, reload=reload, stacks=stacks))
        self.urgent.add(ServiceManager(run, host.notify, reload=reload), *self.side_processes)


def _side_processes(run: Run, loops: LoopTable) -> list[SideProcess]:
    """Those that show people how the server does."""
    config, reports = run.config, ServerReports(run, loops=loops.loops)
    return [
        SideProcess(run, kind="metrics", address=config.metrics, index=0, reports=reports),
        SideProcess(run, kind="page", address=config.web, index=1),
    ]


def _all_loops(
    run: Run,
    *,
    settling: SettleLoop,
    held: HeldClaims,
    neighbours: Neighbours,
    declarations: DeclarationsLoop,
    acts: ActsLoop,
    history: HistoryLoop,
    on_one_machine: bool,
    burst: timedelta | None,
    is_listening: Callable[[], bool],
    hasten_others: Callable[[], None],
) -> list[Loop]:
    """In the order in which they run when several are due. `on_one_machine`: so is every server of this
    storage."""
    config = run.config
    judging = Judging(config, on_one_machine=on_one_machine) if config.enable_heartbeat else None
    firing: list[Loop] = []
    if config.enable_scheduler:
        firing.append(SchedulerLoop(run, interval=config.scheduler_poll_interval, is_listening=is_listening))
    if config.enable_recurring:
        firing.append(RecurringLoop(run, interval=config.recurring_poll_interval))
    loops: list[Loop] = [
        settling,
        ReturnLoop(run, held=held),
        CancelLoop(run),
        SelfDescriptionLoop(run),  # before what was asked is told as done: a pause is in the row by then
        acts,
        declarations,
        *([] if judging is None else [HeartbeatLoop(run, judging=judging, on_asked=acts.hasten)]),
        ClockLoop(run, on_one_machine=on_one_machine, due_by_it=firing),
        *firing,
        *([CleanupLoop(run, interval=config.cleanup_interval)] if config.enable_cleanup else []),
        ProgressLoop(run),
        history,
        PollLoop(run, is_listening=is_listening, hasten_others=hasten_others),
        NeighbourLoop(run, judging=judging, neighbours=neighbours),
        UnknownMethodsLoop(run),
        FailureCallLoop(run),
        UnshownClaimsLoop(run, settling=settling),
    ]
    last = [] if burst is None else [BurstLoop(run, settling=settling, wait=burst)]
    return [*loops, DescriptionLoop(run, others=loops), *last]
