"""Every process: claims and what they guard."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from qml_mp.core.job import Claim, ClaimKey
from qml_mp.core.outcome import Outcome
from qml_mp.errors import InvalidJob, OutcomeRefused, StorageError
from qml_mp.storage.database import Part, Result, Transaction
from qml_mp.storage.outcomes import Write, finished_by, write_outcome
from qml_mp.storage.queries import ChoiceQueries
from qml_mp.storage.row_change import unclaimable
from qml_mp.storage.rows import claim_of
from qml_mp.storage.values import BY_DEFAULT, Exchanged, Fetch, Finished, Retention

logger = logging.getLogger(__name__)

_MOST_PASSED = 100
"""Jobs that cannot be claimed and are passed over before a claim is given up until the next time."""

Outcomes = Sequence[tuple[Claim, Outcome]]


class JobLocker(Part):
    """Claims and everything that is guarded by them."""

    def exchange(
        self, finished: Outcomes, *, fetch: Fetch | None, limit: int, retention: Retention
    ) -> Exchanged:
        """Write the outcomes of these claims, and claim up to `limit` jobs more, in one commit.

        Each outcome is guarded by its own claim: one whose claim was lost changes nothing, and the others
        are written all the same. Repeating it after a lost reply is harmless to the outcomes, as
        with `finish`.

        Raises `OutcomeRefused` for the first outcome that cannot be stored; nothing of the exchange is
        written then: write the others and what takes its place, each alone if need be. That the next job
        cannot be claimed hinders no outcome (it takes a commit more then). After any other error the
        outcomes may have been written, and nothing is known of the next claims: see `fetch_and_lock_job`.
        """
        if not finished:
            return Exchanged(finished=(), claims=self._claim(fetch, limit))
        try:
            return self._exchange(finished, fetch, limit, retention)
        except (InvalidJob, StorageError) as error:
            if not self._db.refuses_values(error):
                raise
        # One of them was refused. The outcomes first, so that they do not depend on the jobs that come next.
        written = self._finish_one_by_one(finished, retention)
        return Exchanged(finished=written, claims=self._claim(fetch, limit))

    def fetch_and_lock_job(self, fetch: Fetch) -> Claim | None:
        """Claim the best runnable job of the queues that has one of the methods: highest priority, then
        oldest (`created_at`, `id`).

        One statement: lock, skip what others have locked, `claim_seq + 1`, stamp worker, server
        and `started_at`, state Processing. No cap on how far it looks. None: nothing to do.

        After any error the claim may have been made all the same, or may still come to be made by a
        server that was frozen: a `registered` worker calls `renew_epoch` before it asks again.
        """
        return next(iter(self._claim(fetch, 1)), None)

    def finish(self, claim: Claim, outcome: Outcome, *, retention: Retention) -> Finished:
        """Write the outcome of a claim.

        Repeating it after a lost reply is harmless: it then reads the row, finds its own
        `claim_seq` final (or past Processing by its own hand) and says accepted. A claim that was
        lost changes nothing. Outcomes that are attempts without success are added to the
        history (`attempts`) in the same commit. A job asked to cancel (`request_cancel`) that
        comes to Retry or Crash or Release ends Deleted with that reason instead.

        Raises `OutcomeRefused` when it is this very outcome that cannot be stored.
        """
        return self.exchange([(claim, outcome)], fetch=None, limit=0, retention=retention).finished[0]

    def claims_of_worker(self, worker_id: str) -> list[Claim]:
        """The claims this worker holds; after its death, what its supervisor has to settle."""
        return self._read_claims(self._db.queries.claims.of_worker, worker_id=worker_id)

    def claims_of_server(self, server_id: str) -> list[Claim]:
        """The claims held by all workers of one run of a server."""
        return self._read_claims(self._db.queries.claims.of_server, server_id=server_id)

    def claims(self) -> list[Claim]:
        """Every claim there is, of whatever server: what the sweep at start judges."""
        return self._read_claims(self._db.queries.claims.all)

    def _exchange(
        self, finished: Outcomes, fetch: Fetch | None, limit: int, retention: Retention
    ) -> Exchanged:
        with self._db.transaction("finishing a job") as transaction:
            writes = {
                claim.key: write_outcome(self._db, transaction, claim, outcome, retention)
                for claim, outcome in _in_order_of_locks(finished)
            }
            claimed = [] if fetch is None else self._send_claims(transaction, *self._choice(fetch), limit)
        return Exchanged(finished=self._finished(finished, writes), claims=self._claimed(claimed))

    def _finish_one_by_one(self, finished: Outcomes, retention: Retention) -> tuple[Finished, ...]:
        """Write the outcomes in one commit, with a look at each, so that a refusal is known to be of it."""
        writes: dict[ClaimKey, Write] = {}
        newest: ClaimKey | None = None
        try:
            with self._db.transaction("finishing a job", pipelined=False) as transaction:
                for claim, outcome in _in_order_of_locks(finished):
                    newest = claim.key
                    writes[newest] = write_outcome(self._db, transaction, claim, outcome, retention)
        except (InvalidJob, StorageError) as error:
            if newest is None or not self._db.refuses_values(error):
                raise
            raise OutcomeRefused(str(error), job_id=newest.job_id, claim_seq=newest.claim_seq) from error
        return self._finished(finished, writes)

    def _finished(self, finished: Outcomes, writes: dict[ClaimKey, Write]) -> tuple[Finished, ...]:
        return tuple(finished_by(self._db, writes[claim.key]) for claim, _ in finished)

    def _claim(self, fetch: Fetch | None, limit: int) -> tuple[Claim, ...]:
        """Claim up to `limit` jobs, and fail those that refuse to be claimed."""
        if fetch is None or limit < 1:
            return ()
        queries, wanted = self._choice(fetch)
        if self._db.has_one_writer and not self._db.read("looking for a job", queries.best, wanted):
            return ()
        for _ in range(_MOST_PASSED):
            try:
                if limit == 1:
                    return self._claimed([self._db.write("claiming a job", queries.claim, wanted)])
                with self._db.transaction("claiming jobs") as transaction:
                    claimed = self._send_claims(transaction, queries, wanted, limit)
                return self._claimed(claimed)
            except StorageError as error:
                if not self._db.refuses_values(error):
                    raise
                self._fail_unclaimable(queries, wanted)
        return ()

    def _send_claims(
        self, transaction: Transaction, queries: ChoiceQueries, wanted: dict[str, Any], limit: int
    ) -> list[Result]:
        """One by one, each the best that is left; where that costs no round trip, up to the first in vain."""
        claimed: list[Result] = []
        for _ in range(limit):
            claimed.append(transaction.run(queries.claim, wanted))
            if self._db.has_one_writer and claimed[-1].first() is None:
                break
        return claimed

    def _claimed(self, results: Iterable[Result]) -> tuple[Claim, ...]:
        return tuple(self._claims_of(row for result in results for row in result.rows()))

    def _fail_unclaimable(self, queries: ChoiceQueries, wanted: dict[str, Any]) -> None:
        """Set Failed the best job, if it is proved to be one that cannot be claimed. Another worker may
        have done so meanwhile: the best job is then another one, and stays as it is."""
        claims = self._db.queries.claims
        what = "passing over a job that cannot be claimed"
        with self._db.transaction(what, pipelined=False) as transaction:
            best = transaction.run(queries.best, wanted).first()
            if best is None:
                return
            refusal = transaction.refusal_of(claims.claim_this, wanted | {"id": best["id"]})
            if refusal is None:
                return
            job_id, problem = str(best["id"]), unclaimable(refusal)
            change = {"id": job_id, "ttl": BY_DEFAULT.failed_ttl}
            error = {"type": problem.type, "message": problem.message}
            transaction.run(claims.fail_unclaimable, change | error)
        logger.error("Job %s is failed: %s", job_id, problem.message, extra={"job_id": job_id})

    def _choice(self, fetch: Fetch) -> tuple[ChoiceQueries, dict[str, Any]]:
        claims = self._db.queries.claims
        wanted = {
            "worker_id": fetch.worker_id,
            "server_id": fetch.server_id,
            "registered": fetch.registered,
            "epoch": fetch.epoch,
            "methods": None if fetch.methods is None else list(fetch.methods),
            "queues": list(fetch.queues),
            "queue": next(iter(fetch.queues), None),
        }
        match fetch.queues:
            case ():
                return claims.from_all, wanted
            case (_,):
                return claims.from_one, wanted
            case _:
                return claims.from_several, wanted

    def _read_claims(self, query: str, **which: str) -> list[Claim]:
        return self._read("reading claims", query, claim_of, which)


def _in_order_of_locks(finished: Outcomes) -> Outcomes:
    """As everybody locks several claims, oldest first, so that no two wait for each other."""

    def age(of: tuple[Claim, Outcome]) -> tuple[datetime, str]:
        job = of[0].job
        return job.started_at or job.created_at, job.id

    return sorted(finished, key=age)
