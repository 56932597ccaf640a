"""Mutants of running servers: workers, the supervisor, the guardian, stops, kills and reloads."""

from __future__ import annotations

from tests.mutants.mutant import Change, Mutant

_LIMITS = "qml_mp/supervisor/parts/job_limits.py"
_LADDER = "qml_mp/supervisor/workers/ladder.py"

MUTANTS = (
    Mutant(
        name="reclaim-before-proved-dead",
        promise="A job runs again only when the process that ran it is proved dead.",
        changes=(
            Change(
                "qml_mp/supervisor/recovery/sweep.py",
                "is_alive(worker, is_local=True) is not False]\n    for worker",
                "is_alive(worker, is_local=True) is None]\n    for worker",
            ),
        ),
        tests=(
            "tests/processes/test_peers.py::"
            "test_of_a_stopped_server_of_this_host_the_workers_are_killed_before_others_run_its_jobs",
        ),
    ),
    Mutant(
        name="prefetched-jobs-start-while-paused",
        promise="Once claims are paused, no job begins that a worker holds.",
        changes=(
            Change(
                "qml_mp/child/loop.py",
                "return self._commands.leaving or self._commands.paused or self._runner",
                "return self._commands.leaving or self._runner",
            ),
        ),
        tests=(
            "tests/processes/test_faults_held.py::"
            "test_a_server_whose_claims_are_paused_holds_none_after_the_job_in_hand",
        ),
    ),
    Mutant(
        name="drain-claims-on",
        promise="A worker that was told to leave claims and begins no other job.",
        changes=(
            Change(
                "qml_mp/child/loop.py",
                "return self._commands.leaving or self._commands.paused or self._runner",
                "return self._commands.paused or self._runner",
            ),
        ),
        tests=("tests/processes/test_net.py::test_a_server_that_is_told_to_stop_begins_no_other_job",),
    ),
    Mutant(
        name="deadline-on-the-wrong-clock",
        promise="Time limits are counted on a clock that nobody sets.",
        changes=(
            Change("qml_mp/child/reports.py", "now_ns = time.monotonic_ns()", "now_ns = time.time_ns()"),
        ),
        tests=(
            "tests/processes/test_ladder.py::"
            "test_a_job_past_its_limit_that_does_not_handle_is_killed_and_recorded_as_a_timeout[sqlite-deaf]",
        ),
    ),
    Mutant(
        name="timeout-not-applied",
        promise="A job that passes its time limit is ended.",
        changes=(
            Change(
                _LIMITS,
                "timeout = self._graces.timeout(at=limit_at) if now >= limit_at else None",
                "timeout = None if now >= limit_at else None",
            ),
        ),
        tests=(
            "tests/processes/test_ladder.py::"
            "test_a_job_past_its_limit_unwinds_through_finally_and_is_recorded_as_a_timeout",
        ),
    ),
    Mutant(
        name="cancel-of-a-running-job-ignored",
        promise="A running job whose cancel is asked for is ended.",
        changes=(
            Change(
                _LIMITS,
                "cancel = None if view.is_over else worker.cancel_of(view.key)",
                "cancel = None",
            ),
        ),
        tests=("tests/processes/test_ladder.py::test_a_cancel_reaches_a_running_job_through_storage",),
    ),
    Mutant(
        name="term-not-followed-by-kill",
        promise="A job that ignores the interruption is killed after term_grace.",
        changes=(
            Change(
                _LADDER,
                "if now >= self.kill_at:\n            return Rung.KILL",
                "if now >= self.kill_at:\n            return Rung.DUMP_STACK",
            ),
        ),
        tests=("tests/unit/test_outcome.py",),
    ),
    Mutant(
        name="job-killed-without-an-interruption",
        promise="A job is interrupted before it is killed, so that its finally blocks run.",
        changes=(
            Change(
                _LADDER,
                "if now >= self.interrupt_at:\n            return Rung.INTERRUPT",
                "if now >= self.interrupt_at:\n            return Rung.ASK",
            ),
        ),
        tests=("tests/unit/test_outcome.py",),
    ),
    Mutant(
        name="process-group-not-killed",
        promise="What a job has started dies with its worker.",
        changes=(
            Change(
                "qml_mp/supervisor/workers/fork.py",
                "os.killpg(pid, signal.SIGKILL)",
                "os.kill(pid, signal.SIGKILL)",
            ),
        ),
        tests=(
            "tests/processes/test_hygiene.py::"
            "test_a_process_that_a_job_leaves_is_killed_when_its_worker_leaves",
        ),
    ),
    Mutant(
        name="replacement-without-back-off",
        promise="Workers that cannot boot are forked ever more rarely.",
        changes=(
            Change(
                "qml_mp/supervisor/workers/boots.py",
                "return self.useless == 0 or (booting == 0 and now >= self._not_before)",
                "return self.useless == 0 or booting == 0",
            ),
        ),
        tests=("tests/processes/test_net.py::test_workers_that_cannot_boot_are_forked_with_growing_pauses",),
    ),
    Mutant(
        name="orphaned-job-not-asked",
        promise="A job whose supervisor is gone is asked to end, and may finish within orphan_grace.",
        changes=(
            Change(
                "qml_mp/child/commands.py",
                "self._attempt.cancel = self._attempt.cancel or CancelReason.ORPHANED",
                "pass",
            ),
        ),
        tests=(
            "tests/processes/test_stopping.py::"
            "test_an_orphaned_job_that_heeds_its_token_finishes_within_the_grace",
        ),
    ),
    Mutant(
        name="orphan-left",
        promise="No worker outlives a killed supervisor for longer than orphan_grace.",
        changes=(
            Change(
                "qml_mp/supervisor/parts/guardian.py",
                "    for orphan in orphans:\n        kill_stranger(orphan)\n    _wait",
                "    _wait",
            ),
        ),
        tests=(
            "tests/processes/test_stopping.py::"
            "test_no_worker_outlives_a_killed_supervisor_and_the_next_one_runs_the_jobs_again",
        ),
    ),
    Mutant(
        name="outcome-in-shared-memory-dropped",
        promise="A job that has ended does not run again because its worker died.",
        changes=(
            Change(
                "qml_mp/supervisor/recovery/settle.py",
                "outcome = death.ended.get(claim.key)",
                "outcome = None",
            ),
        ),
        tests=(
            "tests/processes/test_faults_failpoints.py::"
            "test_a_worker_killed_before_its_outcome_is_written_does_not_run_the_job_again",
        ),
    ),
    Mutant(
        name="death-charged-to-jobs-not-begun",
        promise="The death of a worker costs the jobs nothing that it held and had not begun.",
        changes=(
            Change(
                "qml_mp/supervisor/recovery/settle.py",
                "max_crashes=budget) if is_in_hand else _given_back(death, claim)",
                "max_crashes=budget)",
            ),
        ),
        tests=(
            "tests/processes/test_faults_held.py::"
            "test_a_worker_killed_between_two_jobs_is_charged_for_none_that_it_holds_or_that_is_on_its_way",
        ),
    ),
    Mutant(
        name="crash-budget-off-by-one",
        promise="A job whose process dies max_crashes times ends Failed.",
        changes=(
            Change(
                "qml_mp/core/outcome.py",
                "if crashes_before + 1 >= max_crashes:",
                "if crashes_before >= max_crashes:",
            ),
        ),
        tests=("tests/processes/test_crashes.py::test_a_job_that_exits_its_process_is_never_a_success",),
    ),
    Mutant(
        name="memory-limit-ignored",
        promise="A job above the hard memory limit is killed.",
        changes=(
            Change(
                _LIMITS,
                "is_still = used_bytes > self._hard_bytes and worker.look(now) == view",
                "is_still = used_bytes < 0",
            ),
        ),
        tests=(
            "tests/processes/test_limits.py::"
            "test_a_job_above_the_hard_memory_limit_is_killed_and_fails_with_the_figures",
        ),
    ),
    Mutant(
        name="environment-not-put-back",
        promise="A job finds the environment as it was, whatever the one before has set.",
        changes=(
            Change(
                "qml_mp/child/hygiene.py",
                "            os.environ.clear()\n            os.environ.update(self._environment)\n",
                "",
            ),
        ),
        tests=(
            "tests/processes/test_hygiene.py::"
            "test_what_a_job_changes_in_its_process_is_put_back_for_the_next_job",
        ),
    ),
    Mutant(
        name="worker-not-replaced-after-max-jobs",
        promise="A worker is replaced after max_jobs jobs.",
        changes=(
            Change(
                "qml_mp/child/runner.py",
                "if self._max_jobs is not None and self._display.slot.jobs_done >= self._max_jobs:",
                "if self._max_jobs is not None and self._display.slot.jobs_done < 0:",
            ),
        ),
        tests=("tests/processes/test_limits.py::test_a_worker_is_replaced_after_its_number_of_jobs",),
    ),
    Mutant(
        name="registry-row-left-at-exit",
        promise="A server that stops leaves no row in the registry.",
        changes=(
            Change(
                "qml_mp/supervisor/membership.py",
                "    if storage.deregister_server(run.registration.id, done=done):\n        return True\n",
                "    if done is not None:\n        return True\n",
            ),
        ),
        tests=("tests/processes/test_stopping.py::test_sigterm_lets_the_running_job_finish_and_exits_0",),
    ),
    Mutant(
        name="second-sigterm-does-not-kill",
        promise="A second SIGTERM ends the server at once.",
        changes=(
            Change(
                "qml_mp/supervisor/stopping.py",
                "reason=CancelReason.SHUTDOWN, ask_at=instant, interrupt_at=instant, kill_at=instant\n",
                "reason=CancelReason.SHUTDOWN, ask_at=instant, interrupt_at=instant, kill_at=instant + 600\n",
            ),
        ),
        tests=("tests/processes/test_stopping.py::test_sigquit_stops_now",),
    ),
    Mutant(
        name="reload-before-the-import",
        promise="A reload replaces no worker before the new code has been imported.",
        changes=(
            Change(
                "qml_mp/supervisor/parts/reload.py",
                "if code is ReloadedCode.OF_START:",
                "if code is not None:",
            ),
        ),
        tests=(
            "tests/processes/test_reload.py::"
            "test_a_reload_of_code_that_does_not_import_leaves_every_worker_at_work",
        ),
    ),
)
