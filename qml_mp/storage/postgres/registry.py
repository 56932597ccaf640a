"""Every process: runs of supervisors and their workers in PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from qml_mp.core.server_info import ProcessIdentity, ServerInfo, WorkerInfo
from qml_mp.storage.postgres import sql, sql_around
from qml_mp.storage.postgres.claims import release_all
from qml_mp.storage.postgres.instants import from_column
from qml_mp.storage.postgres.part import Part, claims_from
from qml_mp.storage.protocol import BY_DEFAULT, Renewed, Retention
from qml_mp.storage.row_change import server_gone
from qml_mp.storage.rows import server_of, worker_of
from qml_mp.storage.storable import storable_reason


class RegistryPart(Part):
    """`ServerRegistry` of the protocol."""

    def register_server(self, info: ServerInfo) -> None:
        row = {
            "id": info.id,
            "name": info.name,
            "hostname": info.hostname,
            "worker_count": info.worker_count,
            "started_at": info.started_at,
            "heartbeat_enabled": info.heartbeat_enabled,
            **_said(info.queues, info.methods, info.paused, info.trouble),
            **_process(info.process),
        }
        self._database.rows("registering a server", sql_around.REGISTER_SERVER, row)

    def update_server(
        self,
        server_id: str,
        *,
        queues: Sequence[str],
        methods: Sequence[str] | None,
        paused: bool,
        trouble: str | None,
    ) -> bool:
        row = {"server_id": server_id, **_said(queues, methods, paused, trouble)}
        return bool(self._database.rows("updating a server", sql_around.UPDATE_SERVER, row))

    def deregister_server(self, server_id: str) -> bool:
        which = {"server_id": server_id, "silent_for": None, "judge": None}
        with self._database.transaction("deregistering a server") as transaction:
            transaction.execute(sql_around.REMOVE_WORKERS_OF, which)
            removed = transaction.execute(sql_around.REMOVE_SERVER, which)
        return removed.rowcount == 1

    def deregister_idle_server(self, server_id: str) -> bool:
        which = {"server_id": server_id}
        with self._database.transaction("deregistering a server") as transaction:
            transaction.execute(sql_around.REMOVE_WORKERS_OF, which)
            transaction.execute(sql_around.REMOVE_IDLE_SERVER, which)
            left = transaction.execute(sql_around.HAS_SERVER, which)
        return left.fetchone() is None

    def heartbeat_server(self, server_id: str, *, worker_rss: Mapping[str, int]) -> bool:
        beat = {
            "server_id": server_id,
            "ids": list(worker_rss),
            "rss_bytes": list(worker_rss.values()),
        }
        with self._database.transaction("sending a heartbeat") as transaction:
            bumped = transaction.execute(sql_around.HEARTBEAT, beat)
            if worker_rss:
                transaction.execute(sql_around.SET_WORKER_RSS, beat)
        return bumped.rowcount == 1

    def list_servers(self) -> list[ServerInfo]:
        rows = self._database.read("listing servers", sql_around.LIST_SERVERS)
        return [server_of(row, from_column) for row in rows]

    def silent_servers(self, *, own_id: str, timeout: timedelta) -> list[ServerInfo]:
        which = {"own_id": own_id, "timeout": timeout}
        rows = self._database.read("looking for silent servers", sql_around.SILENT_SERVERS, which)
        return [server_of(row, from_column) for row in rows]

    def reclaim_server(
        self,
        server_id: str,
        *,
        silent_for: timedelta | None,
        judge: str | None = None,
        retention: Retention = BY_DEFAULT,
    ) -> int:
        which = {"server_id": server_id, "silent_for": silent_for, "judge": judge}
        with self._database.transaction("reclaiming a server's jobs") as transaction:
            # Its row first: a heartbeat that comes in now waits, and then finds the server declared dead.
            removed = transaction.execute(sql_around.REMOVE_SERVER, which).fetchall()
            if not removed and silent_for is not None:
                return 0
            # Claims before workers, as a worker locks them that finishes one and takes the next.
            transaction.execute(sql.LOCK_CLAIMS_OF_SERVER, which)
            transaction.execute(sql_around.LOCK_WORKERS_OF, which)
            # Again: of these there may be more now, and of none after this one more.
            held = claims_from(transaction.execute(sql.LOCK_CLAIMS_OF_SERVER, which))
            released = release_all(transaction, held, reason=server_gone(server_id), retention=retention)
            transaction.execute(sql_around.REMOVE_WORKERS_OF, which)
            return released

    def register_worker(self, info: WorkerInfo) -> bool:
        row = {
            "id": info.id,
            "server_id": info.server_id,
            "number": info.number,
            "started_at": info.started_at,
            "rss_bytes": info.rss_bytes,
            "epoch": info.epoch,
            **_process(info.process),
        }
        return bool(self._database.rows("registering a worker", sql_around.REGISTER_WORKER, row))

    def renew_epoch(self, worker_id: str) -> Renewed | None:
        which = {"worker_id": worker_id}
        with self._database.transaction("looking for lost claims") as transaction:
            transaction.execute(sql_around.LOCK_WORKER, which)
            raised = transaction.execute(sql_around.RAISE_EPOCH, which)
            # A statement of its own, so that it sees the claim for which the lock has waited.
            held = transaction.execute(sql.CLAIMS_OF_WORKER, which)
        row = raised.fetchone()
        if row is None:
            return None
        return Renewed(epoch=row["epoch"], claims=tuple(claims_from(held.fetchall())))

    def deregister_worker(self, worker_id: str) -> None:
        self._database.rows("deregistering a worker", sql_around.REMOVE_WORKER, {"id": worker_id})

    def list_workers(self) -> list[WorkerInfo]:
        rows = self._database.read("listing workers", sql_around.LIST_WORKERS)
        return [worker_of(row, from_column) for row in rows]


def _said(
    queues: Sequence[str], methods: Sequence[str] | None, paused: bool, trouble: str | None
) -> dict[str, Any]:
    return {
        "queues": json.dumps(list(queues)),
        "methods": None if methods is None else json.dumps(list(methods)),
        "paused": paused,
        "trouble": storable_reason(trouble),
    }


def _process(process: ProcessIdentity) -> dict[str, Any]:
    return {"host": process.host, "pid": process.pid, "started_ticks": process.started_ticks}
