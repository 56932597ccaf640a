"""Tests: each scenario of `scripts/soak`, for a few seconds. The speed of the machine is not judged.

Their value is repetition, so most are nightly. Those are quick that take a moment and are likely to find what
nothing else does, or that show a row of the fault list which has no other test.
"""

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

Run = Callable[[Task], Row]
QUICK = {
    ("run_kills", "postgres"),
    ("run_storm", "sqlite"),
    ("run_stopped_workers", "postgres"),
    ("run_firings", "postgres"),
    ("run_outages", "postgres"),  # 8 s: PostgreSQL is restarted twice
    ("run_places", "sqlite"),
}
BOTH = ("sqlite", "postgres")
ON_POSTGRES = ("postgres",)
SCENARIOS: list[tuple[Run, int, float, tuple[str, ...], tuple[int, ...]]] = [
    # what is run, how often, at which pace, on which backends, for which rows of the fault list
    (run_kills, 800, 0.25, BOTH, (1,)),
    (run_storm, 800, 0.25, BOTH, (1, 4)),
    (run_places, 150, 0.25, BOTH, (1,)),
    (run_orphans, 2, 0.25, BOTH, (4,)),
    (run_stops, 4, 0.25, BOTH, (55, 56, 59)),
    (run_replacements, 12, 0.25, BOTH, (63,)),
    (run_side, 2, 0.25, BOTH, (70,)),
    (run_stopped_workers, 5, 0.25, BOTH, (6,)),
    (run_stopped_supervisors, 2, 0.25, BOTH, (7,)),
    (run_freeze, 800, 0.25, ON_POSTGRES, (77,)),
    (run_firings, 160, 0.25, BOTH, (49, 50, 51, 52)),
    (run_outages, 100, 0.03, ON_POSTGRES, (33, 35, 36)),
    (run_peers, 2, 0.1, ON_POSTGRES, (5, 74)),
    (run_neighbours, 1, 0.05, BOTH, (5,)),
    (run_deploys, 2, 0.1, ("sqlite",), (89, 90)),
]


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


@pytest.mark.parametrize(
    ("run", "count", "pace", "backend"),
    [
        pytest.param(
            run, count, pace, backend,
            id=f"{run.__name__}-{backend}",
            marks=[
                *(pytest.mark.fault(number) for number in faults),
                *(() if (run.__name__, backend) in QUICK else (pytest.mark.nightly,)),
            ],
        )
        for run, count, pace, backends, faults in SCENARIOS
        for backend in backends
    ],
)  # fmt: skip
def test_a_scenario_breaks_no_promise(
    request: pytest.FixtureRequest, run: Run, count: int, pace: float, backend: str
) -> None:
    row = outcome(request, run, backend, count, pace=pace)

    assert row.broken == (), table([row])
    assert row.done >= count or row.kills


@pytest.mark.fault(60)
def test_workers_that_cannot_boot_are_forked_ever_more_rarely_until_they_can(
    request: pytest.FixtureRequest,
) -> None:
    row = outcome(request, run_boot_failure, "sqlite", 2)

    assert row.broken == (), table([row])
