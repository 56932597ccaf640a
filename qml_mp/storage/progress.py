"""Every process: how far running jobs say that they have come, written and read.

A column of the job's row, JSON with the claim that it is about. So a new claim needs not empty it, and costs
as much as before: what an earlier claim has left there is nobody's progress.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from qml_mp.core.job import ClaimKey
from qml_mp.core.payload import encode_json
from qml_mp.core.progress import Progress, progress_of
from qml_mp.storage.database import Operations, Values
from qml_mp.storage.rows import json_of, text_of
from qml_mp.storage.storable import canonical_id, storable_text

_LONGEST_NOTE_BYTES = 1000


class JobProgress(Operations):
    """What jobs say of themselves while they run."""

    def note_progress(self, said: Mapping[ClaimKey, Progress]) -> int:
        """Write how far these claims have come; of how many. One that was lost or has ended is left alone.

        One statement, whose loss harms nothing: it is said again, or kept with the outcome.
        """
        if not said:
            return 0
        with self._db.transaction("noting progress", durable=False) as transaction:
            noted = transaction.run_each(self._db.queries.jobs.note_progress, progress_rows(said))
        return noted.count

    def progress_of(self, job_ids: Collection[str]) -> dict[str, Progress]:
        """How far these jobs have come in their newest attempt, by id as given; those that have not said it
        are left out. That of a job that runs is at most about a second old."""
        ids = {job_id: known for job_id in job_ids if (known := canonical_id(job_id))}
        if not ids:
            return {}
        found, which = {}, {"ids": sorted(ids.values())}
        for row in self._db.read("reading progress", self._db.queries.jobs.progress, which):
            value, _ = json_of(row["progress"])
            progress = progress_of(value)
            if progress is not None and isinstance(value, dict) and value.get("claim") == row["claim_seq"]:
                found[text_of(row["id"])] = progress
        return {job_id: found[known] for job_id, known in ids.items() if known in found}


def progress_rows(said: Mapping[ClaimKey, Progress]) -> Sequence[Values]:
    """What the query is run with, in the order in which everybody locks jobs."""
    return [
        {"id": key.job_id, "claim_seq": key.claim_seq, "progress": _text(progress, key.claim_seq)}
        for key, progress in sorted(said.items(), key=lambda each: (each[0].job_id, each[0].claim_seq))
    ]


def _text(progress: Progress, claim_seq: int) -> str:
    note = storable_text(progress.note, max_bytes=_LONGEST_NOTE_BYTES)
    return encode_json({**progress.to_json(), "note": note, "claim": claim_seq}, what="The progress")
