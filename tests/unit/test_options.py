"""Tests: the options of a job are the same wherever they can be written."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from qml_mp import ConfigurationError, Job, QmlApp
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
from qml_mp.function_options import FunctionOptions
from qml_mp.job_function import JobFunction
from tests.unit.app_case import resize


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
