"""Tests: `python -m tests.nightly` runs the storms of faults and prints one table. See scripts/soak."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.loopback import pass_proxies
from tests.nightly.deploys import run_deploys
from tests.nightly.firings import run_firings
from tests.nightly.first_jobs import run_first_jobs
from tests.nightly.kills import run_kills, run_storm
from tests.nightly.orphans import run_orphans
from tests.nightly.outages import run_away, run_failover, run_freeze, run_locked, run_outages
from tests.nightly.peers import run_neighbours, run_peers
from tests.nightly.places import run_places
from tests.nightly.replacements import run_boot_failure, run_replacements
from tests.nightly.report import Row, table
from tests.nightly.scenario import Task
from tests.nightly.side import run_side
from tests.nightly.stopcont import run_stopped_supervisors, run_stopped_workers
from tests.nightly.stops import run_stops
from tests.postgres_cluster import throwaway_cluster

BACKENDS = ("sqlite", "postgres")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A storm that can be asked for by name, with its sizes."""

    run: Callable[[Task], Row]
    unit: str
    brief: int
    usual: int
    full: int
    brief_pace: float = 0.25
    seeds_full: int = 1
    backends: tuple[str, ...] = BACKENDS

    def task(
        self, name: str, backend: str, seed: int, postgres_url: str | None, arguments: argparse.Namespace
    ) -> Task:
        """One run of it, of the size that was asked for."""
        size = self.brief if arguments.brief else self.full if arguments.full else self.usual
        return Task(
            scenario=name,
            backend=backend,
            postgres_url=postgres_url,
            seed=seed,
            count=arguments.count or size,
            unit=self.unit,
            minutes=arguments.minutes,
            pace=self.brief_pace if arguments.brief else 1.0,
        )


SCENARIOS = {
    "kills": Scenario(run=run_kills, unit="jobs", brief=800, usual=3000, full=15_000),
    "storm": Scenario(run=run_storm, unit="jobs", brief=800, usual=10_000, full=30_000, seeds_full=20),
    "orphans": Scenario(run=run_orphans, unit="kills", brief=4, usual=20, full=1000),
    "stops": Scenario(run=run_stops, unit="stops", brief=8, usual=20, full=500),
    "replacements": Scenario(run=run_replacements, unit="replacements", brief=40, usual=300, full=10_000),
    "boot-failure": Scenario(run=run_boot_failure, unit="seconds", brief=5, usual=30, full=30),
    "side": Scenario(run=run_side, unit="kills of each", brief=2, usual=20, full=100),
    "deploys": Scenario(run=run_deploys, unit="deploys", brief=5, usual=10, full=50),
    "first-jobs": Scenario(run=run_first_jobs, unit="starts", brief=3, usual=10, full=50),
    "firings": Scenario(run=run_firings, unit="firings", brief=400, usual=1000, full=10_000),
    "places": Scenario(run=run_places, unit="jobs", brief=300, usual=2000, full=5000),
    "freeze": Scenario(run=run_freeze, unit="jobs", brief=400, usual=3000, full=3000, backends=("postgres",)),
    "outages": Scenario(
        run=run_outages,
        unit="jobs",
        brief=200,
        brief_pace=0.05,
        usual=2000,
        full=10_000,
        backends=("postgres",),
    ),
    "away": Scenario(run=run_away, unit="jobs", brief=200, usual=400, full=1000, backends=("postgres",)),
    "locked": Scenario(run=run_locked, unit="jobs", brief=200, usual=400, full=1000, backends=("postgres",)),
    "failover": Scenario(
        run=run_failover, unit="jobs", brief=200, usual=400, full=1000, backends=("postgres",)
    ),
    "peers": Scenario(
        run=run_peers, unit="kills", brief=4, brief_pace=0.1, usual=4, full=12, backends=("postgres",)
    ),
    "neighbours": Scenario(run=run_neighbours, unit="kills", brief=3, brief_pace=0.05, usual=4, full=12),
    "stop-worker": Scenario(run=run_stopped_workers, unit="cycles", brief=10, usual=60, full=1000),
    "stop-supervisor": Scenario(run=run_stopped_supervisors, unit="cycles", brief=4, usual=20, full=1000),
}


def main() -> int:
    """Run what was asked for; 0 when every promise held."""
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
    return 1 if errors or any(row.broken for row in rows) else 0


def _tasks(
    arguments: argparse.Namespace, names: list[str], backends: list[str], postgres_url: str | None
) -> Iterator[tuple[Task, Scenario]]:
    for name in names:
        scenario = SCENARIOS[name]
        seeds = arguments.seeds or (scenario.seeds_full if arguments.full else 1)
        for seed in range(arguments.seed, arguments.seed + seeds):
            for backend in filter(scenario.backends.__contains__, backends):
                yield scenario.task(name, backend, seed, postgres_url, arguments), scenario


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/soak",
        description="Runs storms of faults with an independent judge, and prints one table at the end.",
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="a scenario stops after so long")
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, help="how many seeds (default: 1; with --full more for some)")
    parser.add_argument("--count", type=int, help="how many jobs, kills, stops, … instead of the usual")
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--brief", action="store_true", help="the smallest sizes, with short outages and pauses"
    )
    size.add_argument("--full", action="store_true", help="the full sizes")
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
