"""Tests: annotations that are text are resolved where the function is that they were written for."""

from __future__ import annotations

import functools
import sys
import typing
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import pytest
import typing_extensions

from qml_mp import QmlApp
from qml_mp.core.job import Job
from qml_mp.errors import InvalidJob
from qml_mp.processing.binding import Binding
from qml_mp.processing.cancel import CancelToken
from qml_mp.processing.context import WorkerContext

TypeAliasType: Any = getattr(typing, "TypeAliasType", typing_extensions.TypeAliasType)
Context: Any = TypeAliasType("Context", WorkerContext)
PerhapsContext: Any = TypeAliasType("PerhapsContext", WorkerContext | None)
CONTEXT = WorkerContext.of(
    Job.new("f"), started_at=datetime(2025, 3, 1, tzinfo=UTC), cancel=CancelToken.never()
)


@dataclass(frozen=True)
class Order:
    due: date


ORDER = Order(date(2025, 3, 1))


def ship(order: Order, copies: int = 1) -> Order:
    return order


class Shop:
    def ship(self, order: Order) -> Order:
        return order

    def __call__(self, order: Order) -> Order:
        return order


@functools.wraps(ship)
def wrapped(*args: Any, **kwargs: Any) -> object:
    return ship(*args, **kwargs)


@pytest.mark.parametrize(
    "function",
    [
        functools.partial(ship, copies=2),
        functools.partial(functools.partial(wrapped), copies=2),
        functools.partial(Shop().ship),
        Shop().ship,
        Shop(),
        functools.partial(Shop()),
        wrapped,
    ],
    ids=["partial", "of a wrapped one", "of a method", "method", "object", "partial object", "wrapped"],
)
def test_what_can_be_called_as_a_function_has_the_names_of_its_module(
    function: Callable[..., Order], app: QmlApp
) -> None:
    job = app.job("it")(function)

    with app.inline():
        assert job.enqueue(ORDER).wait() == ORDER


def by_alias(ctx: Context, n: int) -> tuple[object, int]:
    return ctx, n


def by_optional_alias(n: int, *, ctx: PerhapsContext = None) -> tuple[object, int]:
    return ctx, n


def by_alias_in_a_union(n: int, ctx: Context | None = None) -> tuple[object, int]:
    return ctx, n


@pytest.mark.parametrize("function", [by_alias, by_optional_alias, by_alias_in_a_union])
def test_the_context_is_found_by_a_name_of_its_type(function: Callable[..., Any]) -> None:
    binding = Binding(function, name="f")

    assert binding.call(binding.bind((3,), {}).value, CONTEXT) == (CONTEXT, 3)


_OF_3_12 = """
from __future__ import annotations

type Lost = Missing

def same[T](value: T, *more: T) -> list[T]:
    return [value, *more]

def lost(value: Lost) -> None: ...

def lost_within(value: list[Lost]) -> None: ...
"""


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the syntax is of Python 3.12")
def test_type_parameters_of_a_function_are_found(app: QmlApp) -> None:
    module: dict[str, Any] = {"__name__": "of_3_12"}
    exec(_OF_3_12, module)
    job = app.job()(module["same"])

    with app.inline():
        assert job.enqueue(1, "a").wait() == [1, "a"]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the syntax is of Python 3.12")
@pytest.mark.parametrize("name", ["lost", "lost_within"])
def test_a_name_that_stands_for_what_cannot_be_found_is_told(name: str) -> None:
    module: dict[str, Any] = {"__name__": "of_3_12"}
    exec(_OF_3_12, module)
    binding = Binding(module[name], name=name)
    binding.resolve()

    with pytest.raises(InvalidJob, match=r"Lost.*cannot be resolved.*importable at run time"):
        binding.bind(([1],), {})
