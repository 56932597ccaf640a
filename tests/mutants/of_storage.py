"""Mutants of the storage: jobs, claims, outcomes, limits and recurring templates."""

from __future__ import annotations

from tests.mutants.mutant import Change, Mutant

_SQLITE = "qml_mp/storage/sqlite/queries"
_POSTGRES = "qml_mp/storage/postgres/queries"
_CHANGES = "qml_mp/storage/row_change.py"

MUTANTS = (
    Mutant(
        name="finish-without-the-fence",
        promise="A worker whose claim is stale changes nothing.",
        changes=(
            Change(
                f"{_SQLITE}/claims.py",
                "WHERE id = :id AND claim_seq = :claim_seq AND worker_id = :held_by AND state = 'processing'",
                "WHERE id = :id AND state = 'processing' AND (:claim_seq || :held_by) IS NOT NULL",
            ),
            Change(
                f"{_POSTGRES}/claims.py",
                "AND CASE WHEN j.state = 'processing' AND j.worker_id = done.held_by THEN j.claim_seq END\n"
                "          = done.claim_seq\n",
                "AND j.state = 'processing'\n",
            ),
        ),
        tests=(
            "tests/storage/test_finish.py::test_a_stale_claim_changes_nothing",
            "tests/storage/test_exchange.py::test_a_lost_claim_changes_nothing_and_the_others_are_written",
        ),
    ),
    Mutant(
        name="claim-waits-for-locked-rows",
        promise="Workers on PostgreSQL never wait for a job that another is just taking.",
        changes=(
            Change(
                f"{_POSTGRES}/claims.py",
                '_LOCK: Final = "FOR UPDATE SKIP LOCKED"',
                '_LOCK: Final = "FOR UPDATE"',
            ),
        ),
        tests=("tests/storage/test_net.py::test_a_job_that_somebody_has_locked_is_passed_over",),
    ),
    Mutant(
        name="crash-costs-a-retry",
        promise="A crash is charged to the budget of crashes alone.",
        changes=(Change(_CHANGES, "crashes=1,\n", "crashes=1,\n                failures=1,\n"),),
        tests=("tests/storage/test_finish.py::test_a_crash_is_charged_to_its_own_budget",),
    ),
    Mutant(
        name="retry-costs-nothing",
        promise="Each failed attempt is charged, so that retries end.",
        changes=(Change(_CHANGES, "delay=delay,\n                failures=1,\n", "delay=delay,\n"),),
        tests=("tests/storage/test_finish.py::test_a_retry_waits_and_is_charged_as_a_failure",),
    ),
    Mutant(
        name="retry-delay-ignored",
        promise="A retry waits for the delay of its policy.",
        changes=(
            Change(
                _CHANGES,
                "delay=delay,\n                failures=1,\n",
                "delay=timedelta(),\n                failures=1,\n",
            ),
        ),
        tests=("tests/storage/test_finish.py::test_a_retry_waits_and_is_charged_as_a_failure",),
    ),
    Mutant(
        name="priority-reversed",
        promise="Jobs of higher priority run first.",
        changes=(
            Change(
                f"{_SQLITE}/claims.py",
                '_BEST: Final = "priority DESC, created_at, id"',
                '_BEST: Final = "priority, created_at, id"',
            ),
            Change(
                f"{_POSTGRES}/claims.py",
                '_BEST: Final = "j.priority DESC, j.created_at, j.id"',
                '_BEST: Final = "j.priority, j.created_at, j.id"',
            ),
        ),
        tests=("tests/storage/test_claims.py::test_higher_priorities_come_first_and_then_older_jobs",),
    ),
    Mutant(
        name="newest-first",
        promise="Of one priority, the oldest job runs first.",
        changes=(
            Change(
                f"{_SQLITE}/claims.py",
                '_BEST: Final = "priority DESC, created_at, id"',
                '_BEST: Final = "priority DESC, created_at DESC, id DESC"',
            ),
            Change(
                f"{_POSTGRES}/claims.py",
                '_BEST: Final = "j.priority DESC, j.created_at, j.id"',
                '_BEST: Final = "j.priority DESC, j.created_at DESC, j.id DESC"',
            ),
        ),
        tests=("tests/storage/test_claims.py::test_higher_priorities_come_first_and_then_older_jobs",),
    ),
    Mutant(
        name="delayed-job-a-second-early",
        promise="A job for later never becomes runnable before its instant.",
        changes=(
            Change(f"{_SQLITE}/jobs.py", 'AND run_at <= :now"\n', 'AND run_at <= :now + 1000000"\n'),
            Change(
                f"{_POSTGRES}/jobs.py", 'AND run_at <= now()"\n', "AND run_at <= now() + interval '1 s'\"\n"
            ),
        ),
        tests=("tests/storage/test_net.py::test_a_job_for_later_is_enqueued_at_its_instant_and_not_before",),
    ),
    Mutant(
        name="expiry-deletes-a-running-job",
        promise="Cleanup deletes only jobs that have ended.",
        changes=(
            Change(
                f"{_POSTGRES}/jobs.py",
                "j.state IN ('succeeded', 'failed', 'deleted') AND j.expires_at <= now()",
                "j.expires_at <= now()",
            ),
        ),
        tests=(
            "tests/storage/test_due.py::test_expiry_spares_a_job_that_has_not_ended_whatever_its_row_says",
        ),
    ),
    Mutant(
        name="failed-jobs-expire-as-succeeded-ones",
        promise="Failed jobs are kept for failed_ttl, so that somebody can look at them.",
        changes=(
            Change(
                _CHANGES, "ttl=retention.failed_ttl, failures=1", "ttl=retention.succeeded_ttl, failures=1"
            ),
        ),
        tests=("tests/storage/test_finish.py::test_a_failure_ends_the_job",),
    ),
    Mutant(
        name="unique-key-not-released",
        promise="A unique key is free again once its job has ended.",
        changes=(
            Change(
                "qml_mp/storage/sqlite/schema.py",
                "WHERE unique_key IS NOT NULL AND state NOT IN ('succeeded', 'failed', 'deleted');",
                "WHERE unique_key IS NOT NULL;",
            ),
            Change(
                "qml_mp/storage/postgres/migrations.py",
                "WHERE unique_key IS NOT NULL AND state IN "
                "('enqueued', 'scheduled', 'processing', 'awaiting_retry');",
                "WHERE unique_key IS NOT NULL;",
            ),
        ),
        tests=("tests/storage/test_enqueue.py::test_a_unique_key_is_free_again_when_its_job_has_ended",),
    ),
    Mutant(
        name="unique-key-ignored",
        promise="Of one unique key there is one job that has not ended.",
        changes=(Change("qml_mp/storage/storable.py", "job.unique_key,\n", "None,\n"),),
        tests=("tests/storage/test_enqueue.py::test_a_second_job_with_a_live_unique_key_is_not_written",),
    ),
    Mutant(
        name="limit-counted-per-server",
        promise="A limit holds for all servers of a storage together.",
        changes=(
            Change(
                f"{_SQLITE}/limits.py",
                "WHERE state = 'processing' GROUP BY queue, method)",
                "WHERE state = 'processing' AND server_id = :server_id GROUP BY queue, method)",
            ),
            Change(
                f"{_POSTGRES}/limits.py",
                "WHERE state = 'processing' GROUP BY 1, 2",
                "WHERE state = 'processing' AND server_id = %(server_id)s GROUP BY 1, 2",
            ),
            Change(
                "qml_mp/storage/limited.py",
                "standings = transaction.run(self._db.queries.limits.standings)",
                "standings = transaction.run(self._db.queries.limits.standings, self._wanted)",
            ),
            Change(
                "qml_mp/storage/limited.py",
                "rows = transaction.run(limits.standings).rows()",
                "rows = transaction.run(limits.standings, self._wanted).rows()",
            ),
            Change(
                "qml_mp/storage/claims.py",
                'self._db.read("looking for limits", queries.standings)',
                'self._db.read("looking for limits", queries.standings, wanted)',
            ),
        ),
        tests=("tests/storage/test_net.py::test_a_limit_holds_for_all_servers_together",),
    ),
    Mutant(
        name="rate-window-off-by-one",
        promise="No more jobs begin in a period than the rate says.",
        changes=(
            Change(
                "qml_mp/core/limits.py",
                "return -(-self.per // self.count)",
                "return -(-self.per // (self.count + 1))",
            ),
        ),
        tests=(
            "tests/unit/test_rates.py::"
            "test_no_period_has_more_than_its_count_and_a_seventh_to_the_microsecond",
            "tests/storage/test_limits.py::test_a_rate_gives_a_seventh_more_at_once_and_then_one_at_a_time",
        ),
    ),
    Mutant(
        name="paused-queue-claims",
        promise="A paused queue gives no job.",
        changes=(
            Change(
                "qml_mp/core/limits.py",
                "if limit.paused:\n            return 0",
                "if limit.paused and self.running:\n            return 0",
            ),
        ),
        tests=("tests/storage/test_limits.py::test_a_paused_queue_gives_nothing_until_it_is_resumed",),
    ),
    Mutant(
        name="follow-up-outside-the-commit",
        promise="What follows a job is enqueued in the commit of its success, or not at all.",
        changes=(
            Change(
                "qml_mp/storage/outcomes.py",
                "            enqueue_follow_ups(jobs, transaction, self._finished, asked, self._retention, "
                "freed=False)\n",
                "            self._asked = asked\n",
            ),
            Change(
                "qml_mp/storage/outcomes.py",
                "        if self._has_extras:\n"
                "            enqueue_follow_ups(jobs, transaction, self._finished, asked, self._retention, "
                "freed=True)\n",
                "",
            ),
            Change(
                "qml_mp/storage/outcomes.py",
                "        succeeded = self._succeeded\n        all_succeeded",
                "        if self._has_extras:\n"
                '            with self._db.transaction("what follows") as later:\n'
                "                for freed in (False, True):\n"
                "                    enqueue_follow_ups(self._db.queries.jobs, later, self._finished, "
                "self._asked, self._retention, freed=freed)\n"
                "        succeeded = self._succeeded\n        all_succeeded",
            ),
        ),
        tests=("tests/storage/test_follow_ups.py::test_interrupted_before_any_query_nothing_has_happened",),
    ),
    Mutant(
        name="follow-up-of-a-lost-claim",
        promise="Nothing follows a success that was not accepted.",
        changes=(
            Change(
                "qml_mp/storage/follow_ups.py",
                "if key in held and (job.unique_key in keys) is freed",
                "if (job.unique_key in keys) is freed",
            ),
        ),
        tests=("tests/storage/test_follow_ups.py::test_nothing_follows_a_claim_that_was_lost",),
    ),
    Mutant(
        name="firing-twice-after-a-take-over",
        promise="One firing of a template makes one job, however many servers fire it.",
        changes=(
            Change(
                "qml_mp/core/recurring.py",
                "        yield firing\n        if self.schedule",
                "        import time\n\n"
                "        yield firing + timedelta(microseconds=time.time_ns() // 1000 % 1_000_000)\n"
                "        if self.schedule",
            ),
        ),
        tests=("tests/storage/test_recurring.py::test_a_firing_time_that_has_had_its_job_makes_no_other",),
    ),
    Mutant(
        name="misfire-policy-ignored",
        promise="Firings that were missed are made up for as the template's misfire policy says.",
        changes=(
            Change(
                "qml_mp/core/recurring.py",
                'if self.misfire == "fire_once":\n            return',
                "if True:\n            return",
            ),
        ),
        tests=("tests/storage/test_recurring_policies.py::test_what_becomes_of_missed_firings",),
    ),
    Mutant(
        name="catch-up-forgets-a-firing",
        promise="catch_up(N) makes the newest N firings that were missed, none fewer.",
        changes=(
            Change(
                "qml_mp/core/recurring.py",
                "self.schedule.newest(limit or 1,",
                "self.schedule.newest((limit or 2) - 1 or 1,",
            ),
        ),
        tests=("tests/storage/test_recurring_policies.py::test_what_becomes_of_missed_firings",),
    ),
    Mutant(
        name="progress-without-the-fence",
        promise="What a stale worker says of its progress changes nothing.",
        changes=(
            Change(
                f"{_SQLITE}/jobs.py",
                "UPDATE qml_jobs SET progress = :progress\n"
                "        WHERE id = :id AND claim_seq = :claim_seq AND state = 'processing'",
                "UPDATE qml_jobs SET progress = :progress\n        WHERE id = :id AND :claim_seq > 0",
            ),
            Change(
                f"{_POSTGRES}/jobs.py",
                "AND CASE WHEN j.state = 'processing' THEN j.claim_seq END = said.claim_seq",
                "AND j.state = 'processing'",
            ),
        ),
        tests=(
            "tests/storage/test_progress.py::"
            "test_a_claim_that_is_lost_or_over_is_left_alone_and_the_next_one_begins_without",
        ),
    ),
    Mutant(
        name="lost-reply-treated-as-failure",
        promise="An outcome whose commit landed is accepted, even if the reply was lost.",
        changes=(
            Change(
                "qml_mp/storage/outcomes.py",
                "return Finished(accepted=True, state=present, was_written=was_written, row=job)",
                "return lost",
            ),
        ),
        tests=("tests/storage/test_finish.py::test_repeating_a_finish_whose_reply_was_lost_is_harmless",),
    ),
    Mutant(
        name="result-written-after-cancel",
        promise="A job whose cancel was asked for does not run again.",
        changes=(
            Change(_CHANGES, "if job.cancel_reason is not None and isinstance", "if False and isinstance"),
        ),
        tests=(
            "tests/storage/test_exchange.py::"
            "test_a_cancel_that_was_asked_for_is_seen_by_its_own_outcome_alone",
        ),
    ),
    Mutant(
        name="sql-value-pasted",
        promise="Values are bound and never become part of a statement.",
        changes=(
            Change(
                f"{_SQLITE}/common.py",
                "join(_FILTER[name] for name in where.values())",
                "join(_FILTER[name].replace(':error', repr(where.error)) for name in where.values())",
            ),
            Change(
                f"{_POSTGRES}/common.py",
                "join(_FILTER[name] for name in where.values())",
                "join(_FILTER[name].replace('%(error)s', repr(where.error)) for name in where.values())",
            ),
        ),
        tests=("tests/storage/test_net.py::test_a_quote_in_what_is_looked_for_is_a_quote",),
    ),
    Mutant(
        name="bulk-enqueue-not-atomic",
        promise="Many jobs are enqueued all together or not at all.",
        changes=(
            Change(
                "qml_mp/storage/jobs.py",
                "return self._enqueue(rows, wishes, retention) if rows else []",
                "return [self._enqueue([row], wishes, retention)[0] for row in rows]",
            ),
        ),
        tests=(
            "tests/storage/test_enqueue.py::test_a_row_that_the_database_refuses_in_the_middle_keeps_out_all",
        ),
    ),
    Mutant(
        name="enqueue-outside-the-callers-transaction",
        promise="A job enqueued with conn= is there if, and only if, the caller commits.",
        changes=(
            Change(
                "qml_mp/storage/jobs.py",
                "        return self._db.borrow(\n            driver_connection(connection),",
                "        if rows:\n            return self._enqueue(rows, wishes, retention)\n"
                "        return self._db.borrow(\n            driver_connection(connection),",
            ),
        ),
        tests=(  # on SQLite the caller's own lock is in the way of this mutant
            "tests/storage/test_enqueue_in.py::"
            "test_a_job_enqueued_in_a_transaction_goes_with_its_rollback[postgres]",
        ),
    ),
)
