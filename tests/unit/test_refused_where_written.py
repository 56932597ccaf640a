"""What no job can have is refused where it is written, by field, value and bound."""

from __future__ import annotations

import enum
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from qml_mp import (
    ConfigurationError,
    InvalidJob,
    Job,
    Program,
    QmlApp,
    RetryPolicy,
    ServerConfig,
    Worker,
    WorkerRegistry,
)  # fmt: skip
from qml_mp.errors import QmlError
from tests.unit.app_case import Echo, count, resize

HUGE = 10**5000
CYCLE: list[Any] = []
CYCLE.append(CYCLE)


class Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


class Size(enum.IntEnum):
    SMALL = 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"retry": 3}, "retry is 3; it must be a RetryPolicy: write "
                       "retry=RetryPolicy.exponential(max_attempts=4), or max_retries=3 beside it"),
        ({"retry": "fixed"}, "retry is 'fixed'; it must be a RetryPolicy"),
        ({"retry": RetryPolicy}, "it must be a RetryPolicy"),
        ({"priority": "x"}, "priority is 'x'; it must be a whole number from -2147483648 to 2147483647"),
        ({"priority": HUGE}, "priority is a value of type int that cannot be shown; it must"),
        ({"max_retries": -1}, "max_retries is -1; it must be a whole number from 0 (no retry) to 2147483647, "
                              "or None: the retry policy decides"),
        ({"max_retries": 1.5}, "max_retries is 1.5"),
        ({"max_retries": HUGE}, "max_retries is a value of type int"),
        ({"max_crashes": 0}, "max_crashes is 0; it must be a whole number from 1"),
        ({"timeout": 0}, "from 1ms to 36525d"),
        ({"timeout": HUGE}, "timeout is a value of type int"),
        ({"timeout": "soon"}, "timeout is 'soon'"),
        ({"queue": 3}, "queue name 3"),
        ({"result": None}, "result is None; it must be True or False"),
        ({"on_crash": "again"}, "on_crash is 'again'; it must be \"retry\" or \"fail\""),
        ({"on_crash": "fail", "max_crashes": 3}, "max_crashes is 3; give one"),
    ],
)  # fmt: skip
def test_the_decorator_refuses(options: dict[str, Any], told: str) -> None:
    app = QmlApp("memory://")

    with pytest.raises(ConfigurationError) as refusal:
        app.job(**options)

    assert told in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"priority": "x"}, "priority is 'x'"),
        ({"max_retries": -1}, "max_retries is -1"),
        ({"max_retries": True}, "max_retries is True"),
        ({"max_crashes": 0}, "max_crashes is 0"),
        ({"timeout": -1}, "timeout is -1"),
        ({"timeout": 0}, "timeout is"),
        ({"delay": HUGE}, "delay is"),
        ({"delay": 1, "at": datetime.now(UTC)}, "delay and at"),
        ({"unique_key": 3}, "unique_key is 3"),
        ({"unique_key": ""}, "unique_key is ''"),
        ({"metadata": [1]}, "metadata is [1]"),
        ({"metadata": {1: 2}}, "metadata has the key 1, which is an int;"),
        ({"queue": "a b"}, "queue name 'a b'"),
    ],
)
def test_options_of_a_job_are_refused_before_it_is_made(options: dict[str, Any], told: str) -> None:
    app = QmlApp("memory://")
    declared = app.job()(resize)

    for write in (lambda: declared.using(**options), lambda: app.enqueue("resize", {"path": "a"}, **options)):
        with pytest.raises(QmlError) as refusal:
            write()
        assert told in str(refusal.value)

    assert count(app) == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("retry_policy", 3),
        ("timeout", 5),
        ("timeout", timedelta(0)),
        ("max_crashes", 0),
        ("max_crashes", "x"),
    ],
)
def test_a_worker_that_would_break_every_process_is_not_registered(field: str, value: object) -> None:
    worker = type("Broken", (Echo,), {field: value})()

    with pytest.raises(ConfigurationError, match=rf"'echo'.*{field}|{field} of the worker of 'echo'"):
        QmlApp("memory://").register(cast(Worker, worker))


@pytest.mark.parametrize("options", [{"retry_policy": 3}, {"config": {"worker_count": 1}}])
def test_an_app_is_not_made_of_what_no_worker_can_use(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        QmlApp("memory://", **options)


def test_neither_is_a_program() -> None:
    with pytest.raises(ConfigurationError, match="retry_policy is 3"):
        Program(registry=WorkerRegistry(), retry_policy=cast(RetryPolicy, 3))


@pytest.mark.parametrize(
    "payload",
    [
        {HUGE: 1},
        {"a": {HUGE: 1}},
        {1: 2},
        {None: 1},
        {("a",): 1},
        {"\ud800": 1},
        {"a": HUGE},
        {"a": "\ud800"},
        {"a": CYCLE},
        {"a": Unshowable()},
        {Unshowable(): 1},
        [float("nan")],
        CYCLE,
        pytest.param(HUGE, id="huge"),
    ],
)
@pytest.mark.parametrize("method", ["resize", "takes_anything", "unknown"])
def test_a_payload_that_is_no_json_is_an_invalid_job_and_nothing_else(payload: Any, method: str) -> None:
    app = QmlApp("memory://")
    if method != "unknown":  # an app without methods is a producer without the code
        app.job()(resize)
        app.job()(takes_anything)

    with pytest.raises(InvalidJob) as refusal:
        app.enqueue(method, payload)

    assert len(str(refusal.value)) < 1000
    assert count(app) == 0


def takes_anything(*args: Any, **kwargs: Any) -> None: ...


@pytest.mark.parametrize(
    "make",
    [
        lambda: Job.new("f", max_retries=HUGE),
        lambda: Job.new(cast(str, HUGE)),
        lambda: Job.new("f", timeout=cast(timedelta, 5)),
        lambda: Job.new("f", unique_key=cast(str, HUGE)),
        lambda: RetryPolicy.fixed(max_attempts=HUGE * -1),
        lambda: RetryPolicy.fixed(jitter=cast(float, "x")),
        lambda: RetryPolicy.exponential(multiplier=cast(float, "x")),
        lambda: ServerConfig(worker_count=HUGE),
        lambda: ServerConfig(max_memory=HUGE),
    ],
)
def test_no_value_is_too_strange_for_the_text_of_its_refusal(make: Callable[[], object]) -> None:
    with pytest.raises(QmlError):
        make()


@pytest.mark.parametrize("value", [Size.SMALL, {"a": [Size.SMALL]}])
def test_an_integer_of_a_class_of_its_own_is_an_integer_and_takes_no_time(value: Any) -> None:
    job = Job.new("f", value, priority=Size.SMALL)

    assert job.payload == value


def test_no_retry_can_be_written_everywhere_and_is_not_the_default() -> None:
    app = QmlApp("memory://")
    never = app.job("never", max_retries=0)(resize)
    default = app.job("default")(resize)

    assert never.enqueue("a").job().max_retries == 0
    assert never.using(max_retries=2).enqueue("a").job().max_retries == 2
    assert default.enqueue("a").job().max_retries is None
    assert default.using(max_retries=0).enqueue("a").job().max_retries == 0
    assert app.enqueue("default", {"path": "a"}, max_retries=0).job().max_retries == 0
    assert Job.new("f").max_retries is None
    assert Job.new("f", max_retries=0).max_retries == 0
