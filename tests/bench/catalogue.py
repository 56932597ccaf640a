"""Benchmark: all systems and all scenarios. A system is a file in `systems/` with a tuple SYSTEMS."""

from __future__ import annotations

import importlib
from importlib import metadata
from pathlib import Path

from tests.bench.redis_server import redis_program
from tests.bench.scenario import Scenario
from tests.bench.scenarios import (
    cleanup,
    cpu,
    due,
    empty,
    enqueue,
    history,
    latency,
    life,
    mixed,
    recovery,
    scale,
)
from tests.bench.system import Backend, Kind, System

SCENARIOS: dict[str, Scenario] = {
    each.SCENARIO.name: each.SCENARIO
    for each in (empty, cpu, latency, due, mixed, scale, enqueue, recovery, life, cleanup, history)
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
    if system.backend is Backend.REDIS and redis_program() is None:
        return "there is no redis-server or valkey-server"
    return None
