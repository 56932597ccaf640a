"""Tests: what is annotated with a union comes back as it was, or is refused when it is written."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, StrEnum
from pathlib import Path, PurePath, PurePosixPath
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypedDict, TypeVar, is_typeddict
from uuid import UUID

import pytest
import typing_extensions

from qml_mp import InvalidJob, QmlApp, ResultNotStored
from qml_mp.core.payload import JsonValue
from qml_mp.processing.codec import from_json, to_json
from qml_mp.processing.plain import plain_result
from qml_mp.processing.returned import Returned
from qml_mp.processing.scalars import Mistakable
from tests.unit.app_case import finish
from tests.unit.processor_case import claim_of, run

with pytest.MonkeyPatch.context() as patch:
    # Its library would start threads now, in a process of which other tests fork workers.
    patch.setenv("OPENBLAS_NUM_THREADS", "1")
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")
DAY = date(2025, 3, 1)
NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Circle:
    size: float


@dataclass(frozen=True)
class Square:
    size: float


@dataclass(frozen=True)
class ColouredCircle:
    size: float
    colour: str = "red"


@dataclass(frozen=True)
class Cat:
    name: str
    kind: Literal["cat"] = "cat"


@dataclass(frozen=True)
class Dog:
    name: str
    kind: Literal["dog"] = "dog"


@dataclass(frozen=True)
class Box(Generic[T]):
    held: T


@dataclass(frozen=True)
class Drawing:
    shapes: list[Circle | Square]


@dataclass(frozen=True)
class Sum:
    left: Sum | Circle
    right: Sum | Circle


@dataclass
class Kept:
    times: int

    def __post_init__(self) -> None:
        self.times += 1


@dataclass(frozen=True)
class Leaf:
    size: int
    kind: Literal["leaf"] = "leaf"

    def __post_init__(self) -> None:
        leaves_made.append(self.size)
        if self.size < 0:
            raise ValueError("a leaf is not so small")


@dataclass(frozen=True)
class Plus:
    left: Term
    right: Term
    kind: Literal["plus"] = "plus"


@dataclass(frozen=True)
class Times:
    left: Term
    right: Term
    kind: Literal["times"] = "times"


@dataclass(frozen=True)
class Numbered:
    inner: Numbered | Named | Leaf
    marks: list[int]


@dataclass(frozen=True)
class Named:
    inner: Numbered | Named | Leaf
    marks: list[str]


Term = Leaf | Plus | Times
leaves_made: list[int] = []


class Problem(TypedDict):
    """Of which nothing is looked at."""

    error: str


class LaterProblem(typing_extensions.TypedDict):
    error: str


class Colour(StrEnum):
    RED = "red"


class Size(Enum):
    SMALL = (1, 1)


class Lines(Enum):
    ONE = Path("1")
    FIRST = "1"


class Point(NamedTuple):
    x: int
    y: int


class Answer(Enum):
    YES = "yes"
    NONE = None


@pytest.mark.parametrize(
    ("value", "hint", "stored"),
    [
        (3, int | str, 3),
        ("3", int | str, "3"),
        (None, int | str | None, None),
        ([1, 2], list[int] | None, [1, 2]),
        (Decimal("0.10"), Decimal | None, "0.10"),
        (DAY, date | None, "2025-03-01"),
        ({"a": [1]}, dict[str, list[int]] | list[int] | str, {"a": [1]}),
        (DAY, date | str, "2025-03-01"),
        ("soon", date | str, "soon"),
        ("2025-03-01", str | date, "2025-03-01"),
        (DAY, datetime | date, "2025-03-01"),
        (NOON, date | datetime, "2025-03-01T12:00:00+00:00"),
        (b"\0\xff", bytes | str, "AP8="),
        (3, float | int, 3),
        (3.0, float | int, 3.0),
        (3.0, int | float, 3.0),
        (True, int | bool, True),
        (60, timedelta | int, 60),
        (timedelta(minutes=1), timedelta | int, 60.0),
        (Circle(2.0), ColouredCircle | Circle, {"size": 2.0}),
        (ColouredCircle(2.0), Circle | ColouredCircle, {"size": 2.0, "colour": "red"}),
        (Dog("Rex"), Cat | Dog, {"name": "Rex", "kind": "dog"}),
        ({"name": "Rex"}, Circle | dict[str, str], {"name": "Rex"}),
        (UUID(int=7), UUID | Path, str(UUID(int=7))),
        (Colour.RED, Colour | str, "red"),
        (Size.SMALL, Size | Point, [1, 1]),
        (Point(1, 2), Size | Point, [1, 2]),
        ([1, 2], list[int] | list[float], [1, 2]),
        ([1.5], list[int] | list[float], [1.5]),
        ({1, 2}, set[int] | list[int], [1, 2]),
        ([Circle(2.0)], list[Circle] | list[Any], [{"size": 2.0}]),
        ([Circle(2.0)], set[Any] | list[Circle], [{"size": 2.0}]),
        (Lines.FIRST, Lines | Any, "1"),
        (1.5, np.ndarray | float, 1.5),
        ("a", np.ndarray | str, "a"),
        (3, int | Iterator[int], 3),
        ([3], int | list[Annotated[int, ["what has no hash"]]], [3]),
        (Box(DAY), Box[date] | Box[str], {"held": "2025-03-01"}),
        (Box("soon"), Box[date] | Box[str], {"held": "soon"}),
        ({Box(1.0)}, set[Box[int]] | set[Box[float]], [{"held": 1.0}]),
    ],
    ids=str,
)
def test_a_value_under_a_union_comes_back_as_it_was(value: object, hint: object, stored: object) -> None:
    written = to_json(value, hint, where="it")
    back = from_json(json.loads(json.dumps(written)), hint, where="it")

    assert (written, type(written)) == (stored, type(stored))
    assert (back, type(back)) == (value, type(value))


@pytest.mark.skipif(is_typeddict(LaterProblem), reason="typing knows it: it is as any TypedDict")
@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (Circle(2.0), LaterProblem | Circle),
        (DAY, LaterProblem | date | None),
        ([Circle(2.0)], list[LaterProblem] | list[Circle]),
        ({"a": (1, 2)}, LaterProblem | dict[str, tuple[int, int]] | dict),
        ({"error": "x"}, LaterProblem | Circle),
        ([{"error": "x"}], list[LaterProblem] | list[Circle]),
    ],
    ids=str,
)
def test_a_typed_dict_of_typing_extensions_takes_what_no_other_member_does(
    value: object, hint: object
) -> None:
    returned = Returned(function_returning(hint))

    assert from_json(json.loads(json.dumps(to_json(value, hint, where="it"))), hint, where="it") == value
    assert returned.rebuilt(json.loads(returned.encoded(value).text)) == value


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("abcd", bytes | str),
        ("http://a//b", Path | str),
        (b"abcd", str | bytes),
        (bytearray(b"abcd"), str | bytes),
        (Square(2.0), Circle | Square),
        ("2025-03-01", date | str),
        ("20250301", date | str),
        ("2025-03-01", date | Any),
        (DAY, str | date),
        (DAY, Path | date),
        (Path("2025-03-01"), date | Path),
        (NOON.time(), Path | time),
        (UUID(int=1), Path | UUID),
        (Decimal("1.5"), Path | Decimal),
        (Colour.RED, Path | Colour),
        (Size.SMALL, Point | Size),
        (Size.SMALL, list[int] | Size),
        (Size.SMALL, tuple[int, int] | Size),
        (Point(1, 1), Size | Point),
        (str(UUID(int=1)), UUID | str),
        (UUID(int=1), str | UUID),
        ("1.5", Decimal | str),
        (1.5, timedelta | float),
        ([1, 2], list[float] | list[int]),
        ([DAY], list[datetime] | list[date]),
        ({"a": DAY}, dict[str, str] | dict[str, date]),
        ([1, 2], set[int] | list[int]),
        ({"size": 2.0}, Circle | dict[str, float]),
        (Circle(2.0), dict[str, float] | Circle),
        ("yes", Answer | str),
        (Answer.NONE, Answer | None),
        (Answer.NONE, Answer | int | None),
        (Colour.RED, str | Colour),
        ([Square(2.0)], list[Circle | Square] | None),
        (Drawing([Square(2.0)]), Drawing | str),
        (np.arange(3), NDArray[np.float32] | NDArray[np.int64]),
        (Box("2025-03-01"), Box[date] | Box[str]),
        (Box(Box([DAY])), Box[Box[list[str]]] | Box[Box[list[date]]]),
        ({Box("2025-03-01")}, set[Box[date]] | set[Box[str]]),
        (frozenset({Box(1)}), frozenset[Box[float]] | frozenset[Box[int]]),
        (Circle(2.0), Problem | Circle),
        (Circle(2.0), Problem | Circle | None),
        ([Circle(2.0)], Problem | list[Circle]),
        (DAY, Problem | date),
        ({"a"}, Problem | set[str]),
        ((1, "a"), Problem | tuple[int, str]),
        (Point(1, 2), Problem | Point),
        (Colour.RED, Problem | Colour),
        (Decimal(1), Any | Decimal),
        ([Circle(2.0)], list[Any] | list[Circle]),
        ({"a": [Circle(2.0)]}, dict | dict[str, list[Circle]]),
        ({"a": (1, 2)}, dict[str, Any] | dict[str, tuple[int, int]]),
        ((1, DAY), tuple[int, Any] | tuple[int, date]),
        ({Circle(2.0)}, list | set[Circle]),
        ({DAY}, list[date] | set[Any]),
    ],
    ids=str,
)
def test_a_value_that_would_come_back_as_another_type_of_the_union_is_refused(
    value: object, hint: object
) -> None:
    with pytest.raises(InvalidJob, match=r"^it.* would come back as .*Annotate it with one of the types"):
        to_json(value, hint, where="it")


@pytest.mark.parametrize(
    ("value", "hint", "back"),
    [
        ((1, 2), list[int] | str, [1, 2]),
        ((1, 2), Problem | list[int], [1, 2]),
        ((1, 2), int | Any, [1, 2]),
        ([(1, 2)], list[Any] | tuple[str, ...], [[1, 2]]),
        (OrderedDict(a=1), Problem | dict[str, int], {"a": 1}),
        (Path("a"), str | Path, "a"),
        ("a", Path | str, Path("a")),
        (bytearray(b"a"), bytes | str, b"a"),
        (PurePosixPath("a"), PurePath | str, Path("a")),
        (np.int64(3), int | str, 3),
        ("red", Colour | str, Colour.RED),
        (Circle(2), Circle | Square, Circle(2.0)),
        (Box((1, 2)), Box[list[int]] | str, Box([1, 2])),
    ],
    ids=str,
)
def test_a_value_of_another_type_is_converted_as_without_a_union(
    value: object, hint: object, back: object
) -> None:
    written = to_json(value, hint, where="it")

    assert from_json(json.loads(json.dumps(written)), hint, where="it") == back


@pytest.mark.parametrize(
    ("stored", "hint", "back"),
    [
        ("2025-03-01", date | str, DAY),
        ("20250301", date | str, DAY),
        ("2025-03-01T12:00:00Z", datetime | str, NOON),
        (UUID(int=7).hex, UUID | str, UUID(int=7)),
        ({"size": 2}, ColouredCircle | dict[str, int], ColouredCircle(2.0)),
        (60, timedelta | float, timedelta(minutes=1)),
        (3.0, float | int, 3.0),  # what was written for 3, too
        ("AP8=", bytes | str, b"\0\xff"),
    ],
    ids=str,
)
def test_json_that_was_written_by_hand_or_by_earlier_code_is_read(
    stored: Any, hint: object, back: object
) -> None:
    assert from_json(stored, hint, where="it") == back
    assert type(from_json(stored, hint, where="it")) is type(back)


def test_trees_of_unions_are_written_and_read_in_time() -> None:
    tree: Sum | Circle = Circle(1.0)
    for _ in range(40):
        tree = Sum(tree, Circle(2.0))

    assert from_json(to_json(tree, Sum | Circle, where="it"), Sum | Circle, where="it") == tree


def test_a_tree_that_a_field_tells_apart_is_read_once_at_each_level() -> None:
    tree: Term = Leaf(0)
    for size in range(1, 10):
        tree = Times(tree, Leaf(size))
    stored = json.loads(json.dumps(to_json(tree, Term, where="it")))
    leaves_made.clear()

    assert from_json(stored, Term, where="it") == tree
    assert sorted(leaves_made) == list(range(10))


def test_a_tree_that_lists_tell_apart_is_read_once_at_each_level() -> None:
    stored: JsonValue = {"size": 1}
    for mark in "abcdefghi":
        stored = {"inner": stored, "marks": [mark]}
    leaves_made.clear()

    assert isinstance(from_json(stored, Numbered | Named, where="it"), Named)
    assert leaves_made == [1]


def test_a_tree_of_which_nothing_says_what_it_is_is_refused_after_it_was_read_once() -> None:
    stored: JsonValue = {"size": -1}
    for size in range(9):
        stored = {"left": stored, "right": {"size": size}}
    leaves_made.clear()

    with pytest.raises(InvalidJob, match="it must be Leaf or Plus or Times, not dict"):
        from_json(stored, Term, where="it")
    assert leaves_made == [-1]


def test_a_job_by_name_and_a_call_are_given_what_was_passed(app: QmlApp) -> None:
    @app.job()
    def show(day: date | str) -> str:
        return repr(day)

    with app.inline():
        assert show.enqueue(DAY).wait() == repr(DAY)
        assert show.enqueue("soon").wait() == "'soon'"
        assert app.enqueue("show", {"day": "2025-03-01"}).wait() == repr(DAY)
        with pytest.raises(InvalidJob, match="show: the argument 'day' is of type str, and would come back"):
            show.enqueue("2025-03-01")


def test_unions_that_differ_by_their_order_alone_are_told_apart_within_another() -> None:
    def shapes_back(shapes: list[Any], hint: object) -> object:
        return from_json(to_json(shapes, hint, where="it"), hint, where="it")

    for _ in range(2):
        assert shapes_back([Square(2.0)], list[Square | Circle] | None) == [Square(2.0)]
        assert shapes_back([Circle(2.0)], list[Circle | Square] | None) == [Circle(2.0)]


def test_a_result_that_would_be_read_as_another_type_of_the_union_is_not_stored(app: QmlApp) -> None:
    @app.job()
    def draw() -> Drawing:
        return Drawing([Square(2.0)])

    handle = draw.enqueue()
    finish(app, run(draw.worker, claim_of(method="draw")))

    with pytest.raises(
        ResultNotStored, match=r"The result.shapes\[0\] is of type Square, and would come back"
    ):
        handle.wait(0)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ([Circle(2.0)], list[Any] | list[Circle]),
        ({"a": (1, 2)}, dict | dict[str, tuple[int, int]]),
        (Square(2.0), Circle | Any),
        (Lines.ONE, Lines | Any),
        ([Kept(1)], list[Kept] | list[Any]),
    ],
    ids=str,
)
def test_a_result_is_not_stored_where_what_is_under_any_would_be_another(value: object, hint: object) -> None:
    with pytest.raises(Mistakable, match=r"^The result.* would come back "):
        Returned(function_returning(hint)).encoded(value)


@pytest.mark.parametrize(
    "value", [DAY, [DAY], Circle(2.0), {"a": Circle(2.0)}, Colour.RED, np.arange(2)], ids=str
)
def test_a_result_that_is_under_any_alone_comes_back_as_its_json(value: Any) -> None:
    returned = Returned(function_returning(int | list[Any] | dict[str, Any] | Any))

    stored = returned.encoded(value)

    assert returned.rebuilt(json.loads(stored.text)) == plain_result(value).value


@pytest.mark.parametrize("value", [Circle(2.0), [Circle(2.0)], Path("a"), np.arange(2), {1: 2}], ids=str)
def test_an_argument_that_is_under_any_alone_is_refused_as_no_json(app: QmlApp, value: Any) -> None:
    @app.job()
    def show(it: int | list[Any] | dict[str, Any] | Any) -> None: ...

    with pytest.raises(InvalidJob, match=r"show: the argument 'it' .* (JSON|text)"):
        show.enqueue(value)


def test_a_result_that_would_be_read_as_the_typed_dict_of_the_union_is_not_stored(app: QmlApp) -> None:
    @app.job()
    def find() -> Problem | list[Circle]:
        return [Circle(2.0)]

    handle = find.enqueue()
    finish(app, run(find.worker, claim_of(method="find")))

    with pytest.raises(ResultNotStored, match=r"The result is of type list, and would come back"):
        handle.wait(0)


@pytest.mark.parametrize(
    ("value", "hint", "stored"),
    [
        (DAY, date | str, "2025-03-01"),
        (3, float | int, 3),
        (b"\0\xff", bytes | str | None, "AP8="),
        (None, bytes | str | None, None),
        (Circle(2.0), Circle | Square, {"size": 2.0}),
        ([1], date | str, [1]),  # which the annotation does not say: whoever reads it is told
        (object, Circle | Square, InvalidJob),
    ],
    ids=str,
)
def test_a_result_under_a_union_is_stored_as_its_type_is(value: object, hint: object, stored: object) -> None:
    returned = Returned(function_returning(hint))

    if stored is InvalidJob:
        with pytest.raises(InvalidJob, match="not JSON"):
            returned.encoded(value)
    else:
        assert returned.encoded(value).value == stored


def function_returning(hint: object) -> Callable[..., Any]:
    def function() -> Any: ...

    function.__annotations__["return"] = hint
    return function
