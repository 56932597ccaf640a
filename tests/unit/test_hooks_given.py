"""Tests: middleware and hooks are refused where they are given, if no job could call them."""

from __future__ import annotations

from functools import partial, wraps
from typing import Any

import pytest

from qml_mp import ConfigurationError, Job, Program, QmlApp, WorkerContext, WorkerRegistry
from qml_mp.processing.middleware import CallNext


def layer(job: Job, context: WorkerContext, call_next: CallNext) -> object:
    return call_next(job, context)


class Layer:
    def __call__(self, job: Job, context: WorkerContext, call_next: CallNext, more: int = 1) -> object:
        return call_next(job, context)

    def method(self, job: Job, context: WorkerContext, call_next: CallNext) -> object:
        return call_next(job, context)


def takes_four(one: Any, two: Any, three: Any, four: Any) -> None: ...


def takes_by_name(*, job: Any, context: Any, call_next: Any, change: Any, error: Any) -> None: ...


@pytest.mark.parametrize("middleware", [layer, "layer", 7], ids=["a function", "a text", "a number"])
def test_middleware_that_is_no_list_is_refused(middleware: Any) -> None:
    for take in (QmlApp, partial(Program, registry=WorkerRegistry())):
        with pytest.raises(ConfigurationError, match=r"middleware is .*; it must be a list of functions"):
            take(middleware=middleware)


@pytest.mark.parametrize(
    "hook",
    [lambda: None, takes_four, takes_by_name, partial(takes_four, 1, 2, 3, 4), Layer],
    ids=["takes nothing", "takes four", "by name alone", "all is given", "a class"],
)
def test_what_cannot_be_called_as_it_will_be_is_refused(hook: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"middleware\[1\] is .*; it is called with \(job, context"):
        QmlApp(middleware=[layer, hook])
    with pytest.raises(ConfigurationError, match=r"on_state_change is .*; it is called with \(change\)"):
        QmlApp(on_state_change=hook)
    with pytest.raises(ConfigurationError, match=r"on_failure is .*; it is called with \(job, error\)"):
        QmlApp().on_failure(hook)


def test_what_can_be_called_so_is_taken_whatever_it_is() -> None:
    def needs_more(job: Job, context: WorkerContext, call_next: CallNext, more: int) -> object:
        return call_next(job, context)

    @wraps(needs_more)
    def gives_more(job: Job, context: WorkerContext, call_next: CallNext) -> object:
        return needs_more(job, context, call_next, 1)

    layers = [layer, gives_more, Layer(), Layer().method, partial(needs_more, more=1)]

    app = QmlApp(middleware=iter(layers), on_state_change=[].append)  # type: ignore[arg-type]

    assert app.program.middleware == tuple(layers)
    assert QmlApp(middleware=[]).program.middleware == ()
