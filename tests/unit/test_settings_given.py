"""What the code has written in a `ServerConfig` is told from what it left at its default."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qml_mp import QmlApp, ServerConfig
from qml_mp.child.source import LoadedProgram, probe, read_facts
from qml_mp.sources import load_config, unknown_variables

WRITTEN = ServerConfig(worker_count=5, job_timeout="5m", max_jobs=None)  # type: ignore[arg-type]


def read_back_by_the_probe(config: ServerConfig) -> ServerConfig:
    facts = read_facts(probe(LoadedProgram(program=QmlApp("memory://", config=config).program)))
    assert facts.config is not None
    return facts.config


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QML_MP_WORKER_COUNT", "2")
    monkeypatch.setenv("QML_MP_MAX_JOBS", "7")
    monkeypatch.setenv("QML_MP_MAX_CRASHES", "9")


@pytest.mark.parametrize(
    "passed_on",
    [
        lambda config: config,
        copy.copy,
        copy.deepcopy,
        lambda config: pickle.loads(pickle.dumps(config)),
        lambda config: ServerConfig(**json.loads(json.dumps(config.plain()))),
        lambda config: replace(config, preload=True),
        lambda _: replace(ServerConfig(), worker_count=5, max_jobs=None),
        read_back_by_the_probe,
    ],
)
def test_a_setting_in_the_code_wins_over_the_environment_though_it_equals_the_default(
    passed_on: Callable[[ServerConfig], ServerConfig],
) -> None:
    code = passed_on(WRITTEN)

    config = load_config(flags={}, code=code)

    assert (config.worker_count, config.max_jobs, config.max_crashes) == (5, None, 9)


def test_replace_adds_what_it_changes_and_nothing_else() -> None:
    changed = replace(WRITTEN, max_crashes=3, worker_count=4)

    assert WRITTEN.given == {"worker_count", "job_timeout", "max_jobs"}
    assert changed.given == {"worker_count", "job_timeout", "max_jobs", "max_crashes"}


def test_what_any_source_gives_is_given_though_it_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    default = ServerConfig()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "qml-mp.toml").write_text("preload = false")
    monkeypatch.setenv("QML_MP_QUEUES", "default")

    config = load_config(flags={"max_memory": 0, "server_name": default.server_name}, code=WRITTEN)

    assert config.given == {
        *("worker_count", "job_timeout", "max_jobs"),  # the code
        *("max_crashes", "queues"),  # the environment
        *("preload", "server_name", "max_memory"),
    }


def test_settings_are_equal_by_their_values_and_show_only_those() -> None:
    assert ServerConfig() == WRITTEN
    assert hash(ServerConfig()) == hash(WRITTEN)
    assert repr(ServerConfig()) == repr(WRITTEN)


def test_what_kubernetes_sets_for_a_service_called_as_this_is_is_no_setting_written_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for service in ("QML_MP", "QML_MP_WEB"):
        monkeypatch.setenv(f"{service}_SERVICE_HOST", "10.0.0.1")
        monkeypatch.setenv(f"{service}_SERVICE_PORT", "8765")
        monkeypatch.setenv(f"{service}_SERVICE_PORT_HTTP", "8765")
        monkeypatch.setenv(f"{service}_PORT", "tcp://10.0.0.1:8765")
        monkeypatch.setenv(f"{service}_PORT_8765_TCP", "tcp://10.0.0.1:8765")
        monkeypatch.setenv(f"{service}_PORT_8765_TCP_PROTO", "tcp")
        monkeypatch.setenv(f"{service}_PORT_8765_TCP_PORT", "8765")
        monkeypatch.setenv(f"{service}_PORT_8765_TCP_ADDR", "10.0.0.1")
    monkeypatch.setenv("QML_MP_METRICS_PORT", "8765")  # a person's: Kubernetes has a URL in it

    told = unknown_variables()

    assert [sentence.split()[0] for sentence in told] == ["QML_MP_METRICS_PORT"]
