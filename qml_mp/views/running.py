"""Client and web process: a person's way out of a job that counts as running although its server is gone."""

from __future__ import annotations

from dataclasses import dataclass

from qml_mp.core.job import Claim
from qml_mp.core.outcome import Outcome
from qml_mp.core.state import StateName
from qml_mp.errors import InvalidTransition
from qml_mp.host import is_alive
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Retention
from qml_mp.views.liveness import Liveness, Standing, liveness_by_server


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who holds the claim of a running job."""

    claim: Claim
    liveness: Liveness | None
    """Of its server; None: that is not registered."""
    worker_pid: int | None
    """Its worker's, if that is seen to run."""

    @property
    def runs(self) -> bool:
        """Whether the server or the worker is seen to run."""
        return self.worker_pid is not None or self._stands(Standing.ALIVE)

    @property
    def may_run(self) -> bool:
        """Whether the job may be running somewhere that cannot be seen from here."""
        return self.runs or self._stands(Standing.NOT_KNOWN)

    def __str__(self) -> str:
        known = "not registered" if self.liveness is None else str(self.liveness)
        return f"server {self.claim.server_id}: {known}"

    def _stands(self, standing: Standing) -> bool:
        return self.liveness is not None and self.liveness.standing is standing


def owners(storage: Storage) -> dict[str, Owner]:
    """Who holds the claims of all jobs that run, by the id of the job."""
    claims = storage.claims()
    servers = storage.list_servers() if claims else []
    liveness = liveness_by_server(storage, servers, now=storage.now())
    pids = {
        worker.id: worker.process.pid
        for worker in (storage.list_workers() if claims else ())
        if is_alive(worker.process)
    }
    return {
        claim.job.id: Owner(
            claim=claim, liveness=liveness.get(claim.server_id), worker_pid=pids.get(claim.worker_id)
        )
        for claim in claims
    }


def end_claim(storage: Storage, owner: Owner, outcome: Outcome, *, retention: Retention, force: bool) -> str:
    """Write the outcome of a claim on behalf of a server that is gone; what became of the job, in words.

    Raises `InvalidTransition` when the server or the worker lives, or may live and `force` is not given,
    and when the claim has ended meanwhile.
    """
    job_id = owner.claim.job.id
    if owner.runs:
        raise InvalidTransition(_why_not(owner))
    if owner.may_run and not force:
        raise InvalidTransition(
            f"The job {job_id} may be running ({owner}). Ask its server to end it: `qml-mp jobs cancel "
            f"{job_id}`. If you know that its worker is gone, repeat this with --force; the job would run "
            "twice otherwise."
        )
    finished = storage.finish(owner.claim, outcome, retention=retention)
    if not finished.accepted or finished.state in (StateName.SUCCEEDED, StateName.FAILED):  # its own end
        raise InvalidTransition(f"The job {job_id} was ended or given to another worker at this moment.")
    return f"{finished.state} (it was left by {owner})"


def _why_not(owner: Owner) -> str:
    job_id = owner.claim.job.id
    if owner.worker_pid is not None and owner.liveness is not None and not owner.liveness.is_likely:
        return (
            f"The job {job_id} still runs in process {owner.worker_pid}, which has outlived its {owner}. "
            "It ends within orphan_grace (5s by default), or when a server starts on this machine; try again."
        )
    return f"The job {job_id} is running ({owner}). End it first: `qml-mp jobs cancel {job_id}`."
