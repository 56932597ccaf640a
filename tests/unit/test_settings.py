"""Tests: the settings of a supervisor and the bounds of each."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from qml_mp.errors import ConfigurationError
from qml_mp.setting_kinds import Time, check_queue_name
from qml_mp.settings import SETTINGS, ServerConfig


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
