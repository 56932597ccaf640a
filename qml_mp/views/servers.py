"""Client and web process: servers and workers as the storage and this machine's processes show them now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from qml_mp.core.begun import begun_by_worker
from qml_mp.core.job import Claim
from qml_mp.core.payload import JsonValue
from qml_mp.core.progress import Progress
from qml_mp.core.server_info import ServerInfo, WorkerInfo
from qml_mp.host import cpu_seconds, is_alive, rss_bytes
from qml_mp.storage.store import Storage
from qml_mp.units import in_seconds
from qml_mp.views.liveness import Liveness, Standing, liveness_by_server


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    """A worker with what it runs."""

    info: WorkerInfo
    claim: Claim | None
    """Of those that it holds the one that it has begun, as far as can be told: the first."""
    running: timedelta | None
    """Since the claim, by the database's clock; None when idle."""
    rss_bytes: int | None
    cpu: timedelta | None = None
    """What its process has had of the processors, where that is seen from here."""
    progress: Progress | None = None
    """What its job has said of it last, at most about a second ago."""

    @property
    def state(self) -> str:
        """busy while it holds a claim, else idle."""
        return "idle" if self.claim is None else "busy"

    @property
    def method(self) -> str | None:
        """Of the job it runs."""
        return None if self.claim is None else self.claim.job.method

    def to_json(self) -> dict[str, JsonValue]:
        """An entry of `workers` in the JSON of `status`."""
        return {
            "number": self.info.number,
            "pid": self.info.process.pid,
            "state": self.state,
            "job_id": None if self.claim is None else self.claim.job.id,
            "method": self.method,
            "running_s": in_seconds(self.running),
            "rss_bytes": self.rss_bytes,
            "progress": None if self.progress is None else self.progress.to_json(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerView:
    """A server with its workers."""

    info: ServerInfo
    liveness: Liveness
    workers: tuple[WorkerView, ...]

    @property
    def alive(self) -> bool:
        """Whether its process is seen, or it was heard lately."""
        return self.liveness.is_likely

    @property
    def state(self) -> str:
        """What is known of it, or paused: alive, but told to claim nothing."""
        known = str(self.liveness)
        if not (self.alive and self.info.paused):
            return known
        return "paused" if self.liveness.standing is Standing.ALIVE else f"paused, {known}"

    def to_json(self) -> dict[str, JsonValue]:
        """An entry of `servers` in the JSON of `status`."""
        return {
            "id": self.info.id,
            "name": self.info.name,
            "host": self.info.hostname,
            "pid": self.info.process.pid,
            "alive": self.alive,
            "standing": str(self.liveness.standing),
            "silent_s": in_seconds(self.liveness.silent_for),
            "paused": self.info.paused,
            "trouble": self.info.trouble,
            "workers": [worker.to_json() for worker in self.workers],
        }


def view_servers(storage: Storage) -> list[ServerView]:
    """Every registered server, oldest start first; in a few statements however many there are."""
    infos = storage.list_servers()
    workers = storage.list_workers() if infos else []
    begun = begun_by_worker(storage.claims()) if workers else {}
    progress = storage.progress_of([claim.job.id for claim in begun.values()])
    now = storage.now()  # after the claims, so that none started later than this
    liveness = liveness_by_server(storage, infos, now=now)
    views = [_view_worker(info, begun.get(info.id), progress, now=now) for info in workers]
    return [
        ServerView(
            info=info,
            liveness=liveness[info.id],
            workers=tuple(view for view in views if view.info.server_id == info.id),
        )
        for info in infos
    ]


def able_servers(servers: Sequence[ServerView]) -> list[ServerInfo]:
    """Those that can run anything: alive, and not there for their loops alone."""
    return [
        server.info for server in servers if server.alive and (server.info.worker_count or server.workers)
    ]


def _view_worker(
    info: WorkerInfo, claim: Claim | None, progress: Mapping[str, Progress], *, now: datetime
) -> WorkerView:
    started_at = None if claim is None else claim.job.started_at
    here = is_alive(info.process) is True
    return WorkerView(
        info=info,
        claim=claim,
        running=None if started_at is None else now - started_at,
        rss_bytes=rss_bytes(info.process.pid) if here else info.rss_bytes,
        cpu=_cpu(info.process.pid) if here else None,
        progress=None if claim is None else progress.get(claim.job.id),
    )


def _cpu(pid: int) -> timedelta | None:
    spent_s = cpu_seconds(pid)
    return None if spent_s is None else timedelta(seconds=round(spent_s, 1))
