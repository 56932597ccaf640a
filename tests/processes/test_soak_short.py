"""Tests: each scenario of `scripts/soak`, for a few seconds. The speed of the machine is not judged."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.nightly.deploys import run_deploys
from tests.nightly.firings import run_firings
from tests.nightly.kills import run_kills, run_storm
from tests.nightly.orphans import run_orphans
from tests.nightly.outages import run_freeze, run_outages
from tests.nightly.peers import run_neighbours, run_peers
from tests.nightly.places import run_places
from tests.nightly.replacements import run_boot_failure, run_replacements
from tests.nightly.report import Row, table
from tests.nightly.scenario import Task
from tests.nightly.side import run_side
from tests.nightly.stopcont import run_stopped_supervisors, run_stopped_workers
from tests.nightly.stops import run_stops

both = pytest.mark.parametrize("backend", ["sqlite", "postgres"])
Run = Callable[[Task], Row]


def outcome(
    request: pytest.FixtureRequest,
    run: Run,
    backend: str,
    count: int,
    *,
    pace: float = 0.25,
    minutes: float = float("inf"),
) -> Row:
    """The scenario's line; all that was counted is done unless the minutes were over first, or it raises."""
    url = request.getfixturevalue("postgres_url") if backend == "postgres" else None
    return run(
        Task(
            scenario=run.__name__, backend=backend, postgres_url=url, seed=1, count=count, unit="", pace=pace,
            minutes=minutes,
        )
    )  # fmt: skip


@both
@pytest.mark.fault(1)
def test_no_job_is_lost_or_run_twice_at_once_while_workers_are_killed(
    request: pytest.FixtureRequest, backend: str
) -> None:
    row = outcome(request, run_kills, backend, 800)

    assert row.broken == (), table([row])
    assert row.kills


@both
@pytest.mark.fault(1)
@pytest.mark.fault(4)
def test_no_job_is_lost_or_run_twice_at_once_while_supervisors_are_killed_too(
    request: pytest.FixtureRequest, backend: str
) -> None:
    row = outcome(request, run_storm, backend, 800)

    assert row.broken == (), table([row])
    assert row.kills


@both
@pytest.mark.fault(1)
def test_no_more_run_than_the_limit_says_on_three_servers_while_workers_are_killed(
    request: pytest.FixtureRequest, backend: str
) -> None:
    row = outcome(request, run_places, backend, 150)

    assert row.broken == (), table([row])
    assert row.done == 150


@both
@pytest.mark.fault(4)
def test_no_process_outlives_a_killed_supervisor_for_long(
    request: pytest.FixtureRequest, backend: str
) -> None:
    row = outcome(request, run_orphans, backend, 2)

    assert row.broken == (), table([row])
    assert row.kills == 2


@both
@pytest.mark.fault(55)
@pytest.mark.fault(56)
@pytest.mark.fault(59)
def test_a_server_stops_whole_at_any_moment_and_charges_nothing(
    request: pytest.FixtureRequest, backend: str
) -> None:
    row = outcome(request, run_stops, backend, 4)

    assert row.broken == (), table([row])
    assert row.done == 4


@both
@pytest.mark.fault(63)
def test_replacing_workers_leaves_nothing_in_the_supervisor(
    request: pytest.FixtureRequest, backend: str
) -> None:
    row = outcome(request, run_replacements, backend, 12)

    assert row.broken == (), table([row])
    assert row.done >= 12


@both
@pytest.mark.fault(70)
def test_deaths_of_the_page_and_of_the_metrics_are_noticed_by_nothing_else_of_their_server(
    request: pytest.FixtureRequest, backend: str
) -> None:
    row = outcome(request, run_side, backend, 2)

    assert row.broken == (), table([row])
    assert row.kills == 4


@pytest.mark.fault(60)
def test_workers_that_cannot_boot_are_forked_ever_more_rarely_until_they_can(
    request: pytest.FixtureRequest,
) -> None:
    row = outcome(request, run_boot_failure, "sqlite", 2)

    assert row.broken == (), table([row])


@both
@pytest.mark.fault(6)
def test_the_outcome_of_a_worker_that_lost_its_claim_while_stopped_is_refused_and_counted(
    request: pytest.FixtureRequest, backend: str
) -> None:
    row = outcome(request, run_stopped_workers, backend, 5)

    assert row.broken == (), table([row])
    assert row.done == 5


@both
@pytest.mark.fault(7)
def test_a_supervisor_that_was_declared_dead_while_stopped_ends_its_workers_and_goes_on(
    request: pytest.FixtureRequest, backend: str
) -> None:
    row = outcome(request, run_stopped_supervisors, backend, 2)

    assert row.broken == (), table([row])
    assert row.done == 2


@pytest.mark.fault(77)
def test_every_job_runs_once_although_all_of_postgresql_was_frozen(request: pytest.FixtureRequest) -> None:
    row = outcome(request, run_freeze, "postgres", 800)

    assert row.broken == (), table([row])


@both
@pytest.mark.fault(49)
@pytest.mark.fault(50)
@pytest.mark.fault(51)
@pytest.mark.fault(52)
def test_no_firing_is_missed_or_doubled_through_kills_outages_and_changes_of_the_clock(
    request: pytest.FixtureRequest, backend: str
) -> None:
    row = outcome(request, run_firings, backend, 160)

    assert row.broken == (), table([row])
    assert row.done >= 160


@pytest.mark.fault(33)
@pytest.mark.fault(35)
@pytest.mark.fault(36)
def test_every_job_runs_once_while_postgresql_restarts_ends_sessions_and_loses_replies(
    request: pytest.FixtureRequest,
) -> None:
    row = outcome(request, run_outages, "postgres", 100, pace=0.03)

    assert row.broken == (), table([row])
    assert row.done == 100


@pytest.mark.fault(5)
@pytest.mark.fault(74)
def test_the_jobs_of_a_server_killed_with_its_workers_run_again_wherever_its_peers_are(
    request: pytest.FixtureRequest,
) -> None:
    row = outcome(request, run_peers, "postgres", 2, pace=0.1)

    assert row.broken == (), table([row])
    assert row.kills == 2


@both
@pytest.mark.fault(5)
def test_the_jobs_of_a_server_killed_with_its_workers_run_again_on_its_neighbours(
    request: pytest.FixtureRequest, backend: str
) -> None:
    row = outcome(request, run_neighbours, backend, 1, pace=0.05)

    assert row.broken == (), table([row])
    assert row.kills == 1


@pytest.mark.fault(89)
@pytest.mark.fault(90)
def test_no_job_fails_for_a_deploy_and_no_worker_is_missing(request: pytest.FixtureRequest) -> None:
    row = outcome(request, run_deploys, "sqlite", 2, pace=0.1)

    assert row.broken == (), table([row])
    assert row.done == 2
