"""Client and web process: what a person does to single jobs, those of a server that is gone too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from qml_mp.core.outcome import Cancelled, Outcome, Release
from qml_mp.errors import InvalidTransition, JobNotFound
from qml_mp.storage.store import Storage
from qml_mp.storage.values import CancelResult, Retention
from qml_mp.views.running import Owner, end_claim, owners

ASKED_TO_END = "asked to end"


@dataclass(frozen=True, slots=True, kw_only=True)
class Changing:
    """Each change says what became of the job. They raise `InvalidTransition` or `JobNotFound`."""

    storage: Storage
    retention: Retention
    reason: str
    force: bool
    """Also end a running job whose server cannot be seen and may be alive."""
    owner_of: Callable[[str], Owner | None]
    """Who holds the claim of a job; None: it does not run."""

    @classmethod
    def one_by_one(
        cls, storage: Storage, *, retention: Retention, reason: str, force: bool = False
    ) -> Changing:
        """Who runs a job is looked up whenever that matters."""
        return cls(
            storage=storage, retention=retention, reason=reason, force=force,
            owner_of=lambda job_id: owners(storage).get(job_id),
        )  # fmt: skip

    @classmethod
    def many(cls, storage: Storage, *, retention: Retention, reason: str, force: bool = False) -> Changing:
        """Who runs them is looked up once for all; the claim guards each write."""
        all_owners = cache(lambda: owners(storage))
        return cls(
            storage=storage, retention=retention, reason=reason, force=force,
            owner_of=lambda job_id: all_owners().get(job_id),
        )  # fmt: skip

    def retry(self, job_id: str) -> str:
        """Enqueue a failed job; give a running one back whose server is gone."""
        try:
            return str(self.storage.retry(job_id).state_name)
        except InvalidTransition as refused:
            return self._end_left_behind(job_id, Release(reason=self.reason), refused)

    def cancel(self, job_id: str) -> str:
        """Delete a job that waits, or that runs on a server that is gone; ask the server else."""
        match self.storage.request_cancel(job_id, reason=self.reason, retention=self.retention):
            case CancelResult.DELETED:
                return "deleted"
            case CancelResult.REQUESTED:
                owner = self.owner_of(job_id)
                if owner is not None and not owner.runs and (self.force or not owner.may_run):
                    return self._end(owner, Cancelled(reason=self.reason))
                return ASKED_TO_END
            case CancelResult.NOT_FOUND:
                raise not_found(job_id)
            case CancelResult.ALREADY_FINAL:
                raise InvalidTransition(f"The job {job_id} has ended already; it is as it was.")

    def delete(self, job_id: str) -> str:
        """Delete a job that does not run, or whose server is gone."""
        try:
            job = self.storage.delete(job_id, reason=self.reason, retention=self.retention)
            return str(job.state_name)
        except InvalidTransition as refused:
            return self._end_left_behind(job_id, Cancelled(reason=self.reason), refused)

    def retry_running(self, job_id: str) -> str:
        """Give back a job that was seen to run, if its server is gone. One that has ended since is as it was:
        nobody has asked for its retry."""
        return self._end_left_behind(job_id, Release(reason=self.reason), _has_ended(job_id))

    def delete_running(self, job_id: str) -> str:
        """Delete a job that was seen to run, if its server is gone. One that has ended since is as it was."""
        return self._end_left_behind(job_id, Cancelled(reason=self.reason), _has_ended(job_id))

    def _end_left_behind(self, job_id: str, outcome: Outcome, refused: InvalidTransition) -> str:
        """If the job runs, end its claim should its server be gone. Else raise the refusal."""
        owner = self.owner_of(job_id)
        if owner is None:
            raise refused
        return self._end(owner, outcome)

    def _end(self, owner: Owner, outcome: Outcome) -> str:
        return end_claim(self.storage, owner, outcome, retention=self.retention, force=self.force)


def _has_ended(job_id: str) -> InvalidTransition:
    return InvalidTransition(f"The job {job_id} does not run any more; it is as it was.")


def not_found(job_id: str) -> JobNotFound:
    return JobNotFound(f"No job has the id {job_id}; it may have been removed after its time to live.")
