"""Benchmark: what the screens of the page take with a great many jobs: `python -m tests.bench.pages [JOBS]`.

Beside `scripts/bench`, which compares systems: no peer has these screens. Each round asks for every screen
once, and rests for so long that most of what browsers share has to be read anew.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path

import httpx

from qml_mp.core.state import StateName
from qml_mp.storage.open import open_storage
from qml_mp.storage.values import JobFilter
from tests.bench.million import fill
from tests.postgres_cluster import throwaway_cluster
from tests.storage.helpers import in_schema
from tests.web.screens import SCREENS
from tests.web.serving import served

_ROUNDS = 20
_REST_S = 2.0
_FILTERS = (
    "state=failed", "method=tasks.rare", "queue=queue-7&state=succeeded", "error=number 4", "since=1h",
)  # fmt: skip


def main(jobs: int) -> None:
    """Print a line for each screen: milliseconds from the request to its last byte, on both backends."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cluster = stack.enter_context(throwaway_cluster())
        for name, url in (
            ("sqlite", f"sqlite:///{folder}/jobs.db"),
            ("postgres", in_schema(cluster, "pages")),
        ):
            fill(url, jobs)
            with served(url, folder) as page, page.visitor() as visitor:
                _print(name, _timed(visitor, _addresses(url)))


def _addresses(url: str) -> list[str]:
    with closing(open_storage(url)) as storage:
        failed = storage.list_jobs(JobFilter(states=[StateName.FAILED]), limit=1).jobs[0]
    return [*SCREENS, *(f"/jobs?{each}" for each in _FILTERS), f"/jobs/{failed.id}"]


def _timed(visitor: httpx.Client, addresses: list[str]) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {address: [] for address in addresses}
    for _ in range(_ROUNDS):
        for address in addresses:
            began = time.monotonic()
            visitor.get(address).raise_for_status()
            taken[address].append((time.monotonic() - began) * 1000)
        time.sleep(_REST_S)
    return taken


def _print(backend: str, taken: dict[str, list[float]]) -> None:
    print(f"{backend:<44} {'first':>7} {'median':>7} {'p95':>7} {'worst':>7}  ms")
    for address, all_ms in taken.items():
        later = sorted(all_ms[1:])
        p95 = statistics.quantiles(later, n=20, method="inclusive")[-1]
        shown = address if len(address) <= 44 else f"{address[:43]}…"
        print(
            f"{shown:<44} {all_ms[0]:>7.0f} {statistics.median(later):>7.0f} {p95:>7.0f} {later[-1]:>7.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
