"""Tests: how far a running job has come is seen while it runs, and kept when it has ended."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner

from qml_mp.cli.main import cli
from qml_mp.core.progress import Progress
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.harness import Server, enqueue, wait_for_state, wait_until
from tests.storage.helpers import patient_url


def printed(url: str, *arguments: str) -> str:
    """What the command prints about the storage."""
    ended = CliRunner().invoke(cli, ["--url", patient_url(url), *arguments])
    assert ended.exit_code == 0, ended.output
    return ended.stdout


def test_what_a_job_says_is_seen_while_it_runs_and_kept_at_its_end(
    server: Callable[..., Server], storage: Storage, url: str, tmp_path: Path
) -> None:
    one = server("-w", "2").start(ready=2)
    gate = tmp_path / "gate"
    job_id = enqueue(storage, "tell", gate=str(gate))
    quiet_id = enqueue(storage, "heed")
    wait_until(one.journal, what=one.log)  # which that one alone writes

    found = wait_until(lambda: storage.progress_of([job_id, quiet_id]), what=one.log)
    workers = [json.loads(line) for line in printed(url, "workers", "list", "--json").splitlines()]
    table = printed(url, "workers", "list")
    gate.touch()

    assert found == {job_id: Progress(done=1, total=3, note="waits")}
    told = {worker["job_id"]: worker["progress"] for worker in workers}
    assert told == {job_id: {"done": 1, "total": 3, "note": "waits"}, quiet_id: None}
    assert "1 of 3 (33 %), waits" in table
    wait_for_state(storage, job_id, StateName.SUCCEEDED)
    assert storage.progress_of([job_id]) == {job_id: Progress(done=3, total=3)}
    shown = json.loads(printed(url, "jobs", "show", job_id, "--json"))
    assert shown["progress"] == {"done": 3, "total": 3, "note": ""}
    assert "3 of 3 (100 %)" in printed(url, "jobs", "show", job_id)
    assert one.stop() == 0
