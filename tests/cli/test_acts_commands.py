"""`servers pause|resume|drain`, `workers replace`, `audit`, and `--server` of one on another machine: here
one in a pid namespace of its own, which no signal from here can be meant for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qml_mp import host
from qml_mp.core.acts import ALL_ACTS, ActKind, ActState, Asker
from qml_mp.core.job import Job
from qml_mp.core.server_info import ProcessIdentity
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.cli.command import TASKS, Qml, is_one_error
from tests.cli.test_signals_commands import register
from tests.processes.harness import PATIENCE_S, wait_until
from tests.processes.pid_namespace import CONTAINER, need_namespaces

_GATED = """
import pathlib, time

@app.job()
def gated() -> None:
    pathlib.Path("begun").touch()
    while not pathlib.Path("gate").exists():
        time.sleep(0.01)  # until the test opens the gate
"""
ME = host.user_at_host()


@contextmanager
def far_server(qml: Qml, storage: Storage, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server with two workers, elsewhere."""
    need_namespaces()
    (qml.folder / "tasks.py").write_text(TASKS + _GATED)
    with (qml.folder / "far.log").open("ab") as log:
        command = [
            *CONTAINER, sys.executable, "-m", "qml_mp", "-A", "tasks:app", "start", "-w", "2",
            "--server-name", "far", *arguments,
        ]  # fmt: skip
        process = subprocess.Popen(
            command, cwd=qml.folder, env=qml.environment(), stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_until(lambda: len(storage.list_workers()) == 2, what=(qml.folder / "far.log").read_text())
        yield process
    finally:
        if process.poll() is None:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            for pid in map(int, children):
                os.kill(pid, 9)
        process.wait(PATIENCE_S)


def begin_gated(qml: Qml, storage: Storage) -> str:
    job_id = storage.enqueue(Job.new("gated"))
    wait_until((qml.folder / "begun").exists)
    return job_id


def state_of(storage: Storage, job_id: str) -> StateName:
    job = storage.get(job_id)
    assert job is not None
    return job.state_name


def audited(qml: Qml) -> list[dict[str, Any]]:
    """Newest first."""
    return qml("audit", "--json").lines


def test_a_server_elsewhere_tells_its_stacks_is_reloaded_and_stopped(qml: Qml, storage: Storage) -> None:
    with far_server(qml, storage) as process:
        begin_gated(qml, storage)
        (info,) = storage.list_servers()

        here = qml("stacks")
        stacks = qml("stacks", "--server", "far", "--json")
        by_pid = qml("stacks", "--server", str(info.process.pid))
        tasks = qml.folder / "tasks.py"
        code = tasks.read_text()
        tasks.write_text("import no_such_library\n" + code)
        refused = qml("reload", "--server", info.id)
        tasks.write_text(code)
        (qml.folder / "gate").touch()
        reloaded = qml("reload", "--server", "far")
        stopped = qml("stop", "--server", "far")
        ended = process.wait(PATIENCE_S)

    assert here.code == 1
    assert "No server of" in here.err
    assert by_pid.code == 1  # a pid of another machine names nobody
    assert sorted(line["method"] or "idle" for line in stacks.lines) == ["gated", "idle"]
    assert any(" in gated" in line["stack"] for line in stacks.lines)
    assert refused.code == 3
    assert "The workers stay as they are" in refused.err
    assert "  ModuleNotFoundError: No module named 'no_such_library'\n" in refused.err
    assert (reloaded.code, reloaded.out) == (0, f"far on {info.hostname} (pid 1): 2 workers replaced\n")
    assert (stopped.code, ended) == (0, 0)
    told = [(line["what"], line["state"], line["by"], line["from"]) for line in audited(qml)]
    assert told == [
        ("stop", "done", ME, "cli"), ("reload", "done", ME, "cli"), ("reload", "failed", ME, "cli"),
        ("stacks", "done", ME, "cli"),
    ]  # fmt: skip


def test_a_server_elsewhere_is_paused_resumed_and_drained(qml: Qml, storage: Storage) -> None:
    with far_server(qml, storage) as process:
        running = begin_gated(qml, storage)

        paused, listed = qml("servers", "pause", "far"), qml("servers", "list", "--json")
        resumed = qml("servers", "resume", "far")
        late = qml("servers", "drain", "far", "--timeout", "0.2")
        at_once = qml("servers", "drain", "far", "--no-wait")
        (qml.folder / "gate").touch()
        drained = qml("servers", "drain", "far", "--stop")
        ended = process.wait(PATIENCE_S)

    assert (paused.code, paused.out.partition(": ")[2]) == (0, "claims are paused\n")
    assert [line["paused"] for line in listed.lines] == [True]
    assert resumed.out.endswith(": claims are resumed\n")
    assert late.code == 1
    assert "it goes on" in late.err
    assert (at_once.code, at_once.out.partition(": ")[2]) == (0, "asked\n")
    assert (drained.code, ended) == (0, 0)
    assert state_of(storage, running) is StateName.SUCCEEDED
    assert storage.list_servers() == []


def test_a_worker_is_replaced_by_its_server_and_number_and_by_its_id(qml: Qml, storage: Storage) -> None:
    with far_server(qml, storage):
        before = {each.number: each.id for each in storage.list_workers()}

        by_number = qml("workers", "replace", "far/2")
        wait_until(lambda: len(storage.list_workers()) == 2)
        by_id = qml("workers", "replace", before[1])
        wait_until(lambda: len(storage.list_workers()) == 2)
        again = qml("workers", "replace", before[1])
        nobody = qml("workers", "replace", "far/9")
        nonsense = qml("workers", "replace", "far/" + "9" * 5000)
        after = wait_until(lambda: {each.number: each.id for each in storage.list_workers()})

    assert [ended.code for ended in (by_number, by_id, again, nobody, nonsense)] == [0, 0, 1, 1, 1]
    assert ": replaced by pid " in by_number.out
    assert set(after.values()).isdisjoint(before.values())
    assert "No worker is called" in again.err
    assert "No worker is called 'far/9'" in nobody.err
    assert "No worker is called" in nonsense.err


def test_a_server_of_this_machine_is_asked_in_the_same_way(qml: Qml) -> None:
    with qml.started("-w", "1", "--server-name", "blue") as process:
        qml.until(
            "status", shows=lambda status: any(each["workers"] for each in status["servers"]), server=process
        )

        paused, drained = qml("servers", "pause", "blue"), qml("servers", "drain", "blue", "--stop")
        code = process.wait(PATIENCE_S)

    assert (paused.code, drained.code, code) == (0, 0, 0)


def test_who_cannot_be_asked_is_said(qml: Qml, storage: Storage) -> None:
    elsewhere = ProcessIdentity(host="another machine", pid=1, started_ticks=1)
    register(storage, "old", elsewhere)
    register(storage, "two", elsewhere)
    (first, *_) = [each for each in storage.list_servers() if each.name == "two"]
    for number in (1, 2):
        storage.register_server(replace(first, id=f"two#{number}", acts=ALL_ACTS))

    old, two = qml("servers", "pause", "old"), qml("servers", "pause", "two")
    for each in storage.list_servers():
        storage.heartbeat_server(each.id, worker_rss={})  # as if no time had passed
    nobody, two_far = qml("servers", "drain", "nobody"), qml("stop", "--server", "two")

    assert [ended.code for ended in (old, two, nobody, two_far)] == [1, 2, 1, 2]
    assert "runs an older version" in old.err
    assert "2 servers are called 'two'. Name one by its id: two#1" in two.err
    assert "No server that runs is called 'nobody'" in nobody.err
    assert "2 servers elsewhere are called 'two'" in two_far.err
    assert all(is_one_error(ended.err) for ended in (old, nobody))
    assert storage.list_acts().acts == ()


def test_a_server_that_does_not_answer_is_told_and_later_does_nothing(qml: Qml, storage: Storage) -> None:
    register(storage, "mute", ProcessIdentity(host="another machine", pid=1, started_ticks=1))
    (info,) = storage.list_servers()
    storage.register_server(replace(info, acts=ALL_ACTS))

    asked = qml("servers", "drain", "mute", "--timeout", "0.2")

    assert asked.code == 1
    assert "waits for the server; it goes on" in asked.err
    (line,) = audited(qml)
    assert (line["what"], line["state"]) == (ActKind.DRAIN, ActState.ASKED)


def test_what_people_change_is_in_the_audit(qml: Qml, storage: Storage) -> None:
    failed = [storage.enqueue(Job.new("work", queue="images")) for _ in range(3)]
    changes = (
        ("queues", "pause", "images"), ("queues", "limit", "images", "3"), ("queues", "resume", "images"),
        ("recurring", "add", "digest", "0 9 * * *", "work"), ("recurring", "disable", "digest"),
        ("recurring", "enable", "digest"), ("recurring", "run", "digest"), ("recurring", "remove", "digest"),
        ("jobs", "cancel", failed[0]), ("jobs", "delete", "--queue", "images", "--yes"),
    )  # fmt: skip

    codes = [qml(*change).code for change in changes]
    first = qml("audit", "--limit", "1", "--json").lines
    shown, rest = qml("audit"), qml("audit", "--json", "--after", first[0]["id"]).lines

    assert codes == [0] * len(changes)
    assert [(line["what"], line["subject"]) for line in reversed(first + rest)] == [
        ("pause queue", "images"), ("limit queue", "images"), ("resume queue", "images"),
        ("add template", "digest"), ("disable template", "digest"), ("enable template", "digest"),
        ("run template", "digest"), ("remove template", "digest"),
        ("cancel job", failed[0]), ("delete jobs", "queue images"),
    ]  # fmt: skip
    assert first[0]["said"] == "2 jobs"
    assert {line["by"] for line in first + rest} == {ME}
    assert "delete jobs" in shown.out
    assert ME in shown.out


@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_a_page_of_the_audit_says_how_to_go_on(qml: Qml, storage: Storage, as_json: tuple[str, ...]) -> None:
    for number in range(3):
        storage.audit(Asker(who="anna", where="cli"), "pause queue", f"images{number}")

    first = qml("audit", "--limit", "2", *as_json)
    rest = qml("audit", "--after", first.err.split("--after ")[1].strip(), *as_json)

    assert "images1" in first.out
    assert "images0" in rest.out
    assert rest.err == ""
