"""Tests: a script that starts a server on its own module, without a main guard, is told of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qml_mp.storage.store import Storage
from tests.processes.harness import PATIENCE_S, ROOT, few

pytestmark = pytest.mark.parametrize("url", ["sqlite"], indirect=True)

_SCRIPT = """
from qml_mp import BackgroundJobServer, QmlApp, ServerConfig, open_storage

app = QmlApp({url!r})

@app.job()
def work() -> int:
    return 7

def main() -> None:
    server = BackgroundJobServer(ServerConfig(worker_count=1), open_storage({url!r}), "unguarded:app")
    {start}
    print(work.enqueue().wait(timeout=60))
    server.stop()

{guard}main()
"""


def run_script(url: str, folder: Path, **parts: str) -> subprocess.CompletedProcess[str]:
    script = folder / "unguarded.py"
    script.write_text(_SCRIPT.format(url=url, **{"guard": "", **parts}))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("QML_MP_")}
    return subprocess.run(
        [sys.executable, str(script)], cwd=folder, env={**kept, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False,
    )  # fmt: skip


@few("start", ["server.start()"], nightly=["server.run()"])
def test_a_script_without_a_main_guard_is_told_of_it_and_runs_nothing_twice(
    storage: Storage, url: str, tmp_path: Path, start: str
) -> None:
    script = run_script(url, tmp_path, start=start)

    assert script.returncode == 1
    assert "each worker would start another one" in script.stderr
    assert 'if __name__ == "__main__":' in script.stderr
    assert sum(storage.job_counts().values()) == 0
    assert storage.list_servers() == []


def test_with_the_guard_it_runs(storage: Storage, url: str, tmp_path: Path) -> None:
    guard = 'if __name__ == "__main__":\n    '

    script = run_script(url, tmp_path, start="server.start()", guard=guard)

    assert (script.returncode, script.stdout) == (0, "7\n"), script.stderr
    assert sum(storage.job_counts().values()) == 1
