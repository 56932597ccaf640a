"""Tests: what a `BackgroundJobServer` is made of."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from qml_mp import BackgroundJobServer, QmlApp, RetryPolicy, ServerConfig, WorkerRegistry
from qml_mp.clock import SystemClock
from qml_mp.embedding.extras import check_served
from qml_mp.errors import ConfigurationError
from qml_mp.processing.program import Program
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from qml_mp.web import dashboard


class ThreeHoursAhead(SystemClock):
    def now(self) -> datetime:
        return super().now() + timedelta(hours=3)


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    storage = open_storage(f"sqlite:///{tmp_path / 'jobs.db'}")
    yield storage
    storage.close()


@pytest.mark.parametrize("program", [QmlApp().program, "tasks:app"], ids=["a program", "a name"])
def test_what_would_be_passed_over_beside_an_app_is_refused(storage: Storage, program: Program | str) -> None:
    with pytest.raises(ConfigurationError, match=r"retry_policy, on_state_change beside an app.*QmlApp"):
        BackgroundJobServer(
            ServerConfig(), storage, program, retry_policy=RetryPolicy.none(), on_state_change=print
        )


def test_an_app_in_the_place_of_its_program_is_refused_and_the_error_says_what_to_pass(
    storage: Storage,
) -> None:
    with pytest.raises(ConfigurationError, match=r"got a QmlApp.*`app\.program`"):
        BackgroundJobServer(ServerConfig(), storage, QmlApp())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("storage", lambda _: (ServerConfig(), "postgresql://ada:hunter2@db/jobs", "tasks:app")),
        ("storage", lambda _: (ServerConfig(), None, "tasks:app")),
        ("config", lambda storage: (storage, ServerConfig(), "tasks:app")),
        ("config", lambda storage: ({"worker_count": 2}, storage, "tasks:app")),
        ("config", lambda storage: (None, storage, "tasks:app")),
    ],
    ids=["url", "no storage", "swapped", "a dict", "no config"],
)
def test_what_is_no_config_or_no_storage_is_refused(
    storage: Storage, name: str, arguments: Callable[[Storage], tuple[Any, Any, str]]
) -> None:
    with pytest.raises(ConfigurationError, match=f"as its {name}; it takes") as refused:
        BackgroundJobServer(*arguments(storage))

    assert "hunter2" not in str(refused.value)


def test_a_template_is_stored_and_removed_without_a_running_server(storage: Storage) -> None:
    server = BackgroundJobServer(ServerConfig(), storage, WorkerRegistry())

    server.schedule_recurring("nightly", "0 3 * * *", "work", priority=3)
    stored = [(template.id, template.priority) for template in storage.list_recurring_jobs()]

    assert stored == [("nightly", 3)]
    assert [server.remove_recurring("nightly"), server.remove_recurring("nightly")] == [True, False]


def test_a_schedule_counts_from_now_on_by_the_clock_of_the_storage(tmp_path: Path) -> None:
    """That of this machine may be three hours behind."""
    with closing(open_storage(f"sqlite:///{tmp_path}/jobs.db", clock=ThreeHoursAhead())) as storage:
        BackgroundJobServer(ServerConfig(), storage, WorkerRegistry()).schedule_recurring(
            "tick", "* * * * *", "send"
        )

        (template,) = storage.list_recurring_jobs()
        assert template.next_run_at is not None
        assert template.next_run_at - storage.now() > -timedelta(minutes=1)


@pytest.mark.parametrize("name", ["web", "metrics"])
def test_what_only_a_process_of_its_own_serves_is_refused_in_a_frozen_program(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would start itself in that process's stead, again and again."""
    config = ServerConfig(**{name: "127.0.0.1:0"})  # type: ignore[arg-type]
    check_served(config)
    monkeypatch.setattr(sys, "frozen", True, raising=False)  # as PyInstaller has it

    check_served(ServerConfig())
    with pytest.raises(ConfigurationError, match="no interpreter"):
        check_served(config)


@pytest.mark.parametrize(
    "check", [lambda: check_served(ServerConfig(web="127.0.0.1:0")), lambda: dashboard(QmlApp())]
)
@pytest.mark.parametrize("missing", ["jinja2", "python_multipart", "starlette", "uvicorn"])
def test_a_page_is_refused_where_any_part_of_it_is_not_installed(
    check: Callable[[], object], missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program of FastAPI has some of them without the extra."""
    monkeypatch.setitem(sys.modules, missing, None)  # as Python has it for what is not to be found

    with pytest.raises(ConfigurationError, match="needs the extra `web`"):
        check()
