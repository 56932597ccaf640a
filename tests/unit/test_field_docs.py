"""`help()` of the classes that people fill in: it says what their fields mean."""

from __future__ import annotations

import inspect
import pickle
import pydoc
from dataclasses import fields

import pytest

from qml_mp import RetryPolicy, ServerConfig, WorkerContext
from qml_mp.settings import SETTINGS


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (ServerConfig, "  worker_count: int = 5\n      Worker processes; 0 is legal: only the loops run."),
        (ServerConfig, "  job_timeout: timedelta = 5m\n      Time limit of a job that sets none of its own."),
        (RetryPolicy, "  max_attempts: int = 5\n      Attempts in all, the first included."),
        (RetryPolicy, "  max_delay: timedelta = 15m\n      No delay is longer, jitter included."),
        (
            WorkerContext,
            "  attempt: int\n      1 for the first; failures and crashes count, releases do not.",
        ),
    ],
)
def test_the_documentation_has_what_stands_below_each_field(kind: type, told: str) -> None:
    text = inspect.getdoc(kind) or ""

    assert told in text
    assert told.splitlines()[1].strip() in pydoc.plain(pydoc.render_doc(kind))


def test_every_setting_is_there_and_what_is_none_is_not() -> None:
    _, _, told = (inspect.getdoc(ServerConfig) or "").partition("\nAttributes:\n")

    names = [line.strip().partition(":")[0] for line in told.splitlines() if line[:3].strip()]
    assert names == list(SETTINGS)
    assert len(names) == len(fields(ServerConfig)) - 2


def test_without_the_source_the_docstring_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_source(_: object) -> str:
        raise OSError

    monkeypatch.setattr(inspect, "getsource", no_source)

    assert "Attributes" not in (inspect.getdoc(RetryPolicy) or "")
    assert (RetryPolicy.__doc__ or "").startswith("The judge of failed attempts.")


def test_values_are_as_they_were() -> None:
    policy = RetryPolicy.fixed("3s")

    assert pickle.loads(pickle.dumps(policy)) == policy
    assert policy.__doc__ == RetryPolicy.__doc__
