"""Every process: claims and what they guard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial

from qml_mp.core.job import Claim, ClaimKey
from qml_mp.core.outcome import Outcome
from qml_mp.errors import InvalidJob, OutcomeRefused, StorageError
from qml_mp.storage.database import Operations, Result, Values
from qml_mp.storage.job_rows import claim_of, new_claims
from qml_mp.storage.limited import LimitedClaim, look_of, waiting_query
from qml_mp.storage.outcomes import Outcomes, Writing, order_of_locks
from qml_mp.storage.passing_over import fail_unclaimable, without_odd_ids
from qml_mp.storage.queries import UNDER_LIMITS, ChoiceQueries, TakeQueries
from qml_mp.storage.rows import Columns
from qml_mp.storage.streaks import Streak, streak_of
from qml_mp.storage.values import Exchanged, Fetch, Finished, Retention

_MOST_PASSED = 100
"""Jobs that cannot be claimed and are passed over before a claim is given up until the next time."""

FINISHING = "finishing a job"
CLAIMING = "claiming a job"


class JobLocker(Operations):
    """Claims and everything that is guarded by them."""

    _streak: Streak | None = None
    """Written by an exchange for the next one; None: look."""
    _is_limited = False
    """Whether there were limits when this process last looked: their claims take other queries."""

    def exchange(
        self,
        finished: Outcomes,
        *,
        fetch: Fetch | None,
        limit: int,
        retention: Retention,
        check: Callable[[], None] | None = None,
    ) -> Exchanged:
        """Write the outcomes of these claims, and claim up to `limit` jobs more, in one commit.

        The jobs are those that `fetch_and_lock_job` would give one after the other, the best first. Who takes
        several at a time and asks again with the same `fetch` may be given the next ones as of a look that
        is at most 50 ms old. While there are limits, the outcomes are committed first, and what a limit is
        about is claimed one at a time.
        Each outcome is guarded by its own claim: one whose claim was lost changes nothing, and the others
        are written all the same. Repeating it after a lost reply is harmless to the outcomes, as
        with `finish`. Without a claim of more jobs, `check` is called once nobody else can write, for which
        this may have waited long; nothing is written if it raises.

        Raises `OutcomeRefused` for the first outcome that cannot be stored; nothing of the exchange is
        written then: write the others and what takes its place, each alone if need be. That the next job
        cannot be claimed hinders no outcome (it takes a commit more then). After any other error the
        outcomes may have been written, and nothing is known of the next claims: see `fetch_and_lock_job`.
        """
        if not finished:
            return Exchanged(finished=(), claims=self._claim(fetch, limit))
        exchange = partial(self._exchange, finished, fetch, limit, retention, check)
        return self._unless_refused(exchange, finished, fetch, limit, retention, check)

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
        """The claims this worker holds, for its supervisor: their jobs are as short as those of
        `claims_of_server`."""
        return self._read_claims(self._db.queries.claims.of_worker, worker_id=worker_id)

    def claims_of_server(self, server_id: str) -> list[Claim]:
        """The claims held by all workers of one run of a server, to be told apart or given back: their jobs
        are without payload, last error and long metadata."""
        return self._read_claims(self._db.queries.claims.of_server, server_id=server_id)

    def claims(self) -> list[Claim]:
        """Every claim there is, of whatever server, to be shown or looked up: their jobs are as short as
        those of `claims_of_server`."""
        return self._read_claims(self._db.queries.claims.all)

    def _unless_refused(
        self,
        exchange: Callable[[], Exchanged],
        finished: Outcomes,
        fetch: Fetch | None,
        limit: int,
        retention: Retention,
        check: Callable[[], None] | None = None,
    ) -> Exchanged:
        """What the exchange gives; if some of it was refused, the outcomes first, whatever jobs come next."""
        try:
            done = exchange()
        except (InvalidJob, StorageError) as error:
            if not self._db.refuses_values(error):
                raise
        else:
            claims = without_odd_ids(done.claims, partial(self.finish, retention=retention))
            if claims is done.claims:
                return done
            return replace(done, claims=claims or self._claim(fetch, limit, ended=finished))
        written = self._finish_one_by_one(finished, retention, check) if finished else ()
        return Exchanged(finished=written, claims=self._claim(fetch, limit, ended=finished))

    def _exchange(
        self,
        finished: Outcomes,
        fetch: Fetch | None,
        limit: int,
        retention: Retention,
        check: Callable[[], None] | None,
    ) -> Exchanged:
        writing = Writing(self._db, finished, retention)
        if fetch is None or limit < 1:
            self._streak = None
            writing.commit(FINISHING, self._db.queries.claims.succeed_and_tell, check=check)
            return Exchanged(finished=writing.finished(), claims=())
        if self._is_limited:
            self._streak = None
            return self._exchange_under_limits(writing, finished, fetch, limit)
        take, wanted, streak = self._next_take(fetch, limit)
        if writing.is_of_successes and take.exchange is not None:
            values = {**writing.values, **wanted}
            result = self._db.write_each(FINISHING, take.exchange, writing.rows, values)
            writing.sent_by(result)
            claimed = self._claimed_in_a_row(result, fetch, limit, streak)
        else:
            with self._db.transaction(FINISHING) as transaction:
                writing.send(transaction)
                result = transaction.run(take.claim, wanted)
                if self._db.has_one_writer and not result.tuples():
                    self._is_limited = bool(transaction.run(self._db.queries.limits.any).rows())
            claimed = self._claimed(result, fetch)
        if not claimed and (streak is not None or self._is_limited):
            claimed = self._claim(fetch, limit, ended=finished)
        return Exchanged(finished=writing.finished(), claims=claimed)

    def _next_take(self, fetch: Fetch, limit: int) -> tuple[TakeQueries, Values, Streak | None]:
        """How to claim the next ones, and the streak that this goes on with."""
        streak, self._streak = self._streak, None
        take, wanted = self._take(fetch, limit)
        claims = self._db.queries.claims
        # Where all queues are served, jobs of one method are of one kind, wherever they are.
        behind = claims.behind if fetch.queues else claims.behind_in_all
        if streak is None or behind is None or not streak.goes_on(fetch, limit):
            return take, wanted, None
        return behind, {**wanted, **streak.values}, streak

    def _claimed_in_a_row(
        self, result: Result, fetch: Fetch, limit: int, streak: Streak | None
    ) -> tuple[Claim, ...]:
        """What was claimed at once with outcomes; the next exchange may go on behind it."""
        claimed = self._claimed(result, fetch)
        if limit == len(claimed):
            self._streak = streak_of(claimed, fetch, result.first(), streak)
        return claimed

    def _exchange_under_limits(
        self, writing: Writing, finished: Outcomes, fetch: Fetch, limit: int
    ) -> Exchanged:
        """The outcomes, then the claim; in one transaction only where there is one writer: elsewhere it would
        hold the rows of the outcomes while it waits for a limit."""
        if self._db.has_one_writer:
            claim = LimitedClaim(self._db, self._take(fetch, limit)[1], limit=limit)
            with self._db.transaction(FINISHING) as transaction:
                writing.send(transaction)
                claimed = self._in_order(claim.rows_in(transaction), fetch)
            self._is_limited = bool(claim.look.standings)
            return Exchanged(finished=writing.finished(), claims=claimed)
        writing.commit(FINISHING, self._db.queries.claims.succeed)
        done = writing.finished()
        return Exchanged(finished=done, claims=self._claim(fetch, limit, ended=finished))

    def _finish_one_by_one(
        self, finished: Outcomes, retention: Retention, check: Callable[[], None] | None
    ) -> tuple[Finished, ...]:
        """Write the outcomes in one commit, with a look at each, so that a refusal is known to be of it."""
        newest: ClaimKey | None = None
        writings: dict[ClaimKey, Writing] = {}
        try:
            with self._db.transaction(FINISHING, pipelined=False) as transaction:
                if check is not None:
                    check()
                for claim, outcome in sorted(finished, key=order_of_locks):
                    newest = claim.key
                    writings[newest] = Writing(self._db, [(claim, outcome)], retention)
                    writings[newest].send(transaction)
        except (InvalidJob, StorageError) as error:
            if newest is None or not self._db.refuses_values(error):
                raise
            raise OutcomeRefused(str(error), job_id=newest.job_id, claim_seq=newest.claim_seq) from error
        return tuple(done for claim, _ in finished for done in writings[claim.key].finished())

    def _claim(self, fetch: Fetch | None, limit: int, *, ended: Outcomes = ()) -> tuple[Claim, ...]:
        """Claim up to `limit` jobs, and fail those that refuse to be claimed. `ended` is what was written
        just before, of which other workers were not told."""
        if fetch is None or limit < 1:
            return ()
        for _ in range(_MOST_PASSED):
            found = self._claim_what_can_be(fetch, limit, ended)
            claims = without_odd_ids(found, partial(self.finish, retention=fetch.retention))
            if claims or not found:
                return claims
        return ()

    def _claim_what_can_be(self, fetch: Fetch, limit: int, ended: Outcomes) -> tuple[Claim, ...]:
        take, wanted = self._take(fetch, limit)
        first = self._choice(fetch.queues).one.best
        if self._db.has_one_writer and not self._db.read("looking for a job", first, wanted):
            return ()
        for _ in range(_MOST_PASSED):
            limited = LimitedClaim(self._db, wanted, limit=limit) if self._is_limited else None
            try:
                if limited is not None:
                    return self._claim_under_limits(limited, fetch, wanted, ended)
                claimed = self._claimed(self._db.write(CLAIMING, take.claim, wanted), fetch)
                if not claimed and self._db.has_one_writer:
                    self._is_limited = bool(self._db.read("looking for limits", self._db.queries.limits.any))
                if claimed or not self._is_limited:
                    return claimed
            except StorageError as error:
                if not self._db.refuses_values(error):
                    raise
                if limited is None:
                    fail_unclaimable(self._db, take, wanted, fetch.retention)
                else:
                    of_kinds = self._db.queries.claims.of_kinds
                    fail_unclaimable(self._db, of_kinds, limited.taking, fetch.retention)
        return ()

    def _claim_under_limits(
        self, limited: LimitedClaim, fetch: Fetch, wanted: Values, ended: Outcomes
    ) -> tuple[Claim, ...]:
        queries = self._db.queries.limits
        if self._db.has_one_writer:  # idle workers never hold up one that has work to commit
            standings = self._db.read("looking for limits", queries.standings)
            waiting = self._db.read("looking for a job", waiting_query(self._db, wanted), wanted)
            if not look_of(self._db, standings=standings, waiting=waiting).next().kinds:
                self._is_limited = bool(standings)
                return ()
        claimed = self._in_order(limited.rows(), fetch)
        self._is_limited = bool(limited.look.standings)
        jobs = (claim.job for claim in claimed)
        if queries.tell_of_a_place and limited.look.has_place_for_others(
            (claim.job for claim, _ in ended), jobs
        ):
            self._db.write("telling of a free place", queries.tell_of_a_place)
        return claimed

    def _take(self, fetch: Fetch, limit: int) -> tuple[TakeQueries, Values]:
        """How to claim up to so many, at least one."""
        choice = self._choice(fetch.queues)
        wanted = {
            "worker_id": fetch.worker_id,
            "server_id": fetch.server_id,
            "registered": fetch.registered,
            "epoch": fetch.epoch,
            "methods": None if fetch.methods is None else list(fetch.methods),
            "queues": list(fetch.queues),
            "queue": next(iter(fetch.queues), None),
            "limit": limit,
            "read_at_once": True,
        }
        return choice.one if limit == 1 else choice.several, wanted

    def _choice(self, queues: tuple[str, ...]) -> ChoiceQueries:
        claims = self._db.queries.claims
        match queues:
            case ():
                return claims.from_all
            case (_,):
                return claims.from_one
            case _:
                return claims.from_several

    def _claimed(self, result: Result, fetch: Fetch) -> tuple[Claim, ...]:
        """The best first; and it may say whether there are limits."""
        first = None if self._db.has_one_writer else result.first()
        if first is not None:
            self._is_limited = first["kinds"] == UNDER_LIMITS
        return self._in_order(result.tuples(), fetch)

    def _in_order(self, rows: Sequence[Columns], fetch: Fetch) -> tuple[Claim, ...]:
        """The best first."""
        claims = new_claims(rows, self._db.instant, (fetch.worker_id, fetch.server_id))
        return tuple(sorted(claims, key=_order_of_claims) if len(claims) > 1 else claims)

    def _read_claims(self, query: str, **which: str) -> list[Claim]:
        return self._read("reading claims", query, claim_of, which)


def _order_of_claims(claim: Claim) -> tuple[int, datetime, str]:
    """Highest priority, then oldest."""
    return -claim.job.priority, claim.job.created_at, claim.job.id
