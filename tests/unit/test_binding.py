"""Tests: a call's arguments as a payload, and a payload as a call's arguments."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import pytest

from qml_mp.core.job import Job
from qml_mp.core.payload import JsonValue
from qml_mp.errors import InvalidJob
from qml_mp.processing.binding import Binding, PayloadMismatch
from qml_mp.processing.cancel import CancelToken
from qml_mp.processing.context import WorkerContext

if TYPE_CHECKING:
    from fractions import Fraction

CONTEXT = WorkerContext.of(
    Job.new("f"), started_at=datetime(2025, 3, 1, tzinfo=UTC), cancel=CancelToken.never()
)


@dataclass(frozen=True)
class Order:
    number: int
    due: date


def resize(ctx: WorkerContext, path: str, width: int = 800) -> tuple[object, ...]:
    return (ctx, path, width)


def context_last(path: str, *, context: WorkerContext | None = None) -> tuple[object, ...]:
    return (context, path)


def context_by_text(path: str, ctx: "WorkerContext") -> tuple[object, ...]:  # noqa: UP037 - the text is the point
    return (ctx, path)


def ship(order: Order, notes: list[str] | None = None) -> tuple[object, ...]:
    return (order, notes)


def mixed(a: int, /, b: int, *rest: date, c: int = 3, **more: Order) -> tuple[object, ...]:
    return (a, b, rest, c, more)


def positional_only(a: int = 1, b: int = 2, /) -> tuple[object, ...]:
    return (a, b)


def untyped(a, b=2):  # type: ignore[no-untyped-def]
    return (a, b)


def imported_for_typing(share: Fraction) -> object:
    return share


def ahead(later: DefinedBelow) -> object:
    return later


@dataclass(frozen=True)
class DefinedBelow:
    x: int


def there_and_back(function: Callable[..., Any], *args: object, **kwargs: object) -> object:
    binding = Binding(function, name="f")
    return binding.call(binding.bind(args, kwargs).value, CONTEXT)


def test_the_payload_is_an_object_of_the_arguments_that_were_given() -> None:
    binding = Binding(resize, name="resize")

    assert binding.bind(("a.png",), {}).value == {"path": "a.png"}
    assert binding.bind((), {"width": 3, "path": "a.png"}).value == {"path": "a.png", "width": 3}


def two(first: int, second: int = 5) -> None: ...


@pytest.mark.parametrize("args", [(), (1,), (1, 2), (1, 2, 3)])
@pytest.mark.parametrize(
    "kwargs",
    [{}, {"first": 7}, {"second": 8}, {"first": 7, "second": 8}, {"second": 8, "first": 7}, {"x": 9}],
)
def test_arguments_are_bound_as_a_call_binds_them(args: tuple[int, ...], kwargs: dict[str, int]) -> None:
    binding = Binding(two, name="two")
    try:
        expected = list(inspect.signature(two).bind(*args, **kwargs).arguments.items())
    except TypeError as error:
        with pytest.raises(InvalidJob, match=f"two: {re.escape(str(error))}"):
            binding.bind(args, kwargs)
    else:
        payload = binding.bind(args, kwargs).value
        assert isinstance(payload, dict)
        assert list(payload.items()) == expected


@pytest.mark.parametrize("function", [context_last, context_by_text])
def test_the_context_is_found_by_its_annotation_wherever_it_stands(function: Callable[..., Any]) -> None:
    assert there_and_back(function, "a") == (CONTEXT, "a")


def test_the_context_comes_first_and_defaults_are_those_of_the_worker() -> None:
    assert there_and_back(resize, "a.png") == (CONTEXT, "a.png", 800)


def test_the_context_is_no_argument_of_the_caller() -> None:
    with pytest.raises(InvalidJob, match="unexpected keyword argument 'ctx'"):
        Binding(resize, name="resize").bind(("a",), {"ctx": 1})
    with pytest.raises(InvalidJob, match="unexpected argument: 'ctx'"):
        Binding(resize, name="resize").check({"path": "a", "ctx": 1})


def test_dataclasses_travel_as_objects_and_come_back_as_themselves() -> None:
    order = Order(number=3, due=date(2025, 3, 1))

    assert Binding(ship, name="ship").bind((order,), {}).value == {
        "order": {"number": 3, "due": "2025-03-01"}
    }
    assert there_and_back(ship, order, ["fragile"]) == (order, ["fragile"])


def test_every_kind_of_parameter_comes_back() -> None:
    order = Order(number=3, due=date(2025, 3, 1))
    day = date(2025, 3, 2)

    assert there_and_back(mixed, 1, 2) == (1, 2, (), 3, {})
    assert there_and_back(mixed, 1, 2, day, day, c=4, x=order) == (1, 2, (day, day), 4, {"x": order})
    assert there_and_back(mixed, 1, b=2, mixed=order) == (1, 2, (), 3, {"mixed": order})
    assert there_and_back(positional_only, 5) == (5, 2)
    assert there_and_back(untyped, {"a": [1]}) == ({"a": [1]}, 2)


def test_a_list_is_taken_as_positional_arguments() -> None:
    assert Binding(resize, name="f").call(["a.png", 3], CONTEXT) == (CONTEXT, "a.png", 3)
    assert Binding(mixed, name="f").call([1, 2, "2025-03-01"], CONTEXT) == (1, 2, (date(2025, 3, 1),), 3, {})


def test_no_payload_is_no_arguments() -> None:
    assert Binding(positional_only, name="f").call(None, CONTEXT) == (1, 2)


def test_a_later_positional_argument_without_the_earlier_one_keeps_its_place() -> None:
    assert Binding(positional_only, name="f").call({"b": 9}, CONTEXT) == (1, 9)


@pytest.mark.parametrize(
    ("args", "kwargs", "told"),
    [
        ((), {}, r"resize: missing a required argument: 'path'\.$"),
        (
            (),
            {"pfad": "a", "width": 3},
            r"missing a required argument: 'path', and there is none named 'pfad'\.$",
        ),
        (("a", 1, 2), {}, "resize: too many positional arguments"),
        (("a",), {"height": 3}, "resize: got an unexpected keyword argument 'height'"),
        ((3,), {}, "resize: the argument 'path' must be text, not int"),
        (("a",), {"width": "wide"}, "resize: the argument 'width' must be a whole number, not str"),
        (("a\0b",), {}, "NUL"),
        (("a", 2**70), {}, r"an integer beyond -2\*\*63"),
    ],
)
def test_a_wrong_argument_is_refused_with_function_and_argument(
    args: tuple[object, ...], kwargs: dict[str, object], told: str
) -> None:
    with pytest.raises(InvalidJob, match=told):
        Binding(resize, name="resize").bind(args, kwargs)


@pytest.mark.parametrize(
    "payload", [{}, {"path": 3}, {"path": "a", "x": 1}, [], ["a", 1, 2], "a.png", 3, {"path": None}]
)
def test_a_payload_that_does_not_fit_is_refused_before_the_call(payload: JsonValue) -> None:
    with pytest.raises(PayloadMismatch):
        Binding(resize, name="resize").call(payload, CONTEXT)


def test_an_invalid_job_from_within_the_function_is_no_mismatch() -> None:
    def enqueues_nonsense() -> None:
        raise InvalidJob("from inside")

    with pytest.raises(InvalidJob) as caught:
        Binding(enqueues_nonsense, name="f").call(None, CONTEXT)

    assert not isinstance(caught.value, PayloadMismatch)


def test_names_that_extra_keywords_cannot_carry_are_refused() -> None:
    order = Order(number=3, due=date(2025, 3, 1))

    for name in ("a", "rest"):
        with pytest.raises(InvalidJob, match="taken by another parameter"):
            Binding(mixed, name="f").bind((1, 2), {name: order})


def test_an_annotation_that_cannot_be_resolved_is_told_when_it_matters() -> None:
    binding = Binding(imported_for_typing, name="f")

    binding.check_names({"share": 1})
    with pytest.raises(InvalidJob, match="'Fraction' of 'share' cannot be resolved"):
        binding.bind((1,), {})


def test_an_annotation_may_name_what_is_defined_further_down() -> None:
    assert there_and_back(ahead, DefinedBelow(x=1)) == DefinedBelow(x=1)


def test_names_are_checked_without_types() -> None:
    binding = Binding(resize, name="resize")

    binding.check_names({"path": 3})
    with pytest.raises(InvalidJob, match="missing a required argument: 'path'"):
        binding.check_names(None)
