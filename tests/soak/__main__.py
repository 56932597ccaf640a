"""Tests: `python -m tests.soak`: the long runs, and one table of what came of them. See scripts/soak."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.loopback import pass_proxies
from tests.postgres_cluster import throwaway_cluster
from tests.soak.bulk import run_bulk
from tests.soak.calls import run_calls
from tests.soak.deploys import run_deploys
from tests.soak.firings import run_firings
from tests.soak.first_jobs import run_first_jobs
from tests.soak.freeze import run_freeze
from tests.soak.kills import run_kills, run_storm
from tests.soak.limits import run_limits
from tests.soak.long_outages import run_away, run_failover, run_locked
from tests.soak.orphans import run_orphans
from tests.soak.outages import run_outages
from tests.soak.peers import run_neighbours, run_peers
from tests.soak.places import run_places, run_rate
from tests.soak.poison import run_poison
from tests.soak.recovery import run_recovery
from tests.soak.replacements import run_boot_failure, run_replacements
from tests.soak.report import Row, table
from tests.soak.scenario import Task
from tests.soak.side import run_side
from tests.soak.silence import run_silence
from tests.soak.stopcont import run_stopped_supervisors, run_stopped_workers
from tests.soak.stops import run_stops
from tests.soak.waiting import run_waiting

BACKENDS = ("sqlite", "postgres")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What can be asked for by name, at the usual size and at that of the acceptance."""

    run: Callable[[Task], Row]
    unit: str
    usual: int
    full: int
    seeds_full: int = 1
    lanes: int = 1
    backends: tuple[str, ...] = BACKENDS


SCENARIOS = {
    "kills": Scenario(run=run_kills, unit="jobs", usual=3000, full=15_000),
    "recovery": Scenario(run=run_recovery, unit="kills", usual=40, full=200),
    "calls": Scenario(run=run_calls, unit="rounds", usual=1, full=10),
    "limits": Scenario(run=run_limits, unit="rounds", usual=1, full=10),
    "silence": Scenario(run=run_silence, unit="rounds", usual=3, full=10),
    "storm": Scenario(run=run_storm, unit="jobs", usual=10_000, full=30_000, seeds_full=20),
    "orphans": Scenario(run=run_orphans, unit="kills", usual=20, full=1000, lanes=2),
    "stops": Scenario(run=run_stops, unit="stops", usual=20, full=500, lanes=3),
    "replacements": Scenario(run=run_replacements, unit="replacements", usual=300, full=10_000),
    "boot-failure": Scenario(run=run_boot_failure, unit="seconds", usual=30, full=30),
    "side": Scenario(run=run_side, unit="kills of each", usual=20, full=100),
    "deploys": Scenario(run=run_deploys, unit="deploys", usual=10, full=50),
    "bulk": Scenario(run=run_bulk, unit="jobs", usual=5000, full=50_000),
    "first-jobs": Scenario(run=run_first_jobs, unit="starts", usual=10, full=50),
    "firings": Scenario(run=run_firings, unit="firings", usual=1000, full=10_000),
    "poison": Scenario(run=run_poison, unit="other jobs", usual=300, full=1000),
    "places": Scenario(run=run_places, unit="jobs", usual=2000, full=5000),
    "rate": Scenario(run=run_rate, unit="seconds", usual=10, full=20),
    "freeze": Scenario(run=run_freeze, unit="jobs", usual=3000, full=3000, backends=("postgres",)),
    "outages": Scenario(run=run_outages, unit="jobs", usual=2000, full=10_000, backends=("postgres",)),
    "away": Scenario(run=run_away, unit="jobs", usual=400, full=1000, backends=("postgres",)),
    "locked": Scenario(run=run_locked, unit="jobs", usual=400, full=1000, backends=("postgres",)),
    "failover": Scenario(run=run_failover, unit="jobs", usual=400, full=1000, backends=("postgres",)),
    "peers": Scenario(run=run_peers, unit="kills", usual=4, full=12, backends=("postgres",)),
    "neighbours": Scenario(run=run_neighbours, unit="kills", usual=4, full=12),
    "waiting": Scenario(run=run_waiting, unit="handles", usual=1000, full=1000),
    "stop-worker": Scenario(run=run_stopped_workers, unit="cycles", usual=60, full=1000),
    "stop-supervisor": Scenario(run=run_stopped_supervisors, unit="cycles", usual=20, full=1000, lanes=3),
}


def main() -> int:
    """0 when every promise and every target held."""
    pass_proxies()
    arguments = _arguments()
    names = arguments.only or list(SCENARIOS)
    backends = [arguments.backend] if arguments.backend else list(BACKENDS)
    rows, errors = [], 0
    with open_postgres(backends) as postgres_url:
        for task, scenario in _tasks(arguments, names, backends, postgres_url):
            try:
                row = scenario.run(task)
            except Exception:
                traceback.print_exc()
                print(f"{task.scenario} on {task.backend} could not be run to its end", file=sys.stderr)
                errors += 1
                continue
            rows.append(row)
            print(table([row]), file=sys.stderr, flush=True)
    print(f"\n{table(rows)}\n\nload average: {' '.join(f'{load:.2f}' for load in os.getloadavg())}")
    return 1 if errors or any(row.broken or row.missed for row in rows) else 0


def _tasks(
    arguments: argparse.Namespace, names: list[str], backends: list[str], postgres_url: str | None
) -> Iterator[tuple[Task, Scenario]]:
    for name in names:
        scenario = SCENARIOS[name]
        seeds = arguments.seeds or (scenario.seeds_full if arguments.full else 1)
        for seed in range(arguments.seed, arguments.seed + seeds):
            for backend in filter(scenario.backends.__contains__, backends):
                task = Task(
                    scenario=name, backend=backend, postgres_url=postgres_url, seed=seed,
                    count=arguments.count or (scenario.full if arguments.full else scenario.usual),
                    unit=scenario.unit, lanes=arguments.lanes or scenario.lanes, minutes=arguments.minutes,
                )  # fmt: skip
                yield task, scenario


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/soak", description="Long runs with an independent judge; prints one table at the end."
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="longest that a scenario runs")
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, help="how many seeds (default: 1; with --full as accepted)")
    parser.add_argument("--count", type=int, help="how many jobs, kills, stops, … instead of the usual")
    parser.add_argument("--full", action="store_true", help="the figures of the acceptance")
    parser.add_argument("--lanes", type=int, help="how many servers side by side, where a scenario has lanes")
    parser.add_argument("--only", nargs="+", choices=list(SCENARIOS), metavar="NAME", help="these alone")
    parser.add_argument("--backend", choices=BACKENDS)
    return parser.parse_args()


@contextlib.contextmanager
def open_postgres(backends: list[str]) -> Iterator[str | None]:
    """The URL of a PostgreSQL database when one of the backends needs it: the given one, or a throw-away."""
    given = os.environ.get("QML_MP_TEST_URL")
    if "postgres" not in backends or given:
        yield given
        return
    with throwaway_cluster() as url:
        yield url


if __name__ == "__main__":
    raise SystemExit(main())
