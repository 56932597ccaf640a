"""Every process: runs of supervisors and their workers, and the locks that they hold."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import TypeVar

from qml_mp.core.job import Claim
from qml_mp.core.outcome import Release
from qml_mp.core.server_info import SelfDescription, ServerInfo, WorkerInfo
from qml_mp.errors import StorageUnavailable
from qml_mp.storage.database import Operations, Values
from qml_mp.storage.given_back import Released, give_back
from qml_mp.storage.left_out import LeftOut
from qml_mp.storage.row_change import server_gone
from qml_mp.storage.rows import Row, ToInstant, process_columns, server_of, worker_of
from qml_mp.storage.storable import storable_reason
from qml_mp.storage.values import BY_DEFAULT, Heard, Renewed, Retention
from qml_mp.units import check_longest

_Info = TypeVar("_Info", ServerInfo, WorkerInfo)


class ServerRegistry(Operations):
    """Runs of supervisors and their workers."""

    def register_server(self, info: ServerInfo) -> None:
        """Insert the row (replacing one of the same id); heartbeat times are the database's."""
        row = {
            "id": info.id,
            "name": info.name,
            "hostname": info.hostname,
            "worker_count": info.worker_count,
            "started_at": info.started_at,
            "heartbeat_enabled": info.heartbeat_enabled,
            "acts": json.dumps(list(info.acts)),
            **self._process(info),
            **_said(info),
        }
        self._db.write("registering a server", self._db.queries.registry.register_server, row)

    def update_server(self, server_id: str, says: SelfDescription) -> bool:
        """Replace what it says of itself; False: a peer declared us dead."""
        row = {"server_id": server_id, **_said(says)}
        return self._db.write("updating a server", self._db.queries.registry.update_server, row).count == 1

    def deregister_server(self, server_id: str, *, done: Collection[str] = ()) -> bool:
        """Delete its workers' rows, so that none of them claims any more, and its own unless one of them
        still holds a claim, all at once. Whether nothing is left of it. `done` are the ids of acts that are
        done by this."""
        queries, which = self._db.queries.registry, {"server_id": server_id}
        with self._db.transaction("deregistering a server") as transaction:
            # Its row first, as everybody: a worker that is registering is waited for, and its row seen then.
            transaction.run(queries.lock_server, which)
            transaction.run(queries.remove_workers_of, which)
            transaction.run(queries.remove_idle_server, which)
            transaction.run(self._db.queries.acts.end_of_server, {**which, "done": sorted(done)})
            left = transaction.run(queries.has_server, which)
        return left.first() is None

    def heartbeat_server(self, server_id: str, *, worker_rss: Mapping[str, int]) -> Heard | None:
        """Bump `last_heartbeat` and the workers' memory; None: a peer declared us dead."""
        queries, which = self._db.queries.registry, {"server_id": server_id}
        sizes = {**which, "ids": list(worker_rss), "rss_bytes": list(worker_rss.values())}
        # Of no use once the machine has gone down, and idle servers should not keep a disk awake.
        with self._db.transaction("sending a heartbeat", durable=False) as transaction:
            bumped = transaction.run(queries.heartbeat, which)
            if worker_rss:
                transaction.run(queries.set_worker_rss, sizes)
        row = bumped.first()
        return None if row is None else Heard(servers=int(row["servers"]), is_asked=bool(row["asked"]))

    def list_servers(self) -> list[ServerInfo]:
        """All rows, oldest start first."""
        return self._read("listing servers", self._db.queries.registry.list_servers, self._reader(server_of))

    def silent_servers(self, *, own_id: str, timeout: timedelta) -> list[ServerInfo]:
        """Peers with heartbeats on whose last one is older than `timeout`, by the database's clock, or lies
        in the future. The latter is no silence yet: the clock was set back since, or the heartbeat came in
        while this looked. For how long that very one stays the newest is for the caller to see."""
        query, which = self._db.queries.registry.silent_servers, {"own_id": own_id, "timeout": timeout}
        return self._read("looking for silent servers", query, self._reader(server_of), which)

    def reclaim_server(
        self,
        server_id: str,
        *,
        silent_for: timedelta | None,
        newest: datetime | None = None,
        judge: str | None = None,
        dead_workers: Collection[str] | None = None,
        done: Collection[str] = (),
        retention: Retention = BY_DEFAULT,
        left_out: LeftOut | None = None,
    ) -> int:
        """Release all its claims, uncharged, and remove its rows, in one transaction; how many.

        With `silent_for`, only if it is still silent for so long (else 0 and nothing changes): by the
        database's clock, or because its newest heartbeat is still `newest`, which the caller has watched for
        so long. And only if the server `judge` that finds so has been heard within half of it: one that was
        stopped since its last heartbeat cannot tell the silence of others from its own. With `dead_workers`,
        only if it has no other worker: raises `StorageUnavailable` when one has registered that is not proved
        dead.
        `done` is as in `deregister_server`.
        A job whose cancel was asked for ends Deleted instead, and is kept as `retention` says.

        With `left_out`, claims that the database refuses to have released are left out there, and the others
        are released; call this again while it is not empty. Meanwhile the server keeps its row, by which
        others find the rest, too. With `silent_for` it loses the row all the same: that is how one that lives
        after all learns that its jobs are others'. What is left is then released without `silent_for`, or by
        `requeue_stranded_jobs`.
        """
        verdict = {"server_id": server_id, "silent_for": silent_for, "newest": newest, "judge": judge}
        gone = Release(reason=server_gone(server_id))
        reclaim = partial(self._reclaim, verdict, dead_workers=dead_workers, done=done)
        return give_back(self._db, gone, retention, reclaim, left_out=left_out)

    def _reclaim(
        self,
        verdict: Values,
        release: Released,
        left_out: LeftOut | None,
        *,
        dead_workers: Collection[str] | None,
        done: Collection[str],
    ) -> int:
        queries, server_id = self._db.queries.registry, verdict["server_id"]
        which, is_silent = {"server_id": server_id}, verdict["silent_for"] is not None
        may_keep_row = left_out is not None and not is_silent
        with self._db.transaction("reclaiming a server's jobs", pipelined=left_out is None) as transaction:
            # Its row first: a heartbeat that comes in now waits, and then finds the server declared dead.
            # Judged in the very query that removes: who judges may be stopped between any two.
            removed = transaction.run(queries.lock_server if may_keep_row else queries.remove_server, verdict)
            if is_silent and removed.count == 0:
                return 0
            # Claims before workers, as a worker locks them that finishes one and takes the next.
            lock_claims = self._db.queries.claims.lock_of_server
            transaction.run(lock_claims, which)
            workers = transaction.run(queries.lock_workers_of, which)
            if dead_workers is not None and any(row["id"] not in dead_workers for row in workers.rows()):
                raise StorageUnavailable(f"A new worker of server {server_id} has registered; try again.")
            # Again: of these there may be more now, and of none after this one more.
            held = self._claims_of(transaction.run(lock_claims, which).rows())
            released = release(transaction, held)
            if left_out is not None and is_silent and released + len(left_out.ids) < len(held):
                raise StorageUnavailable(f"Too many jobs of server {server_id} are refused; try again.")
            transaction.run(queries.remove_workers_of, which)
            if may_keep_row and released == len(held):
                transaction.run(queries.remove_server, verdict)
            # Where the row is gone. A query of its own, so that it sees what was asked while that one waited.
            transaction.run(self._db.queries.acts.end_of_server, {**which, "done": sorted(done)})
            return released

    def register_worker(self, info: WorkerInfo) -> bool:
        """Insert the row, replacing one of the same id, whose epoch is never lowered by it. False, and no
        row, when its server has none: a peer declared the server dead, and nobody would remove what the
        worker leaves behind."""
        row = {
            "id": info.id,
            "server_id": info.server_id,
            "number": info.number,
            "started_at": info.started_at,
            "rss_bytes": info.rss_bytes,
            "epoch": info.epoch,
            **self._process(info),
        }
        written = self._db.write("registering a worker", self._db.queries.registry.register_worker, row)
        return written.count == 1

    def renew_epoch(self, worker_id: str) -> Renewed | None:
        """Raise the epoch of the worker's row, then read what it holds; None when it has no row.

        For a worker that does not know what came of a claim that it asked for. Waits for a claim that
        is being made, as long as for any lock; afterwards nothing that the worker has sent under
        an earlier epoch can claim anything. Every call raises it; a call too many is harmless.
        """
        queries, which = self._db.queries.registry, {"worker_id": worker_id}
        with self._db.transaction("looking for lost claims") as transaction:
            raised = transaction.run(queries.raise_epoch, which)
            # A query of its own, so that it sees the claim for which the lock has waited.
            held = transaction.run(self._db.queries.claims.whole_of_worker, which)
        row = raised.first()
        if row is None:
            return None
        return Renewed(epoch=row["epoch"], claims=tuple(self._claims_of(held.rows())))

    def deregister_worker(self, worker_id: str) -> list[Claim]:
        """Delete the row, after which the worker claims nothing more; the claims that it holds, whose jobs
        are as short as those of `claims_of_worker`. Harmless when there is no row.

        Of a worker that is dead, these are all that it will ever hold, although PostgreSQL may not have begun
        what it has sent, or may be about to commit it: this waits for a claim that is being made, and raises
        `StorageUnavailable` when that takes too long; what has made none by now finds no row. In SQLite a
        process that is dead commits nothing.
        """
        with self._db.transaction("deregistering a worker") as transaction:
            transaction.run(self._db.queries.registry.remove_worker, {"id": worker_id})
            # A query of its own, so that it sees the claim for which the first one has waited.
            held = transaction.run(self._db.queries.claims.of_worker, {"worker_id": worker_id})
        return self._claims_of(held.rows())

    def list_workers(self) -> list[WorkerInfo]:
        """All rows, by server and number."""
        return self._read("listing workers", self._db.queries.registry.list_workers, self._reader(worker_of))

    def _process(self, info: ServerInfo | WorkerInfo) -> Values:
        return process_columns(info.process, place=self._db.connection.place())

    def _reader(self, read: Callable[..., _Info]) -> Callable[[Row, ToInstant], _Info]:
        return partial(read, place=self._db.connection.place())


class NamedLocks(Operations):
    """Locks with a name, an owner and a time to live, by the database's clock. `ConfigurationError` for a
    time that is too long."""

    def acquire_lock(self, resource: str, owner: str, ttl: timedelta) -> bool:
        """Create, take over when expired, refresh for the same owner; False: another holds it."""
        wanted = {"resource": resource, "owner": owner, "ttl": check_longest(ttl, what="ttl")}
        return self._db.write("acquiring a lock", self._db.queries.registry.acquire_lock, wanted).count == 1

    def take_lock(self, resource: str, owner: str, ttl: timedelta) -> int | None:
        """`acquire_lock`, and a number that is higher than that of any lock that was taken before; None:
        another holds it."""
        queries = self._db.queries.registry
        wanted = {"resource": resource, "owner": owner, "ttl": check_longest(ttl, what="ttl")}
        with self._db.transaction("acquiring a lock", pipelined=False) as transaction:
            if transaction.run(queries.acquire_lock, wanted).count != 1:
                return None
            row = transaction.run(queries.next_number, {"name": "lock"}).first()
        return None if row is None else int(row["value"])

    def renew_lock(self, resource: str, owner: str, ttl: timedelta) -> bool:
        """Have it last for the ttl from now on; False: this owner does not hold it (any more), be it that
        nobody has taken it since it expired."""
        wanted = {"resource": resource, "owner": owner, "ttl": check_longest(ttl, what="ttl")}
        return self._db.write("renewing a lock", self._db.queries.registry.renew_lock, wanted).count == 1

    def lock_holder(self, resource: str) -> str | None:
        """The owner of a lock that has not expired; None: nobody."""
        which = {"resource": resource}
        rows = self._db.read("looking at a lock", self._db.queries.registry.lock_holder, which)
        return next((str(row["owner"]) for row in rows), None)

    def release_lock(self, resource: str, owner: str) -> bool:
        """Whether this owner held it until now; False too for one that has expired, whoever has it by now."""
        which = {"resource": resource, "owner": owner}
        row = self._db.write("releasing a lock", self._db.queries.registry.release_lock, which).first()
        return row is not None and bool(row["was_held"])

    def delete_expired_locks(self, *, limit: int) -> int:
        """Delete rows of expired locks, at most `limit`; how many. There may be as many as jobs: each
        `unique_for` is one."""
        queries, values = self._db.queries.registry, {"limit": limit}
        return self._delete_old(
            "deleting expired locks",
            any_old=queries.any_expired_lock,
            query=queries.delete_expired_locks,
            values=values,
        )


def _said(says: SelfDescription) -> Values:
    return {
        "queues": json.dumps(says.queues),
        "methods": None if says.methods is None else json.dumps(says.methods),
        "paused": says.paused,
        "trouble": storable_reason(says.trouble),
        "answers": says.answers.to_text(),
    }
