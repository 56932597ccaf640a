"""Tests: the settings of a supervisor, the bounds of each, and which the code has given."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from qml_mp import QmlApp, ServerConfig
from qml_mp.child.source import LoadedProgram, probe, read_facts
from qml_mp.errors import ConfigurationError
from qml_mp.setting_kinds import Time, check_queue_name
from qml_mp.settings import SETTINGS
from qml_mp.sources import load_config, unknown_variables


def test_the_defaults_are_those_of_the_reference_but_for_the_batch() -> None:
    config = ServerConfig()

    assert config.server_name == "qml-server"
    assert config.worker_count == 5
    assert config.queues == ("default",)
    assert config.polling_interval == timedelta(seconds=1)
    assert config.job_timeout == timedelta(minutes=5)
    assert config.fetch_batch_size == 100
    assert config.scheduler_poll_interval == timedelta(seconds=30)
    assert config.shutdown_timeout == timedelta(seconds=30)
    assert config.stale_processing_after == timedelta(minutes=5)
    assert config.recurring_poll_interval == timedelta(seconds=5)
    assert config.cleanup_interval == timedelta(minutes=1)
    assert config.succeeded_ttl == timedelta(hours=24)
    assert config.failed_ttl == timedelta(days=7)
    assert config.heartbeat_interval == timedelta(seconds=10)
    assert config.dead_server_timeout == timedelta(seconds=60)


def test_durations_and_sizes_are_taken_as_people_write_them() -> None:
    settings: dict[str, Any] = {"job_timeout": "2m", "polling_interval": 0.5, "max_memory": "512MiB"}

    config = ServerConfig(**settings)

    assert config.job_timeout == timedelta(minutes=2)
    assert config.polling_interval == timedelta(milliseconds=500)
    assert config.max_memory == 512 * 1024**2


def test_a_queue_named_twice_is_served_once() -> None:
    assert ServerConfig(queues=["a", "b", "a"]).queues == ("a", "b")


def test_no_worker_and_no_queue_are_legal() -> None:
    config = ServerConfig(worker_count=0, queues=[])

    assert config.worker_count == 0
    assert config.queues == ()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("server_name", ""),
        ("server_name", "a b"),
        ("server_name", "x" * 101),
        ("worker_count", -1),
        ("worker_count", 1025),
        ("worker_count", True),
        ("worker_count", 2.0),
        ("fetch_batch_size", 0),
        ("max_crashes", 0),
        ("max_jobs", 0),
        ("max_memory", "a lot"),
        ("max_memory", "9" * 400),
        ("max_memory", 2**63),
        ("max_memory_hard", 0),
        ("max_memory_hard", 512),  # meant were MiB
        ("queues", "default"),
        ("queues", None),
        ("queues", 5),
        ("preload", "off"),
        ("preload", 1),
        ("enable_scheduler", None),
        ("web_hosts", "jobs.example"),
        ("web_hosts", ["jobs.example:80"]),
        ("job_timeout", 0),
        ("polling_interval", "soon"),
        ("shutdown_timeout", -1),
        ("dead_server_timeout", 15),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_its_field(field: str, value: object) -> None:
    settings: dict[str, Any] = {field: value}

    with pytest.raises(ConfigurationError, match=rf"^ServerConfig\.{field} is .*; it must be ") as refusal:
        ServerConfig(**settings)

    assert refusal.value.field == field


@pytest.mark.parametrize("name", [name for name, kind in SETTINGS.items() if isinstance(kind, Time)])
def test_a_duration_of_more_than_a_hundred_years_is_refused_with_its_field(name: str) -> None:
    settings: dict[str, Any] = {name: timedelta(days=1_000_000)}

    with pytest.raises(
        ConfigurationError, match=rf"^ServerConfig\.{name} is 86400000000s; it must be at most 36525d"
    ):
        ServerConfig(**settings)


def test_a_queue_that_cannot_be_is_refused_with_the_field_of_the_queues() -> None:
    with pytest.raises(ConfigurationError, match="queue name 'a b'") as refusal:
        ServerConfig(queues=["a b"])

    assert refusal.value.field == "queues"


def test_every_default_is_one_that_its_setting_takes() -> None:
    defaults = ServerConfig()

    for name, kind in SETTINGS.items():
        value = getattr(defaults, name)
        assert value is None or kind.check(value, name) == value


@pytest.mark.parametrize("name", ["", "a b", "a,b", "ü", "x" * 101, "*", "a\n"])
def test_a_queue_name_that_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="queue name"):
        check_queue_name(name)


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
