"""Every process: claims of rows whose id is no UUID.

Another program has put them into the table, which looks at the characters of an id alone. Tickets, and
keys in shared memory, have the 16 bytes of a UUID: such a row would break its worker, and is failed before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from qml_mp.core.job import Claim
from qml_mp.core.outcome import Failure
from qml_mp.storage.row_change import unclaimable

logger = logging.getLogger(__name__)


def without_odd_ids(
    claims: tuple[Claim, ...], finish: Callable[[Claim, Failure], object]
) -> tuple[Claim, ...]:
    """The claims whose ids are UUIDs; the others are given to `finish`."""
    odd = [claim for claim in claims if not _is_uuid(claim.job.id)]
    if not odd:
        return claims
    problem = unclaimable("Its id is not a UUID.")
    for claim in odd:
        finish(claim, Failure(error=problem))
        logger.error("Job %s is failed: %s", claim.job.id, problem.message, extra={"job_id": claim.job.id})
    return tuple(claim for claim in claims if claim not in odd)


def _is_uuid(job_id: str) -> bool:
    """Of 36 digits and dashes, as the table has it: a third of what a regular expression takes."""
    return job_id[8:24:5] == "----" and job_id.count("-") == 4
