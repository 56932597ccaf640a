"""Anywhere: of the claims that a worker holds the one that it has begun, as far as rows tell."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from qml_mp.core.job import Claim


def begun_by_worker(claims: Iterable[Claim]) -> dict[str, Claim]:
    """By the id of the worker: the first in the order in which a worker begins what it has claimed."""
    return {claim.worker_id: claim for claim in sorted(claims, key=_in_order, reverse=True)}


def _in_order(claim: Claim) -> tuple[bool, datetime, int, datetime, str]:
    job = claim.job
    return job.started_at is not None, job.started_at or job.created_at, -job.priority, job.created_at, job.id
