"""An exception whose class is out of the ordinary is described, judged, and ends nothing but its job."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime, time, timedelta, timezone
from typing import Any

import pytest

from qml_mp.core.outcome import Retry
from qml_mp.processing.context import WorkerResult
from qml_mp.processing.middleware import TracingMiddleware
from qml_mp.processing.retry import RetryPolicy
from tests.unit.processor_case import error_of, raising, returning, run

LISTS = RetryPolicy.fixed(10, retry_on=(KeyError, "Odd", OSError), never_retry=(ValueError, "Other"))


def without_module() -> type[Exception]:
    space: dict[str, Any] = {}
    exec('odd = type("Odd", (Exception,), {})', space)  # in a namespace without a name
    odd: type[Exception] = space["odd"]
    with pytest.raises(AttributeError):
        _ = odd.__module__
    return odd


def with_module(module: object) -> type[Exception]:
    return type("Odd", (Exception,), {"__module__": module})


class Unruly(type):
    """A metaclass that raises at everything it is asked (save by `raise` itself: __subclasscheck__)."""

    def __getattribute__(cls, name: str) -> Any:
        raise RuntimeError(name)

    def __eq__(cls, other: object) -> bool:
        raise RuntimeError("eq")

    def __hash__(cls) -> int:
        raise RuntimeError("hash")

    def __repr__(cls) -> str:
        raise RuntimeError("repr")


class Odd(Exception, metaclass=Unruly):
    pass


class Veiled(Exception):
    """Raises at whatever is asked of it."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __str__(self) -> str:
        raise RuntimeError("str")


class Impostor(Exception):
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise RuntimeError("class")


class Text(str):
    """Text that raises when it is looked at."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("eq")

    def __hash__(self) -> int:
        raise RuntimeError("hash")

    def __str__(self) -> str:
        raise RuntimeError("str")


def named_by_unruly_text() -> type[Exception]:
    odd = type("Odd", (Exception,), {"__module__": Text("m")})
    odd.__qualname__ = Text("Odd")
    return odd


EVERY = pytest.mark.parametrize(
    ("make", "named"),
    [
        (without_module(), "Odd"),
        (with_module(None), "Odd"),
        (with_module(3), "Odd"),
        (with_module("a.b"), "a.b.Odd"),
        (named_by_unruly_text(), "m.Odd"),
        (Odd, f"{__name__}.Odd"),
        (Veiled, f"{__name__}.Veiled"),
        (Impostor, f"{__name__}.Impostor"),
    ],
    ids=["no module", "None", "number", "text", "unruly text", "metaclass", "veiled", "impostor"],
)  # fmt: skip


@EVERY
@pytest.mark.parametrize("policy", [RetryPolicy.fixed(10), LISTS])
@pytest.mark.parametrize("middleware", [(), (TracingMiddleware(),)])
def test_it_is_a_failed_attempt_with_its_name_and_traceback(
    make: Callable[[], BaseException],
    named: str,
    policy: RetryPolicy,
    middleware: tuple[Any, ...],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)

    outcome = run(raising(make()), policy=policy, middleware=middleware)

    error = error_of(outcome)
    assert error.type == named
    assert error.traceback is not None
    assert "raise error" in error.traceback
    assert "qml_mp/processing" not in error.traceback


def test_a_result_of_no_known_kind_is_a_failed_attempt() -> None:
    said = WorkerResult(kind="banana")  # type: ignore[arg-type]

    error = error_of(run(returning(said)))

    assert (error.type, error.message) == (
        "TypeError", "WorkerResult.kind is a str; it must be \"succeeded\", \"retry\" or \"failed\".",
    )  # fmt: skip


@pytest.mark.parametrize("at", [time(9, tzinfo=UTC), datetime.fromisoformat("2999-01-01"), "tomorrow"])
def test_retrying_at_what_is_no_instant_is_a_failed_attempt(at: Any) -> None:
    error = error_of(run(returning(WorkerResult.retry("later", retry_at=at))))

    assert error.type == "TypeError"
    assert error.message.endswith("it must be an aware datetime.")


def test_retrying_at_the_end_of_the_calendar_is_retrying_in_a_hundred_years() -> None:
    west = timezone(timedelta(hours=-9))
    said = WorkerResult.retry("later", retry_at=datetime.max.replace(tzinfo=west))

    outcome = run(returning(said))

    assert isinstance(outcome, Retry)
    assert outcome.delay.days == 36_525
