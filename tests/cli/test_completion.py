"""What a shell is offered for words that name something in the storage."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from qml_mp import host
from qml_mp.core.job import Job
from qml_mp.core.recurring import RecurringJob
from qml_mp.core.server_info import ServerInfo, WorkerInfo
from qml_mp.storage.store import Storage
from tests.cli.command import Ended, Qml
from tests.processes.harness import ROOT

_PATIENT = "from qml_mp.cli import completion\ncompletion._PATIENCE_S = 60.0\n"


def completed(qml: Qml, line: str, shell: str = "bash") -> Ended:
    """The answer for the last word of the line, which may be empty. It takes the time that it takes."""
    words = line.split(" ")
    cursor = words[-1] if shell == "fish" else str(len(words) - 1)
    env = {"_QML_MP_COMPLETE": f"{shell}_complete", "COMP_WORDS": line, "COMP_CWORD": cursor}
    return qml(env={**env, "PYTHONPATH": str(ROOT)}, module="tests.cli.patient_completion")


@pytest.fixture
def stored(storage: Storage) -> list[str]:
    """Two jobs, a server with a worker, and a template; the ids of the jobs."""
    now = datetime.now(UTC)
    storage.register_server(
        ServerInfo(
            id="web#1", name="web", hostname="box", process=host.identity(), worker_count=1,
            queues=("mail",), started_at=now, last_heartbeat=now, methods=("resize", "send"),
        )
    )  # fmt: skip
    storage.register_worker(
        WorkerInfo(id="w", server_id="web#1", number=3, process=host.identity(), started_at=now)
    )
    storage.upsert_recurring_job(RecurringJob.new("nightly", "0 3 * * *", "resize"))
    return [storage.enqueue(Job.new("resize", queue="images")), storage.enqueue(Job.new("boom"))]


def test_jobs_methods_queues_servers_and_templates_are_offered(qml: Qml, stored: list[str]) -> None:
    first, second = stored

    def offered(line: str) -> set[str]:
        return {each.removeprefix("plain,") for each in completed(qml, line).out.split()}

    assert offered("qml-mp jobs show ") == {first, second}
    assert offered(f"qml-mp jobs show {second}") == {second}
    assert offered(f"qml-mp jobs retry {first} ") == {second}
    assert offered("qml-mp enqueue re") == {"resize"}
    assert offered("qml-mp jobs list --method ") == {"resize", "send", "boom"}
    assert offered("qml-mp jobs list --queue ") == {"images", "default", "mail"}
    assert offered("qml-mp queues pause i") == {"images"}
    assert offered("qml-mp reload --server ") == {"web"}
    for verb in ("pause", "resume", "drain"):
        assert offered(f"qml-mp servers {verb} ") == {"web"}
    assert offered("qml-mp workers replace ") == {"web/3"}
    assert offered("qml-mp recurring show ") == {"nightly"}


def test_the_installed_command_offers_what_is_in_the_storage_of_an_app(qml: Qml) -> None:
    (qml.folder / "shop.py").write_text('from qml_mp import QmlApp\n\napp = QmlApp("sqlite:///shop.db")\n')
    job_id = qml("-A", "shop:app", "enqueue", "resize", "--url", "sqlite:///shop.db").out.strip()
    line = f"qml-mp -A shop:app jobs show {job_id[:1]}"
    script = Path(sys.executable).with_name("qml-mp")  # `python -m` has the folder importable by itself
    patient = qml.folder / "patient"
    patient.mkdir()
    (patient / "sitecustomize.py").write_text(_PATIENT)
    path = os.pathsep.join(filter(None, [str(patient), os.environ.get("PYTHONPATH")]))

    ended = subprocess.run(
        [script], cwd=qml.folder, capture_output=True, text=True, check=True,
        env=qml.environment(
            {"_QML_MP_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": "5", "PYTHONPATH": path}
        ),
    )  # fmt: skip

    assert ended.stdout == f"plain,{job_id}\n"


@pytest.mark.parametrize(
    "line",
    [
        "qml-mp --url postgresql://localhost:1/x jobs show ",
        "qml-mp --url sqlite:///missing.db jobs show ",
        "qml-mp -A broken:app jobs show ",
    ],
)
def test_what_does_not_work_offers_nothing_and_says_nothing(qml: Qml, line: str) -> None:
    (qml.folder / "broken.py").write_text("print('imported')\nraise SystemExit('imported')\n")
    before = qml.files()

    ended = completed(qml, line)

    assert (ended.code, ended.out.strip(), ended.err) == (0, "", "")
    assert qml.files() == before


@pytest.mark.usefixtures("storage")
def test_a_job_whose_unique_key_another_has_is_said_to_be_that(qml: Qml) -> None:
    first = qml("enqueue", "resize", "--unique-key", "k")
    second = qml("enqueue", "resize", "--unique-key", "k")

    assert first.err == ""
    assert second.out == first.out
    assert second.err == "qml-mp: an earlier job with the unique key 'k' is kept; this one was not enqueued\n"
