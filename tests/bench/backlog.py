"""Benchmark: `python -m tests.bench.backlog`: what a job costs the storage when its tables are full.

Exchanges of 50 outcomes and 50 claims, on a storage with 1,000 waiting jobs and on one with a great many, in
turns, so that what else the machine does hits both; the medians of their CPU time (the server's included) and
of the ratios. Where a million waits, all is drained, which says how far the table and the log have grown.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlencode

import psycopg

from qml_mp.core.job import Job
from qml_mp.core.outcome import Success
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from qml_mp.storage.values import BY_DEFAULT, Fetch
from tests.bench.report import aligned
from tests.soak.__main__ import BACKENDS, open_postgres

_BATCH = 50
_FEW = 1000
_EXCHANGES_A_TURN = 10
_DONE = Success(result=None, duration=timedelta(milliseconds=1))
_FETCH = Fetch(worker_id="w-1", server_id="s#1", queues=("default",), methods=("known",))


@dataclass(kw_only=True)
class Full:
    """A storage of which a part is full, and how to measure it."""

    name: str
    url: str
    storage: Storage
    sessions: list[int]
    """Processes of the server that work for the storage."""
    costs_us: list[float] = field(default_factory=list)
    """CPU time per job, one for each turn."""

    def fill(self, number: int, *, queue: str = "default", method: str = "known", priority: int = 0) -> None:
        """Add so many jobs that wait."""
        for at in range(0, number, 10_000):
            count = min(10_000, number - at)
            self.storage.enqueue_many(
                Job.new(method, {}, queue=queue, priority=priority) for _ in range(count)
            )

    def measure(self) -> None:
        """One turn."""
        self.fill(_BATCH * (_EXCHANGES_A_TURN + 1))
        held = self.storage.exchange((), fetch=_FETCH, limit=_BATCH, retention=BY_DEFAULT).claims
        before, jobs = self._cpu_us(), 0
        for _ in range(_EXCHANGES_A_TURN):
            outcomes = [(claim, _DONE) for claim in held]
            held = self.storage.exchange(outcomes, fetch=_FETCH, limit=_BATCH, retention=BY_DEFAULT).claims
            jobs += len(outcomes)
        self.costs_us.append((self._cpu_us() - before) / jobs)
        outcomes = [(claim, _DONE) for claim in held]
        self.storage.exchange(outcomes, fetch=None, limit=0, retention=BY_DEFAULT)

    def drain(self, *, watch: Callable[[], None]) -> int:
        """End all that waits; how many jobs."""
        jobs, held = 0, self.storage.exchange((), fetch=_FETCH, limit=100, retention=BY_DEFAULT).claims
        while held:
            outcomes = [(claim, _DONE) for claim in held]
            held = self.storage.exchange(outcomes, fetch=_FETCH, limit=100, retention=BY_DEFAULT).claims
            jobs += len(outcomes)
            if jobs % 1000 == 0:
                watch()
        return jobs

    def size_bytes(self) -> int:
        """The table of jobs with its indexes; on SQLite the file."""
        if not self.url.startswith("postgresql"):
            return os.path.getsize(self.url.removeprefix("sqlite:///"))
        with psycopg.connect(server_of(self.url)) as connection:
            schema = self.url.rpartition("schema=")[2]
            row = connection.execute(
                "SELECT pg_total_relation_size(%s::regclass)", [f"{schema}.jobs"]
            ).fetchone()
        assert row is not None
        return int(row[0])

    def _cpu_us(self) -> float:
        stats = [Path(f"/proc/{pid}/schedstat").read_text() for pid in self.sessions]
        return (time.process_time_ns() + sum(int(text.split()[0]) for text in stats)) / 1000


def server_of(url: str) -> str:
    """The URL without the schema."""
    return url.rpartition("schema=")[0].rstrip("?&")


@contextmanager
def full_storage(name: str, server_url: str, folder: Path) -> Iterator[Full]:
    """A storage of its own, on PostgreSQL unless the server's URL is empty."""
    if server_url:
        separator = "&" if "?" in server_url else "?"
        url = f"{server_url}{separator}{urlencode({'schema': f'backlog_{name}'})}"
    else:
        url = f"sqlite:///{folder / name}.db"
    with closing(open_storage(url, application_name=name)) as storage:
        storage.migrate()
        storage.job_counts()
        yield Full(name=name, url=url, storage=storage, sessions=_sessions(server_url, name))


def _sessions(server_url: str, application_name: str) -> list[int]:
    if not server_url:
        return []
    with psycopg.connect(server_url) as connection:
        query = "SELECT pid FROM pg_stat_activity WHERE application_name = %s"
        return [pid for (pid,) in connection.execute(query, [application_name])]


def _fill(full: Full, rows: int) -> None:
    match full.name:
        case "waiting":
            full.fill(rows)
        case "elsewhere":
            full.fill(rows, queue="other")
        case "unknown":
            full.fill(rows // 10, method="unknown", priority=9)
        case _:
            pass
    full.fill(_FEW)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=BACKENDS)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--turns", type=int, default=15)
    arguments = parser.parse_args()
    backends = [arguments.backend] if arguments.backend else list(BACKENDS)
    rows: list[tuple[str, ...]] = []
    with open_postgres(backends) as postgres_url, tempfile.TemporaryDirectory() as folder:
        for backend in backends:
            server_url = postgres_url or "" if backend == "postgres" else ""
            with full_storage("few", server_url, Path(folder)) as few:
                _fill(few, 0)
                for name in ("waiting", "elsewhere", "unknown"):
                    with full_storage(name, server_url, Path(folder)) as full:
                        _fill(full, arguments.rows)
                        rows.append(_compared(backend, few, full, arguments.turns))
                        if name == "waiting":
                            rows.append(_drained(backend, full))
                            full.name, full.costs_us = "ended", []
                            full.fill(_FEW)
                            rows.append(_compared(backend, few, full, arguments.turns))
    print(aligned(("backend", "full of", "few, µs", "full, µs", "ratio"), rows))
    print(f"load average: {' '.join(f'{load:.2f}' for load in os.getloadavg())}")
    return 0


def _compared(backend: str, few: Full, full: Full, turns: int) -> tuple[str, ...]:
    few.costs_us = []
    for _ in range(turns):
        few.measure()
        full.measure()
    ratios = [mine / base for mine, base in zip(full.costs_us, few.costs_us, strict=True)]
    base, cost = statistics.median(few.costs_us), statistics.median(full.costs_us)
    return backend, full.name, f"{base:.1f}", f"{cost:.1f}", f"{statistics.median(ratios):.2f}"


def _drained(backend: str, full: Full) -> tuple[str, ...]:
    log = Path(full.url.removeprefix("sqlite:///") + "-wal")
    longest = 0

    def watch() -> None:
        nonlocal longest
        if log.exists():
            longest = max(longest, log.stat().st_size)

    before, started = full.size_bytes(), time.monotonic()
    jobs = full.drain(watch=watch)
    rate = jobs / (time.monotonic() - started)
    grown = full.size_bytes() / before
    said = f"drained at {rate:.0f}/s" + (f", log up to {longest >> 20} MB" if longest else "")
    return backend, said, f"{before >> 20} MB", f"{full.size_bytes() >> 20} MB", f"{grown:.2f}"


if __name__ == "__main__":
    raise SystemExit(main())
