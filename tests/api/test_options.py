"""The options of a job are the same wherever they can be written; what no job can have is refused there."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from dataclasses import replace
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
    Worker,
    WorkerRegistry,
)  # fmt: skip
from qml_mp.cli.commands.enqueue import enqueue
from qml_mp.core.options import (
    JOB_OPTIONS,
    LAST_INSTANT,
    CommonOptions,
    EnqueueOptions,
    JobOptions,
    options_of,
)
from qml_mp.core.state import Enqueued
from qml_mp.errors import QmlError
from qml_mp.function_options import FunctionOptions
from qml_mp.job_function import JobFunction
from tests.api.app_case import Echo, count, resize


def test_the_command_line_offers_every_option_of_a_job() -> None:
    flags = {parameter.name: parameter for parameter in enqueue.params}

    for name, option in JOB_OPTIONS.items():
        assert f"--{name.replace('_', '-')}" in flags[name].opts
        assert getattr(flags[name], "help", None) == option.meaning


@pytest.mark.parametrize(
    ("function", "definition"),
    [
        (QmlApp.job, FunctionOptions),
        (QmlApp.make_job, set(JOB_OPTIONS)),
        (QmlApp.enqueue, EnqueueOptions),
        (QmlApp.aenqueue, EnqueueOptions),
        (JobFunction.using, EnqueueOptions),
        (Job.new, set(JOB_OPTIONS)),
    ],
)
def test_help_and_signature_show_every_option(function: Callable[..., object], definition: Any) -> None:
    names = definition if isinstance(definition, set) else set(options_of(definition))

    shown = set(inspect.signature(function).parameters)

    assert names <= shown
    assert shown - names <= {"self", "name", "method", "payload", "now"}
    assert [name for name in names if f"\n    {name}: " not in (function.__doc__ or "")] == []


def test_an_option_of_a_function_is_one_of_its_jobs_or_says_how_they_are_run() -> None:
    assert set(options_of(FunctionOptions)) - set(options_of(CommonOptions)) == {
        "retry", "on_crash", "max_running", "rate", "result",
    }  # fmt: skip
    assert set(options_of(CommonOptions)) < set(JOB_OPTIONS)


@pytest.mark.parametrize(
    "write",
    [
        lambda app: app.job(tga=1),
        lambda app: app.job(delay=1),  # of a single job only
        lambda app: app.job()(resize).using(tga=1),
        lambda app: app.job()(resize).using(retry=None),  # of a function only
        lambda app: app.make_job("resize", tga=1),
        lambda app: app.make_job("resize", conn=object()),
        lambda app: app.enqueue("resize", tga=1),
        lambda _: Job.new("resize", tga=1),  # type: ignore[call-arg]  # mypy sees it too
        lambda _: Job.new("resize", claim_seq=1),  # type: ignore[call-arg]  # a field, no option
    ],
)
def test_a_name_that_is_no_option_is_refused_as_python_does(
    app: QmlApp, write: Callable[[Any], object]
) -> None:
    with pytest.raises(TypeError):
        write(app)


@pytest.mark.parametrize(
    ("write", "definition"),
    [
        (lambda app: app.job()(resize).using(prio=3), EnqueueOptions),
        (lambda app: app.enqueue("resize", prio=3), EnqueueOptions),
        (lambda app: asyncio.run(app.aenqueue("resize", prio=3)), EnqueueOptions),
        (lambda app: app.make_job("resize", prio=3), JobOptions),
        (lambda app: app.job(prio=3), FunctionOptions),
    ],
    ids=["using", "enqueue", "aenqueue", "make_job", "job"],
)
def test_the_refusal_of_a_name_lists_all_that_can_be_said_there(
    app: QmlApp, write: Callable[[Any], object], definition: type
) -> None:
    with pytest.raises(TypeError) as refusal:
        write(app)

    assert str(refusal.value) == f"There is no option 'prio'; there are {', '.join(options_of(definition))}."


@pytest.mark.parametrize("name", sorted(set(options_of(FunctionOptions)) - {"result"}))
def test_none_is_as_good_as_left_out_where_a_function_is_declared(app: QmlApp, name: str) -> None:
    options: Any = {name: None}

    declared = app.job(**options)(resize)

    plain = QmlApp().job()(resize)
    assert _row(declared.job("a.png")) == _row(plain.job("a.png"))
    said, by_default = ({**vars(each.worker), "binding": 0, "_returned": 0} for each in (declared, plain))
    assert said == by_default


@pytest.mark.parametrize("name", list(JOB_OPTIONS))
def test_none_is_as_good_as_left_out_of_a_single_job(app: QmlApp, name: str) -> None:
    options: Any = {name: None}
    declared = app.job(queue="images", priority=3)(resize)

    assert _row(declared.using(**options).job("a.png")) == _row(declared.job("a.png"))
    assert _row(Job.new("resize", **options)) == _row(Job.new("resize"))


def _row(job: Job) -> Job:
    """All but what tells two jobs apart."""
    state = Enqueued(enqueued_at=LAST_INSTANT, queue=job.queue)
    return replace(job, id="", created_at=LAST_INSTANT, state=state)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"queue": "a b"}, "queue"),
        ({"timeout": "soon"}, "timeout"),
        ({"retry": 3}, "retry"),
        ({"priority": "x"}, "priority"),
    ],
)
def test_the_refusal_carries_the_option(app: QmlApp, options: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        app.job(**options)

    assert refusal.value.field == field


HUGE = 10**5000
CYCLE: list[Any] = []
CYCLE.append(CYCLE)


class Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


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
