"""Every process: runs of supervisors and their workers in SQLite."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from qml_mp.core.server_info import ProcessIdentity, ServerInfo, WorkerInfo
from qml_mp.storage.protocol import BY_DEFAULT, Renewed, Retention
from qml_mp.storage.row_change import server_gone
from qml_mp.storage.rows import claim_of, server_of, worker_of
from qml_mp.storage.sqlite import sql, sql_around
from qml_mp.storage.sqlite.claims import ClaimsPart
from qml_mp.storage.sqlite.instants import from_us, to_us
from qml_mp.storage.storable import storable_reason


class RegistryPart(ClaimsPart):
    """`ServerRegistry` of the protocol; it releases claims, hence its base."""

    def register_server(self, info: ServerInfo) -> None:
        row = {
            "id": info.id,
            "name": info.name,
            "hostname": info.hostname,
            "worker_count": info.worker_count,
            "started_at": to_us(info.started_at),
            "now": self._now_us(),
            "heartbeat_enabled": info.heartbeat_enabled,
            **_said(info.queues, info.methods, info.paused, info.trouble),
            **_process(info.process),
        }
        with self._database.write() as connection:
            connection.execute(sql_around.REGISTER_SERVER, row)

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
        with self._database.write() as connection:
            return connection.execute(sql_around.UPDATE_SERVER, row).rowcount == 1

    def deregister_server(self, server_id: str) -> bool:
        with self._database.write() as connection:
            connection.execute(sql_around.REMOVE_WORKERS_OF, {"server_id": server_id})
            return connection.execute(sql_around.REMOVE_SERVER, {"server_id": server_id}).rowcount == 1

    def deregister_idle_server(self, server_id: str) -> bool:
        which = {"server_id": server_id}
        with self._database.write() as connection:
            connection.execute(sql_around.REMOVE_WORKERS_OF, which)
            connection.execute(sql_around.REMOVE_IDLE_SERVER, which)
            return connection.execute(sql_around.HAS_SERVER, which).fetchone() is None

    def heartbeat_server(self, server_id: str, *, worker_rss: Mapping[str, int]) -> bool:
        # Of no use once the machine has gone down, and idle servers should not keep a disk awake.
        with self._database.write(durable=False) as connection:
            beat = {"server_id": server_id, "now": self._now_us()}
            if connection.execute(sql_around.HEARTBEAT, beat).rowcount == 0:
                return False
            connection.executemany(
                sql_around.SET_WORKER_RSS,
                [
                    {"id": worker_id, "server_id": server_id, "rss_bytes": rss_bytes}
                    for worker_id, rss_bytes in worker_rss.items()
                ],
            )
            return True

    def list_servers(self) -> list[ServerInfo]:
        with self._database.read() as connection:
            rows = connection.execute(sql_around.LIST_SERVERS).fetchall()
        return [server_of(row, from_us) for row in rows]

    def silent_servers(self, *, own_id: str, timeout: timedelta) -> list[ServerInfo]:
        now = self.now()
        which = {"own_id": own_id, "silent_since": to_us(now - timeout), "now": to_us(now)}
        with self._database.read() as connection:
            rows = connection.execute(sql_around.SILENT_SERVERS, which).fetchall()
        return [server_of(row, from_us) for row in rows]

    def reclaim_server(
        self,
        server_id: str,
        *,
        silent_for: timedelta | None,
        judge: str | None = None,
        retention: Retention = BY_DEFAULT,
    ) -> int:
        which = {"server_id": server_id}
        with self._database.write() as connection:
            if silent_for is not None:
                now = self.now()
                verdict = {
                    **which,
                    "now": to_us(now),
                    "silent_since": to_us(now - silent_for),
                    "judge": judge,
                    "heard_since": to_us(now - silent_for / 2),
                }
                if not connection.execute(sql_around.STILL_SILENT, verdict).fetchone()[0]:
                    return 0
            held = [claim_of(row, from_us) for row in connection.execute(sql.CLAIMS_OF_SERVER, which)]
            released = self._release(connection, held, reason=server_gone(server_id), retention=retention)
            connection.execute(sql_around.REMOVE_WORKERS_OF, which)
            connection.execute(sql_around.REMOVE_SERVER, which)
            return released

    def register_worker(self, info: WorkerInfo) -> bool:
        row = {
            "id": info.id,
            "server_id": info.server_id,
            "number": info.number,
            "started_at": to_us(info.started_at),
            "rss_bytes": info.rss_bytes,
            "epoch": info.epoch,
            **_process(info.process),
        }
        with self._database.write() as connection:
            return connection.execute(sql_around.REGISTER_WORKER, row).rowcount > 0

    def renew_epoch(self, worker_id: str) -> Renewed | None:
        which = {"worker_id": worker_id}
        with self._database.write() as connection:
            raised = connection.execute(sql_around.RAISE_EPOCH, which).fetchone()
            if raised is None:
                return None
            held = connection.execute(sql.CLAIMS_OF_WORKER, which).fetchall()
        return Renewed(epoch=raised["epoch"], claims=tuple(claim_of(row, from_us) for row in held))

    def deregister_worker(self, worker_id: str) -> None:
        with self._database.write() as connection:
            connection.execute(sql_around.REMOVE_WORKER, {"id": worker_id})

    def list_workers(self) -> list[WorkerInfo]:
        with self._database.read() as connection:
            rows = connection.execute(sql_around.LIST_WORKERS).fetchall()
        return [worker_of(row, from_us) for row in rows]


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
