"""Tests: what a server serves beside its workers, asked as Prometheus and Kubernetes do."""

from __future__ import annotations

import http.client
import re
import urllib.error
import urllib.request
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.processes.harness import PATIENCE_S, Server, is_gone, wait_until


def side_pid(server: Server, kind: str = "metrics") -> int | None:
    """Of the process beside the workers that serves this; None: there is none now."""
    for pid in children(server.pid):
        if title(pid) == f"qml-mp: {kind}" and not is_gone(pid):
            return pid
    return None


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().strip("\0").strip()
    except OSError:
        return ""


def served_at(server: Server, kind: str = "metrics") -> str:
    """Where it is, without a path, once it is served."""
    served = re.compile(rf"The {kind}: (http://[^/\s]+)/")
    found: list[str] = wait_until(lambda: served.findall(server.log()), what=server.log)
    return found[-1]


def get(url: str, *, within_s: float = PATIENCE_S) -> tuple[int, str]:
    """Status and body; 0 when nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=within_s) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except (OSError, http.client.HTTPException):
        return 0, ""


def scrape(url: str) -> dict[str, float]:
    """Each sample by its name with its labels."""
    status, text = get(f"{url}/metrics")
    assert status == 200, text
    return {
        sample.name
        + "".join(f" {name}={value}" for name, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
