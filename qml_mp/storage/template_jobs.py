"""Every process: what became of the newest jobs of recurring templates, for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from qml_mp.core.state import StateName
from qml_mp.storage.database import Operations
from qml_mp.storage.rows import Row, ToInstant, state_name_of, text_of


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateJob:
    """A job that a template has made."""

    recurring_id: str
    job_id: str
    state: StateName
    fire_at: datetime | None
    """The firing that it is for; None: somebody ran the template by hand."""
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    error: str | None
    """The newest, as "type: message"."""


class TemplateJobs(Operations):
    """One statement for all templates of a page, along the index of firings."""

    def newest_jobs_of(self, recurring_ids: Sequence[str], *, limit: int) -> dict[str, list[TemplateJob]]:
        """Up to so many of each, the newest first; [] for one that has made none that is kept."""
        which = {"ids": list(recurring_ids), "limit": limit}
        found: dict[str, list[TemplateJob]] = {each: [] for each in recurring_ids}
        query = self._db.queries.recurring.newest_jobs
        for job in self._read("reading jobs of templates", query, template_job_of, which):
            found[job.recurring_id].append(job)
        return {
            each: sorted(jobs, key=lambda job: (job.created_at, job.job_id), reverse=True)[:limit]
            for each, jobs in found.items()
        }


def template_job_of(row: Row, instant: ToInstant) -> TemplateJob:
    """What `newest_jobs` gives."""
    created_at, error = instant(row["created_at"]), row["last_error_type"]
    assert created_at is not None  # the column has no NULL
    return TemplateJob(
        recurring_id=text_of(row["recurring_id"]),
        job_id=text_of(row["id"]),
        state=state_name_of(row["state"]),
        fire_at=instant(row["fire_at"]),
        created_at=created_at,
        started_at=instant(row["started_at"]),
        finished_at=instant(row["finished_at"]),
        error=None if error is None else f"{text_of(error)}: {text_of(row['last_error_message'] or '')}",
    )
