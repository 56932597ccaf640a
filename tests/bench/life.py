"""Tests: `python -m tests.bench.life`: what a server costs without jobs: import, start, idling, memory, stop.

A server of `WORKERS` workers is started as its user would. Each figure is the median of several rounds; they
are printed as a table or, with `--json`, as one object per backend. "Ready" counts from the start of the
process to the line of its log that tells of the last worker. `measure` is all of it for one storage, to be
called by other scenarios.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from tests.nightly.__main__ import BACKENDS, open_postgres
from tests.nightly.ground import descendants, fresh_ground, pause
from tests.statement_trace import TRACE, statements

WORKERS = 8
_ROOT = Path(__file__).parents[2]
_READY = re.compile(rb"Worker \d+ is ready")
_APP = "from qml_mp import QmlApp\n{more}\napp = QmlApp()\n\n@app.job()\ndef nothing() -> None: ...\n"
_IMPORTS = ("qml_mp", "qml_mp.app")
_NOT_OF_ROWS = ("PRAGMA", "BEGIN", "COMMIT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Medians, of one backend. None: not measured here."""

    import_ms: float
    """Of `import qml_mp`, in an interpreter that has started."""
    import_app_ms: float
    """Of `from qml_mp import QmlApp`."""
    first_ready_s: float
    all_ready_s: float
    stop_s: float
    """From SIGTERM to the end of the supervisor, all workers idle."""
    idle_percent_of_a_core: float
    """All processes of the server together."""
    idle_statements_per_s: float
    """Those that read or write rows."""
    idle_statements_in_all_per_s: float
    """With BEGIN and COMMIT and, on SQLite, what sets and asks the library itself."""
    worker_pss_mb: float
    """Of an idle worker; the median of all."""
    supervisor_pss_mb: float
    all_pss_mb: float
    worker_pss_with_numpy_mb: float | None
    """With `--preload` of an app that imports numpy; None where that is not installed."""


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="scripts/bench life", description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=BACKENDS)
    parser.add_argument("--rounds", type=int, default=7, help="of imports, starts and stops")
    parser.add_argument("--idle", type=float, default=20.0, help="seconds that an idle server is watched")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    backends = [arguments.backend] if arguments.backend else list(BACKENDS)
    with open_postgres(backends) as postgres_url:
        for backend in backends:
            with fresh_ground(backend, postgres_url, seed=1) as ground:
                ground.audit.remove()
                figures = measure(ground.url, ground.folder, rounds=arguments.rounds, idle_s=arguments.idle)
            if arguments.json:
                print(json.dumps({"backend": backend, **asdict(figures)}), flush=True)
                continue
            for name, value in asdict(figures).items():
                print(f"{backend:<9} {name:<26} {'-' if value is None else format(value, '.3f')}", flush=True)
    print(f"load average: {' '.join(f'{load:.2f}' for load in os.getloadavg())}", file=sys.stderr)
    return 0


def measure(url: str, folder: Path, *, rounds: int, idle_s: float) -> Figures:
    """All figures of one storage, which holds no job; `folder` is for apps and logs."""
    (folder / "plain_app.py").write_text(_APP.format(more=""))
    (folder / "numpy_app.py").write_text(_APP.format(more="import numpy"))
    imports = {name: [_import_ms(name) for _ in range(rounds)] for name in _IMPORTS}
    lives = [_life(url, folder) for _ in range(rounds)]
    workers, all_of_it = _pss_mb(url, folder, "plain_app")
    of_rows, in_all = _idle_statements(url, folder, idle_s)
    with_numpy = None
    if find_spec("numpy") is not None:
        with_numpy = statistics.median(_pss_mb(url, folder, "numpy_app", "--preload")[0])
    return Figures(
        import_ms=statistics.median(imports["qml_mp"]),
        import_app_ms=statistics.median(imports["qml_mp.app"]),
        first_ready_s=statistics.median(life[0] for life in lives),
        all_ready_s=statistics.median(life[1] for life in lives),
        stop_s=statistics.median(life[2] for life in lives),
        idle_percent_of_a_core=_idle_percent(url, folder, idle_s),
        idle_statements_per_s=of_rows,
        idle_statements_in_all_per_s=in_all,
        worker_pss_mb=statistics.median(workers),
        supervisor_pss_mb=all_of_it[0],
        all_pss_mb=sum(all_of_it),
        worker_pss_with_numpy_mb=with_numpy,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Server:
    process: subprocess.Popen[bytes]
    ready_s: Sequence[float]
    """When each worker was ready, from the start on."""

    @property
    def pids(self) -> list[int]:
        """The supervisor, the guardian, then the workers."""
        return [self.process.pid, *descendants(self.process.pid)]


@contextmanager
def _server(
    url: str,
    folder: Path,
    *flags: str,
    app: str = "plain_app",
    program: str = "qml_mp",
    environment: Mapping[str, str] | None = None,
) -> Iterator[_Server]:
    """A server whose workers are all ready. It is stopped at the end, if it still runs."""
    command = [sys.executable, "-m", program, "-A", f"{app}:app", "--url", url, "start", "-w", str(WORKERS)]
    began = time.monotonic()
    process = subprocess.Popen(
        [*command, *flags],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": f"{_ROOT}:{os.environ.get('PYTHONPATH', '')}",
            **(environment or {}),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        ready: list[float] = []
        assert process.stderr is not None
        said = b""
        while len(ready) < WORKERS:
            line = process.stderr.readline()
            if not line:
                raise RuntimeError(f"The server ended before its workers were ready:\n{said.decode()}")
            said += line
            ready += [time.monotonic() - began] * len(_READY.findall(line))
        yield _Server(process=process, ready_s=ready)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()


def _import_ms(name: str) -> float:
    code = f"import time; began = time.perf_counter(); import {name}; print(time.perf_counter() - began)"
    return 1000 * float(subprocess.check_output([sys.executable, "-c", code], cwd=_ROOT))


def _life(url: str, folder: Path) -> tuple[float, float, float]:
    """Seconds to the first and to the last worker, and to stop."""
    with _server(url, folder) as server:
        pause(0.5)  # until all of them are idle
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        os.waitid(os.P_PID, server.process.pid, os.WEXITED | os.WNOWAIT)
        stopped_s = time.monotonic() - began
    return server.ready_s[0], server.ready_s[-1], stopped_s


def _pss_mb(url: str, folder: Path, app: str, *flags: str) -> tuple[list[float], list[float]]:
    """Of the workers, and of all processes."""
    with _server(url, folder, *flags, app=app) as server:
        pause(3.0)  # the first polls over
        found = [_pss_mb_of(pid) for pid in server.pids]
    return found[2:], found


def _pss_mb_of(pid: int) -> float:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(size) for size in re.findall(r"^Pss: +(\d+) kB", text, re.MULTILINE)) / 1024


def _idle_percent(url: str, folder: Path, idle_s: float) -> float:
    with _server(url, folder) as server:
        pause(2.0)
        before = sum(map(_ran_ns, server.pids))
        began = time.monotonic()
        pause(idle_s)
        ran_s = (sum(map(_ran_ns, server.pids)) - before) / 1e9
        return 100 * ran_s / (time.monotonic() - began)


def _ran_ns(pid: int) -> int:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


def _idle_statements(url: str, folder: Path, idle_s: float) -> tuple[float, float]:
    """A second, of rows and in all."""
    with (
        tempfile.TemporaryDirectory(dir=folder) as traces,
        _server(url, folder, program="tests.statement_trace", environment={TRACE: traces}),
    ):
        pause(2.0)
        before = _sent(Path(traces))
        began = time.monotonic()
        pause(idle_s)
        sent = _sent(Path(traces)) - before
        lasted_s = time.monotonic() - began
    of_rows = sum(count for text, count in sent.items() if not text.startswith(_NOT_OF_ROWS))
    return of_rows / lasted_s, sent.total() / lasted_s


def _sent(traces: Path) -> Counter[str]:
    return Counter(text for sent in statements(traces).values() for text in sent)


if __name__ == "__main__":
    raise SystemExit(main())
