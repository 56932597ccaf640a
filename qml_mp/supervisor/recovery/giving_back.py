"""Supervisor: gives back the jobs of dead servers; those that the database refuses keep no others."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta

from qml_mp.storage.store import Storage
from qml_mp.supervisor.refused_jobs import RefusedJobs
from qml_mp.supervisor.run import Run


class GivingBack:
    """What one loop gives back, over all its turns. The refused jobs are tried again by its later ones."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._unfinished: dict[str, RefusedJobs] = {}
        self._stranded = RefusedJobs(
            run, failed="Giving back stranded jobs failed", works="All stranded jobs are given back now"
        )

    @property
    def unfinished(self) -> Collection[str]:
        """The servers of which some job has been refused, and may not have been given back since."""
        return list(self._unfinished)

    @property
    def next_in(self) -> timedelta | None:
        """Until a job of one of them is to be tried again; None: there is none."""
        pauses = (refused.left_out.next_in for refused in self._unfinished.values())
        return min((each for each in pauses if each is not None), default=None)

    def reclaim(
        self,
        storage: Storage,
        server_id: str,
        *,
        silent_for: timedelta | None,
        newest: datetime | None = None,
        judge: str | None = None,
        dead_workers: Collection[str] | None = None,
    ) -> int:
        """`Storage.reclaim_server` of all that can be given back; how many."""
        refused = self._unfinished.get(server_id) or self._of(server_id)
        try:
            with refused.told() as left_out:
                count = storage.reclaim_server(
                    server_id,
                    silent_for=silent_for,
                    newest=newest,
                    judge=judge,
                    dead_workers=dead_workers,
                    retention=self._run.retention,
                    left_out=left_out,
                )
            # Not where it fails: a job that is left out no longer is the dead server's again then.
            self._unfinished.pop(server_id, None)
            return count
        finally:
            if refused.left_out.ids:
                self._unfinished[server_id] = refused

    def requeue_stranded(
        self, storage: Storage, stale_before: datetime, *, spare_servers: Collection[str]
    ) -> int:
        """`Storage.requeue_stranded_jobs` likewise."""
        with self._stranded.told() as left_out:
            return storage.requeue_stranded_jobs(
                stale_before,
                spare_servers=spare_servers,
                retention=self._run.retention,
                left_out=left_out,
            )

    def _of(self, server_id: str) -> RefusedJobs:
        return RefusedJobs(
            self._run,
            failed=f"Giving back the jobs of dead server {server_id} failed",
            works=f"All jobs of dead server {server_id} are given back now",
        )
