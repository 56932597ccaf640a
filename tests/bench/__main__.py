"""Benchmark: `python -m tests.bench`: this project and its peers side by side. See scripts/bench."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psycopg

from tests.bench.catalogue import SCENARIOS, all_systems, why_left_out
from tests.bench.ground import Ground, RunFailed
from tests.bench.report import Report, line_of
from tests.bench.scenario import Options, Sample, Samples, Scenario
from tests.bench.system import Backend, System
from tests.bench.work import calibrate
from tests.postgres_cluster import throwaway_cluster

_SYNCS = 50


def main(argv: Sequence[str] | None = None) -> int:
    """0 when every system ran in every round."""
    arguments = _arguments(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    asked = [system for system in all_systems() if _is_asked_for(system, arguments)]
    left_out = {system.name: why for system in asked if (why := why_left_out(system))}
    systems = [system for system in asked if system.name not in left_out]
    scenarios = [SCENARIOS[name] for name in arguments.only]
    with _postgres(systems) as url:
        turns_per_ms = calibrate(seconds=arguments.seconds)
        ground = Ground(
            postgres_url=url, turns_per_ms=turns_per_ms, longest_s=6 * max(1.0, arguments.seconds)
        )
        machine = _machine(url)
        options = Options(workers=arguments.workers, seconds=arguments.seconds)
        samples, failures = _measure_all(ground, scenarios, systems, options, arguments.rounds)
    machine["load average at the end"] = " ".join(f"{load:.2f}" for load in os.getloadavg())
    machine["rounds"] = str(arguments.rounds)
    report = Report(
        machine=machine, systems=systems, scenarios=scenarios, samples=samples, left_out=left_out,
        failures=failures,
    )  # fmt: skip
    print(report.text())
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report.as_json(), indent=1) + "\n")
    return 1 if failures else 0


def _measure_all(
    ground: Ground, scenarios: Sequence[Scenario], systems: Sequence[System], options: Options, rounds: int
) -> tuple[Samples, list[str]]:
    """Every system in every round, so that what else the machine does hits all of them; in a round each
    begins at another one, so that nobody is always behind the same."""
    samples, failures = Samples(), []
    for number in range(1, rounds + 1):
        for scenario in scenarios:
            for case in scenario.cases:
                fitting = [system for system in systems if scenario.fits(system)]
                shift = number % max(1, len(fitting))
                for system in (*fitting[shift:], *fitting[:shift]):
                    try:
                        metrics = scenario.measure(ground, system, case, options)
                    except (RunFailed, ValueError) as error:
                        failures.append(f"{scenario.name} {case}: {system.name} on {system.backend}: {error}")
                        print(failures[-1], file=sys.stderr, flush=True)
                        continue
                    sample = Sample(
                        scenario=scenario.name, case=case, system=system.name, backend=system.backend,
                        round=number, metrics=metrics,
                    )  # fmt: skip
                    samples.items.append(sample)
                    print(line_of(sample), file=sys.stderr, flush=True)
    return samples, failures


def _is_asked_for(system: System, arguments: argparse.Namespace) -> bool:
    if arguments.systems and system.name not in arguments.systems:
        return False
    return arguments.backend in (None, system.backend) or system.backend is Backend.NONE


def _machine(url: str | None) -> dict[str, str]:
    machine = {
        "Python": platform.python_version(),
        "cores": str(len(os.sched_getaffinity(0))),
        "fdatasync of 4 KiB": f"{_sync_ms():.2f} ms (median), where the databases lie",
        "load average at the start": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }
    if url is not None:
        with psycopg.connect(url) as connection:
            shown = {
                name: connection.execute(f"SHOW {name}").fetchone()
                for name in ("server_version", "fsync", "synchronous_commit", "wal_sync_method")
            }
        machine["PostgreSQL"] = ", ".join(f"{name}={row[0]}" for name, row in shown.items() if row)
    return machine


def _sync_ms() -> float:
    took = []
    with tempfile.TemporaryFile() as file:
        for turn in range(_SYNCS):
            os.pwrite(file.fileno(), bytes(4096), 4096 * turn)
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            took.append((time.perf_counter() - began) * 1000)
    return statistics.median(took)


@contextlib.contextmanager
def _postgres(systems: Sequence[System]) -> Iterator[str | None]:
    given = os.environ.get("QML_MP_TEST_URL")
    if given or not any(system.backend is Backend.POSTGRES for system in systems):
        yield given
        return
    with throwaway_cluster(durable=True) as url:
        yield url


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    names = sorted({system.name for system in all_systems()})
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="This project and its peers side by side: medians and ratios."
    )
    parser.add_argument("--rounds", type=int, default=5, help="of which the median counts (default: 5)")
    parser.add_argument(
        "--only", nargs="+", choices=list(SCENARIOS), default=["empty"], metavar="SCENARIO",
        help=f"of {', '.join(SCENARIOS)} (default: empty)",
    )  # fmt: skip
    parser.add_argument(
        "--systems", nargs="+", choices=names, metavar="SYSTEM", help=f"of {', '.join(names)}"
    )
    parser.add_argument("--backend", choices=[Backend.POSTGRES, Backend.SQLITE])
    parser.add_argument("--workers", type=int, default=2, help="worker processes (default: 2)")
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="about how long one run takes (default: 1)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all runs, medians and targets there")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
