"""Tests: apps that do not import, workers that die while booting, and rows that nobody can run."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from qml_mp.core.state import Failed, StateName
from qml_mp.storage.store import Storage
from tests.processes.harness import Server, enqueue, few, left_in_registry, wait_for_state, wait_until
from tests.processes.pid_namespace import CONTAINER, first_process, need_namespaces
from tests.storage_rows import insert_raw_job

MakeServer = Callable[..., Server]


@pytest.mark.fault(60)
def test_an_app_that_breaks_in_the_workers_alone_stops_the_server_too(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    # Imports where the supervisor probes it, and fails from the second import on.
    (tmp_path / "fading_app.py").write_text(
        "import pathlib\n"
        "from qml_mp import QmlApp\n"
        f"mark = pathlib.Path({str(tmp_path / 'mark')!r})\n"
        "if mark.exists():\n"
        "    raise RuntimeError('gone stale')\n"
        "mark.touch()\n"
        "app = QmlApp()\n"
    )
    one = server("-w", "2", app="fading_app:app", PYTHONPATH=str(tmp_path))

    one.start(ready=None)

    assert one.wait() == 3
    assert one.log().count("RuntimeError: gone stale") == 1
    assert one.log().count("Stopping now (no worker can boot)") == 1
    assert left_in_registry(storage, one.log()) == []


@pytest.mark.nightly
def test_a_burst_ends_with_the_workers_that_it_has_where_no_other_can_boot(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    gate, stale = tmp_path / "gate", tmp_path / "stale"
    # Of two workers that are ready, one dies of the job, and no other boots from then on.
    (tmp_path / "stale_app.py").write_text(
        "import os, pathlib, signal, time\n"
        "from qml_mp import QmlApp\n"
        f"gate, stale = pathlib.Path({str(gate)!r}), pathlib.Path({str(stale)!r})\n"
        "if stale.exists():\n"
        "    raise RuntimeError('gone stale')\n"
        "app = QmlApp()\n"
        "@app.job()\n"
        "def work():\n"
        "    while not gate.exists():\n"
        "        time.sleep(0.01)\n"
        "    if not stale.exists():\n"
        "        stale.touch()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    job_id = enqueue(storage, "work")
    one = server("-w", "2", "--burst", app="stale_app:app", PYTHONPATH=str(tmp_path)).start(ready=2)

    gate.touch()

    assert one.wait() == 0
    assert "RuntimeError: gone stale" in one.log()
    assert "Stopping (nothing is left to do)" in one.log()
    assert wait_for_state(storage, job_id, StateName.SUCCEEDED).crashes == 1


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
@few("prefix, expected", [((), -signal.SIGTERM)], nightly=[(CONTAINER, 0)])
def test_a_stop_while_the_app_is_imported_ends_the_server(
    server: MakeServer, storage: Storage, tmp_path: Path, prefix: tuple[str, ...], expected: int
) -> None:
    if prefix:
        need_namespaces()
    mark = tmp_path / "mark"
    (tmp_path / "slow_app.py").write_text(
        f"import pathlib, time\npathlib.Path({str(mark)!r}).touch()\ntime.sleep(1000)\n"
    )
    one = server("-w", "1", app="slow_app:app", PYTHONPATH=str(tmp_path))
    one.prefix = prefix
    one.start(ready=None)
    wait_until(mark.exists, what=one.log)

    os.kill(first_process(one) if prefix else one.pid, signal.SIGTERM)

    assert one.wait() == expected, one.log()
    assert left_in_registry(storage, one.log()) == []


@pytest.mark.fault(60)
def test_after_a_bad_deploy_old_workers_go_on_and_a_mended_app_is_picked_up(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    module = tmp_path / "living_app.py"
    good = "from qml_mp import QmlApp\napp = QmlApp()\n@app.job()\ndef version():\n    return {}\n"
    module.write_text(good.format(1))
    one = server(
        "-w", "2", app="living_app:app", PYTHONPATH=str(tmp_path), PYTHONDONTWRITEBYTECODE="1"
    ).start(ready=2)
    module.write_text("raise RuntimeError('bad deploy')\n")

    one.signal(signal.SIGHUP)

    wait_until(lambda: "bad deploy" in one.log(), what=one.log)
    assert wait_for_state(storage, enqueue(storage, "version"), StateName.SUCCEEDED).result == 1
    module.write_text(good.format(2))
    wait_until(lambda: len(one.worker_pids()) == 2, what="the recovery")
    one.signal(signal.SIGHUP)
    wait_until(
        lambda: wait_for_state(storage, enqueue(storage, "version"), StateName.SUCCEEDED).result == 2,
        what="the new version",
    )
    assert one.stop() == 0


@pytest.mark.fault(27)
@pytest.mark.fault(28)
@pytest.mark.fault(29)
@pytest.mark.fault(30)
def test_raw_rows_that_cannot_run_end_failed_and_harm_no_worker(server: MakeServer, storage: Storage) -> None:
    one = server("-w", "1").start()
    workers = one.worker_pids()

    bad = {
        "corrupt": insert_raw_job(storage, "quick", "{not json"),
        "deep": insert_raw_job(storage, "quick", "[" * 100_000 + "]" * 100_000),
        "nan": insert_raw_job(storage, "quick", '{"busy_s": NaN}'),
        "mismatch": insert_raw_job(storage, "quick", '{"no_such_argument": 1}'),
    }

    for name, job_id in bad.items():
        job = wait_for_state(storage, job_id, StateName.FAILED)
        assert isinstance(job.state, Failed)
        assert job.state.exception is not None, name
    assert one.worker_pids() == workers
    assert wait_for_state(storage, enqueue(storage, "quick"), StateName.SUCCEEDED)
    assert one.stop() == 0


@pytest.mark.fault(30)
@pytest.mark.fault(90)
def test_raw_rows_with_an_unknown_method_wait_and_nothing_is_imported_for_them(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    never = tmp_path / "never"
    unknown = [
        insert_raw_job(storage, "no_such_method", "{}"),
        insert_raw_job(storage, "os.system", f'["touch {never}"]'),
        insert_raw_job(storage, "", "{}"),
    ]
    one = server("-w", "1").start()

    known_id = enqueue(storage, "quick")

    wait_for_state(storage, known_id, StateName.SUCCEEDED)
    jobs = [storage.get(job_id) for job_id in unknown]
    assert [(job.state_name, job.claim_seq) for job in jobs if job] == [(StateName.ENQUEUED, 0)] * 3
    assert one.stop() == 0
    assert not never.exists()
