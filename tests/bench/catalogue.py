"""Benchmark: all systems and all scenarios. A system is a file in `systems/` with a tuple SYSTEMS."""

from __future__ import annotations

import importlib
from importlib import metadata
from pathlib import Path

from tests.bench.scenario import Scenario
from tests.bench.scenarios import cpu, empty, enqueue, latency, life, recovery
from tests.bench.system import Kind, System

SCENARIOS: dict[str, Scenario] = {
    each.SCENARIO.name: each.SCENARIO for each in (empty, cpu, latency, enqueue, recovery, life)
}


def all_systems() -> list[System]:
    """The project first, then its peers, then the limits."""
    found: list[System] = []
    for path in sorted((Path(__file__).parent / "systems").glob("*.py")):
        found += importlib.import_module(f"tests.bench.systems.{path.stem}").SYSTEMS
    return sorted(found, key=lambda system: list(Kind).index(system.kind))


def why_left_out(system: System) -> str | None:
    """What it lacks here; None: nothing."""
    try:
        system.version()
    except metadata.PackageNotFoundError:
        return f"{system.package} is not installed"
    return None
