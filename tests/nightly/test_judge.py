"""Tests: the judge of the storms finds each kind of offence, and nothing in a good run."""

from __future__ import annotations

from dataclasses import replace

from qml_mp.core.outcome import AttemptKind
from qml_mp.core.state import StateName as S
from tests.audit import JobRow, Transition
from tests.nightly.judge import Evidence, Findings, Kills, judge
from tests.processes.journal import OVERLAP, RECORDED, Line

WORKER, OTHER = "server#1:worker:1.1", "server#1:worker:2.2"


def line(what: str, at_ns: int, *, seq: int = 1, pid: int = 7) -> Line:
    return Line(job_id="a", claim_seq=seq, pid=pid, what=what, at_ns=at_ns)


def claimed(seq: int, by: str = WORKER) -> Transition:
    return Transition(
        job_id="a", old=S.ENQUEUED, new=S.PROCESSING, old_seq=seq - 1, new_seq=seq,
        old_worker=None, new_worker=by,
    )  # fmt: skip


def ended(seq: int, state: S = S.SUCCEEDED, by: str = WORKER, *, crashes: int = 0) -> Transition:
    return Transition(
        job_id="a", old=S.PROCESSING, new=state, old_seq=seq, new_seq=seq, old_worker=by, new_worker=None,
        result=str(seq) if state is S.SUCCEEDED else None, crashes=crashes,
    )  # fmt: skip


def row(seq: int = 1, state: S = S.SUCCEEDED, *, failures: int = 0, crashes: int = 0) -> JobRow:
    return JobRow(id="a", state=state, claim_seq=seq, failures=failures, crashes=crashes)


ADDED = Transition(
    job_id="a", old=None, new=S.ENQUEUED, old_seq=0, new_seq=0, old_worker=None, new_worker=None
)
GOOD = Evidence(
    expected=["a"], journal=[line("start", 1), line("end", 2)], transitions=[ADDED, claimed(1), ended(1)],
    attempts={}, jobs=[row()], servers=[("server#1", 70)], kills=Kills(),
)  # fmt: skip
RUN_AGAIN = replace(
    GOOD,
    journal=[line("start", 1), line("start", 3, seq=2, pid=8), line("end", 4, seq=2, pid=8)],
    transitions=[ADDED, claimed(1), ended(1, S.ENQUEUED, crashes=1), claimed(2, OTHER), ended(2, by=OTHER)],
    attempts={("a", 1): AttemptKind.CRASH},
    jobs=[row(2, crashes=1)],
)


def offences(evidence: Evidence) -> set[str]:
    findings: Findings = judge(evidence)
    names = ("lost", "overlapping", "stale", "unexplained", "charged")
    return {name for name in names if getattr(findings, name)}


def test_a_good_run_is_without_offence() -> None:
    assert offences(GOOD) == set()


def test_a_job_that_did_not_succeed_or_whose_row_is_gone_is_lost() -> None:
    assert offences(replace(GOOD, jobs=[row(state=S.ENQUEUED)])) == {"lost"}
    assert offences(replace(GOOD, jobs=[])) == {"lost"}


def test_a_run_again_is_explained_by_a_kill_of_its_worker_or_of_its_supervisor() -> None:
    assert offences(replace(RUN_AGAIN, kills=Kills(workers={WORKER}))) == set()
    released = [ADDED, claimed(1), ended(1, S.ENQUEUED), claimed(2, OTHER), ended(2, by=OTHER)]
    uncharged = replace(RUN_AGAIN, transitions=released, attempts={}, jobs=[row(2)])
    assert offences(replace(uncharged, kills=Kills(supervisors={70}))) == set()


def test_a_run_again_that_no_kill_explains_is_found_and_so_is_its_charge() -> None:
    assert offences(RUN_AGAIN) == {"unexplained", "charged"}
    assert offences(replace(RUN_AGAIN, kills=Kills(workers={OTHER}))) == {"unexplained", "charged"}


def test_runs_that_overlap_are_found_by_the_lock_and_by_the_order_of_their_lines() -> None:
    kills = Kills(workers={WORKER})
    met = [*RUN_AGAIN.journal, line(OVERLAP, 3, seq=2, pid=8)]
    late = [*RUN_AGAIN.journal, line("end", 5)]

    assert offences(replace(RUN_AGAIN, journal=met, kills=kills)) == {"overlapping"}
    assert offences(replace(RUN_AGAIN, journal=late, kills=kills)) == {"overlapping"}


def test_a_result_of_another_claim_is_a_stale_write() -> None:
    stale = [*RUN_AGAIN.transitions[:-1], replace(ended(2, by=OTHER), result="1")]

    assert offences(replace(RUN_AGAIN, transitions=stale, kills=Kills(workers={WORKER}))) == {"stale"}


def test_a_transition_that_the_table_does_not_know_is_a_stale_write() -> None:
    after_the_end = [ADDED, claimed(1), ended(1), replace(ended(1), old=S.SUCCEEDED)]

    assert offences(replace(GOOD, transitions=after_the_end)) == {"stale"}


def test_an_end_that_the_history_or_the_charge_does_not_fit_is_a_stale_write() -> None:
    kills = Kills(workers={WORKER})
    charged_and_not_kept = replace(RUN_AGAIN, attempts={}, kills=kills)
    kept_of_a_success = replace(GOOD, attempts={("a", 1): AttemptKind.FAILURE})

    assert offences(charged_and_not_kept) == {"stale"}
    assert offences(kept_of_a_success) == {"stale"}


def test_a_failure_is_charged_to_nobody() -> None:
    assert offences(replace(GOOD, jobs=[row(failures=1)])) == {"charged"}


def test_a_claim_that_was_only_held_goes_back_uncharged_whoever_held_it() -> None:
    given_back = [ADDED, claimed(1), ended(1, S.ENQUEUED), claimed(2, OTHER), ended(2, by=OTHER)]
    held = replace(
        GOOD, journal=[line("start", 3, seq=2), line("end", 4, seq=2)], transitions=given_back, jobs=[row(2)]
    )
    crashed = replace(RUN_AGAIN, journal=RUN_AGAIN.journal[1:])

    assert offences(held) == set()
    assert offences(replace(held, journal=RUN_AGAIN.journal)) == {"unexplained"}
    assert offences(crashed) == {"unexplained", "charged"}


def test_a_run_that_ended_and_whose_job_runs_again_is_found_although_its_worker_was_killed() -> None:
    journal = [*RUN_AGAIN.journal, line("end", 2), line(RECORDED, 2)]
    ended_and_crashed = replace(RUN_AGAIN, journal=journal)

    assert offences(replace(ended_and_crashed, kills=Kills(workers={WORKER}))) == {"unexplained"}
    assert offences(replace(ended_and_crashed, kills=Kills(workers={WORKER}, supervisors={70}))) == {
        "unexplained"
    }


def test_a_death_is_charged_to_one_claim_alone() -> None:
    other = [replace(one, job_id="b") for one in RUN_AGAIN.transitions]
    both = replace(
        RUN_AGAIN,
        transitions=[*RUN_AGAIN.transitions, *other],
        attempts={("a", 1): AttemptKind.CRASH, ("b", 1): AttemptKind.CRASH},
        kills=Kills(workers={WORKER}),
    )

    assert offences(both) == {"charged"}
