"""Tests of the benchmark: it runs, without its peers and with small numbers. No figure is asserted."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.bench.ground import ROOT
from tests.warm import SOCKET, launch

LIMITS = ("statements-10", "loops")


@pytest.mark.parametrize(
    ("scenario", "backends"),
    [
        ("empty", ("postgres", "sqlite")),
        # These show the same of the other scenarios, and take up to 10 s.
        pytest.param("enqueue", ("postgres", "sqlite"), marks=pytest.mark.nightly),
        pytest.param("latency", ("postgres",), marks=pytest.mark.nightly),
        pytest.param("latency", ("sqlite",), marks=pytest.mark.nightly),
        pytest.param("cpu", ("sqlite",), marks=pytest.mark.nightly),
        pytest.param("recovery", ("sqlite",), marks=pytest.mark.nightly),
    ],
)
def test_the_project_and_the_limits_are_measured(
    scenario: str, backends: tuple[str, ...], postgres_url: str, tmp_path: Path
) -> None:
    only = () if len(backends) > 1 else ("--backend", *backends)

    command = [
        sys.executable, "-m", "tests.bench", "--rounds", "1", "--seconds", "0.05", "--only", scenario,
        "--systems", "qml-mp", *LIMITS, *only, "--json", str(tmp_path / "report.json"),
    ]  # fmt: skip
    environment = os.environ | {"QML_MP_TEST_URL": postgres_url}
    # One as its user runs it; for all, so many programs would be dear to start.
    fresh = (scenario, *backends) == ("latency", "sqlite")
    if fresh:
        environment.pop(SOCKET, None)
    with (tmp_path / "output").open("wb") as output, open(os.devnull, "rb") as nothing:
        bench = launch(
            command, cwd=ROOT, env=environment, fresh=fresh,
            stdin=nothing.fileno(), stdout=output.fileno(), stderr=output.fileno(),
        )  # fmt: skip
    try:
        code = bench.wait(300)
    finally:
        bench.send_signal(signal.SIGTERM)

    assert code == 0, (tmp_path / "output").read_text()
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["failures"] == []
    measured = {(row["compared_on"], row["system"]) for row in report["medians"]}
    assert measured >= {(backend, "qml-mp") for backend in backends}
