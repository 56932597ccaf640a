"""Client: servers and workers as the storage and this machine's processes show them now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from qml_mp.core.job import Claim
from qml_mp.core.payload import JsonValue
from qml_mp.core.server_info import ServerInfo, WorkerInfo
from qml_mp.host import is_alive, rss_bytes
from qml_mp.storage.protocol import QueueStats, Storage

_SILENT_AFTER = timedelta(seconds=60)
"""A server that cannot be looked up from here counts as alive when its last heartbeat is younger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    """A worker with what it runs."""

    info: WorkerInfo
    claim: Claim | None
    running: timedelta | None
    """Since the claim, by the database's clock; None when idle."""
    rss_bytes: int | None

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
            "running_s": None if self.running is None else round(self.running.total_seconds(), 3),
            "rss_bytes": self.rss_bytes,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerView:
    """A server with its workers."""

    info: ServerInfo
    alive: bool
    workers: tuple[WorkerView, ...]

    @property
    def state(self) -> str:
        """dead, or alive, or paused: alive, but told to claim nothing."""
        if not self.alive:
            return "dead"
        return "paused" if self.info.paused else "alive"

    def to_json(self) -> dict[str, JsonValue]:
        """An entry of `servers` in the JSON of `status`."""
        return {
            "id": self.info.id,
            "name": self.info.name,
            "host": self.info.hostname,
            "pid": self.info.process.pid,
            "alive": self.alive,
            "paused": self.info.paused,
            "trouble": self.info.trouble,
            "workers": [worker.to_json() for worker in self.workers],
        }


def view_servers(storage: Storage) -> list[ServerView]:
    """Every registered server, oldest start first."""
    now = storage.now()
    infos = storage.list_servers()
    workers = storage.list_workers()
    return [
        ServerView(
            info=info,
            alive=_alive(info, now - info.last_heartbeat),
            workers=_view_workers(storage, [worker for worker in workers if worker.server_id == info.id]),
        )
        for info in infos
    ]


def queue_to_json(queue: QueueStats) -> dict[str, JsonValue]:
    """An entry of `queues` in the JSON of `status`."""
    return {
        "name": queue.name,
        "enqueued": queue.enqueued,
        "processing": queue.processing,
        "oldest_s": None if queue.oldest is None else round(queue.oldest.total_seconds(), 3),
    }


def _view_workers(storage: Storage, infos: Sequence[WorkerInfo]) -> tuple[WorkerView, ...]:
    if not infos:
        return ()
    claims = {claim.worker_id: claim for claim in storage.claims_of_server(infos[0].server_id)}
    now = storage.now()  # after the claims, so that none started later than this
    views = []
    for info in infos:
        claim = claims.get(info.id)
        started_at = None if claim is None else claim.job.started_at
        here = is_alive(info.process) is True
        views.append(
            WorkerView(
                info=info,
                claim=claim,
                running=None if started_at is None else now - started_at,
                rss_bytes=rss_bytes(info.process.pid) if here else info.rss_bytes,
            )
        )
    return tuple(views)


def _alive(info: ServerInfo, silent: timedelta) -> bool:
    known = is_alive(info.process)
    return silent < _SILENT_AFTER if known is None else known
