"""Tests: the FastAPI example under a real server, asked over HTTP."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from qml_mp import host
from qml_mp.storage.store import Storage
from tests.processes.harness import PATIENCE_S, ROOT, left_in_registry, wait_until
from tests.processes.test_embedding import family

SERVICE = "examples.fastapi_service:service"


@pytest.fixture
def service(url: str, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The example under uvicorn, on a port that the system picks."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("QML_MP_")}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", SERVICE, "--port", "0"],
            cwd=ROOT, env={**kept, "QML_MP_URL": url},
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def client(service: subprocess.Popen[bytes], tmp_path: Path) -> Iterator[httpx.Client]:
    """An HTTP client of the service, once it takes requests."""

    def address() -> str | None:
        log = (tmp_path / "log").read_text()
        assert service.poll() is None, log
        found = re.search(r"running on (http://\S+)", log)
        return found and found[1]

    found = wait_until(address, what="the service")
    with httpx.Client(base_url=found, trust_env=False, timeout=PATIENCE_S) as client:
        yield client


@pytest.mark.fault(67)
def test_requests_enqueue_jobs_and_read_results_and_miss_unknown_ones_and_sigterm_ends_everything(
    service: subprocess.Popen[bytes], client: httpx.Client, storage: Storage, tmp_path: Path
) -> None:
    accepted = client.post("/words", json={"text": "to be or not to be"})

    def ended() -> dict[str, object] | None:
        answer: dict[str, object] = client.get(f"/jobs/{accepted.json()['id']}").json()
        return answer if answer["state"] == "succeeded" else None

    answer = wait_until(ended, what="the result")
    unknown = [client.get(f"/jobs/{job_id}") for job_id in ("01900000-0000-7000-8000-000000000000", "what")]
    refused = client.post("/words", json={"text": "\0"})
    ours = family(storage)
    service.send_signal(signal.SIGTERM)

    assert accepted.status_code == 202
    assert answer["result"] == {"to": 2, "be": 2, "or": 1, "not": 1}
    assert [each.status_code for each in unknown] == [404, 404]
    assert refused.status_code == 422
    assert client_error(service) == 0
    assert not any(host.is_alive(one) for one in ours)
    assert left_in_registry(storage, (tmp_path / "log").read_text()) == []


def client_error(service: subprocess.Popen[bytes]) -> int:
    """The service's exit code; uvicorn raises the signal again after its orderly end."""
    code = service.wait(60)
    return 0 if code == -signal.SIGTERM else code


@pytest.mark.nightly
@pytest.mark.fault(67)
def test_a_killed_service_leaves_no_process(
    service: subprocess.Popen[bytes], client: httpx.Client, storage: Storage, tmp_path: Path
) -> None:
    ours = family(storage)

    service.kill()

    wait_until(lambda: not any(host.is_alive(one) for one in ours), what="the end of the server")
    assert left_in_registry(storage, (tmp_path / "log").read_text()) == []
