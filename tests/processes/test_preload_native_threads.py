"""Tests: apps that start native threads when imported, as data libraries do, are preloaded all the same."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qml_mp.core.state import FINAL_STATES
from qml_mp.storage.store import Storage
from tests.processes.harness import PATIENCE_S, ROOT, Server, enqueue, result_of, wait_for_state

MakeServer = Callable[..., Server]
NATIVE_THREADS = """
import ctypes, faulthandler, os, signal
libc = ctypes.CDLL(None)
libc.pthread_create(ctypes.byref(ctypes.c_void_p()), None, libc.pause, None)
faulthandler.dump_traceback_later(86400)  # one more, which no copy must wait for
def threads():
    return len(os.listdir("/proc/self/task"))
assert threads() == 3
"""
APP = f"""{NATIVE_THREADS}
from qml_mp import QmlApp
app = QmlApp()
@app.job()
def look() -> dict:
    return {{"pid": os.getpid(), "threads": threads()}}
"""
HOST = f"""{NATIVE_THREADS}
import json, sys
from qml_mp import BackgroundJobServer, QmlApp, ServerConfig
app = QmlApp(sys.argv[1])
@app.job()
def look() -> int:
    return threads()
@app.job()
def leave() -> None:
    os.kill(os.getppid(), signal.SIGTERM)
jobs = [look.enqueue(), look.enqueue(), leave.enqueue()]
code = BackgroundJobServer(ServerConfig(worker_count=1), app.storage, app.program).run()
print(json.dumps([code, *(job.result for job in jobs)]))
"""
SHARES_APP = """
import os
from qml_mp import QmlApp
app = QmlApp()
@app.job()
def shares() -> list:
    return [os.environ.get(name) for name in ("POLARS_MAX_THREADS", "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS")]
"""
LIBRARIES = [
    "numpy", "pandas", "pyarrow", "polars", "sklearn", "joblib", "pool", "executor", "numba", "pillow",
]  # fmt: skip

on_sqlite = pytest.mark.parametrize("url", ["sqlite"], indirect=True)


@on_sqlite
def test_an_app_whose_import_starts_native_threads_is_preloaded_and_the_log_names_them_once(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    (tmp_path / "native_app.py").write_text(APP)
    one = server("-w", "1", "--preload", app="native_app:app", PYTHONPATH=str(tmp_path))
    one.program, one.fresh = ("-W", "always::DeprecationWarning", *one.program), True
    one.start()

    first = result_of(storage, "look")
    second = result_of(storage, "look")
    assert isinstance(first, dict)
    os.kill(first["pid"], signal.SIGKILL)
    third = result_of(storage, "look")

    assert second == first
    assert isinstance(third, dict)
    assert (first["threads"], third["threads"]) == (1, 1)
    assert third["pid"] != first["pid"]
    assert one.stop() == 0
    assert one.log().count("importing 'native_app:app' started native threads") == 1
    assert "DeprecationWarning" not in one.log()  # of a fork beside threads, since Python 3.12


@on_sqlite
def test_a_program_with_native_threads_runs_a_server(storage: Storage, url: str, tmp_path: Path) -> None:
    (tmp_path / "host.py").write_text(HOST)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("QML_MP_")}

    ended = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", str(tmp_path / "host.py"), url],
        env={**kept, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=3 * PATIENCE_S,
        check=False,
    )  # fmt: skip

    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == [0, 1, 1, None]


@on_sqlite
def test_polars_numba_and_rayon_have_a_workers_share_of_the_cores(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    (tmp_path / "shares_app.py").write_text(SHARES_APP)
    one = server("-w", "2", app="shares_app:app", PYTHONPATH=str(tmp_path)).start()

    told = result_of(storage, "shares")

    assert told == [str(max(1, len(os.sched_getaffinity(0)) // 2))] * 3
    assert one.stop() == 0


# Nightly: the libraries are slow to install, and the test above shows the same of another native thread.
@pytest.mark.nightly
@on_sqlite
@pytest.mark.parametrize("libraries", [LIBRARIES, ["torch"]], ids=["group", "torch"])
def test_data_libraries_compute_in_the_workers_of_a_preloaded_app(
    server: MakeServer, storage: Storage, libraries: list[str]
) -> None:
    if libraries == ["torch"] and importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    one = server("-w", "2", "--preload", app="tests.processes.apps_data:app").start(ready=2)

    jobs = [(library, enqueue(storage, f"use_{library}")) for library in libraries * 2]
    ended = [(library, wait_for_state(storage, job, *FINAL_STATES)) for library, job in jobs]

    assert [(library, job.result) for library, job in ended] == [(library, "fine") for library, _ in jobs]
    assert one.log().count("started native threads") == 1
    assert one.stop() == 0
