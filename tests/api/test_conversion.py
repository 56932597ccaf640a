"""Typed arguments and results: what is enqueued reaches the job equal, and what it returns comes back equal.

What cannot come back is refused at `enqueue`; such a result is not stored and says why.
"""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, Flag, IntEnum, StrEnum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, Optional, TypedDict, TypeVar
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from typing_extensions import TypeAliasType

from qml_mp import (
    ConfigurationError,
    InvalidJob,
    JobFailed,
    JobHandle,
    QmlApp,
    ResultMismatch,
    ResultNotStored,
    StateName,
    WorkerContext,
    WorkerResult,
)
from qml_mp.core.outcome import Success
from tests.api.app_case import finish

UserId = NewType("UserId", int)
T = TypeVar("T")
NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)


class Colour(StrEnum):
    RED = "red"


class Level(IntEnum):
    LOW = 1


class Every(Enum):
    DAY = timedelta(days=1)
    TERM = (date(2025, 3, 1), Path("a"))


class Right(Flag):
    READ = 1
    WRITE = 2


class Odd(Enum):
    """Two members with one JSON as a key."""

    NUMBER = 1
    TEXT = "1"


class Answer(Enum):
    YES = True
    UNKNOWN = None


class Point(NamedTuple):
    x: int
    y: float = 0.0


class Options(TypedDict):
    deep: bool


@dataclass(frozen=True)
class Address:
    street: str
    zip_code: str | None = None


@dataclass(frozen=True)
class Customer:
    name: str
    since: date
    addresses: list[Address] = field(default_factory=list)
    friends: dict[str, Customer] = field(default_factory=dict)


@dataclass(frozen=True)
class Thumbnail:
    path: Path
    digest: bytes
    sizes: dict[Level, tuple[int, int]]


@dataclass(frozen=True)
class Box(Generic[T]):
    held: T


@dataclass(frozen=True)
class Order:
    lines: list[int]
    total: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "total", sum(self.lines))


@dataclass
class Prefixed:
    """Its own code changes it once more whenever it is made."""

    number: str

    def __post_init__(self) -> None:
        self.number = f"ORD-{self.number}"


@dataclass(frozen=True)
class Circle:
    size: float


@dataclass(frozen=True)
class Square:
    size: float


@dataclass(frozen=True)
class Cat:
    name: str
    kind: Literal["cat"] = "cat"


@dataclass(frozen=True)
class Dog:
    name: str
    kind: Literal["dog"] = "dog"


@dataclass(frozen=True)
class Sum:
    left: Sum | Circle
    right: Sum | Circle


class Ring:
    """Nothing that JSON can hold."""

    def __repr__(self) -> str:
        return "Ring()"


CUSTOMER = Customer(
    name="Ada",
    since=date(2025, 1, 2),
    addresses=[Address("Main St"), Address("Side St", "123")],
    friends={"Bob": Customer(name="Bob", since=date(2024, 1, 2))},
)
CARRIED = [
    (None, None),
    (3, int),
    (2**63 - 1, int),
    (0.1, float),
    (True, bool),
    ("ä\n", str),
    (b"\0\xff", bytes),
    (date(2025, 3, 1), date),
    (NOON, datetime),
    (time(1, 2, 3), time),
    (timedelta(seconds=1.5), timedelta),
    (UUID(int=1), UUID),
    (Decimal("0.10"), Decimal),
    (Path("a"), Path),
    (Colour.RED, Colour),
    (Level.LOW, Level),
    ([Every.DAY, Every.TERM], list[Every]),
    (Right.READ | Right.WRITE, Right),
    ({Every.DAY: 1}, dict[Every, int]),
    (None, Optional[int]),  # noqa: UP045 - the older spelling must work too
    ([1, 2], list[int]),
    ([Path("a")], Sequence[Path]),
    ((1, "a"), tuple[int, str]),
    ((1, 2, 3), tuple[int, ...]),
    ({1, 2}, set[int]),
    (frozenset({Colour.RED}), frozenset[Colour]),
    ({(1, 2)}, set[tuple[int, int]]),
    ({1: "a"}, dict[int, str]),
    ({"a": UUID(int=1)}, Mapping[str, UUID]),
    (Point(1, 2.5), Point),
    ({"deep": True}, Options),
    ("a", Literal["a", 1]),
    (Colour.RED, Literal[Colour.RED]),
    (UserId(5), UserId),
    (5, Annotated[int, "positive"]),
    (CUSTOMER, Customer),
    ([Address("a")], list[Address] | None),
    (Thumbnail(Path("a.png"), b"\0\xff", {Level.LOW: (1, 2)}), Thumbnail),
    (Order([1, 2]), Order),
    (Box(date(2025, 3, 1)), Box[date]),
    ([Box(1), Box(2)], list[Box[int]]),
    (Square(1.0), Square | None),
    (Dog("Rex"), Cat | Dog),
    ([Cat("Tom"), Dog("Rex")], list[Cat | Dog]),
    (Sum(Circle(1.0), Sum(Circle(2.0), Circle(3.0))), Sum),
    (Address("a"), Circle | Address),
    (3, int | str),
    ([1], list[int] | dict[str, int]),
    (3, TypeAliasType("Number", int)),  # as `type Number = int` of Python 3.12 makes it
    ([date(2025, 3, 1)], TypeAliasType("Days", list[date])),
]


def declared(app: QmlApp, hint: object, name: str = "echo") -> tuple[Any, list[Any]]:
    """A job function that takes and returns a value of this type, and what it was given."""
    given: list[Any] = []

    def echo(value: Any) -> Any:
        given.append(value)
        return value

    echo.__annotations__.update({"value": hint, "return": hint})
    return app.job(name)(echo), given


def returning(app: QmlApp, value: object, hint: object = Any) -> JobHandle[Any]:
    """The ended job of a function of this annotation that returns the value."""

    def work() -> Any:
        return value

    work.__annotations__["return"] = hint
    with app.inline():
        return app.job("work")(work).enqueue()


@pytest.mark.parametrize(("value", "hint"), CARRIED, ids=lambda each: str(each)[:40])
def test_an_argument_and_a_result_come_back_equal_and_of_their_type(
    app: QmlApp, value: object, hint: object
) -> None:
    echo, given = declared(app, hint)

    with app.inline():
        result = echo.enqueue(value).wait(0)

    assert given == [value]
    assert result == value
    assert type(given[0]) is type(result) is type(value)


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(st.characters(codec="utf-8")),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
        max_leaves=10,
    ).filter(lambda value: "\0" not in repr(value) and "\\x00" not in repr(value)),
    span=st.timedeltas(timedelta(days=-3650), timedelta(days=3650)),
)
def test_whatever_json_holds_and_every_duration_comes_back(value: object, span: timedelta) -> None:
    app, echo, given = _an_echo()

    with app.inline():
        assert echo.enqueue((value, span)).wait(0) == (value, span)
    assert given.pop() == (value, span)


@cache
def _an_echo() -> tuple[QmlApp, Any, list[Any]]:
    """One for all examples: a storage for each would take most of the time."""
    app = QmlApp("memory://")
    return app, *declared(app, tuple[Any, timedelta])


@pytest.mark.fault(26)
@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("3", int),
        (3.0, int),
        (1, bool),
        (3, str),
        (None, int),
        ("2025-03-01", date),
        ("abc", list[str]),
        ([1, "a"], list[int]),
        ((1,), tuple[int, int]),
        ({1: 2}, dict[str, int]),
        ("green", Colour),
        ("b", Literal["a"]),
        ({"street": "a"}, Address),
        (3.5, int | str),
        (Box("a"), Box[int]),
        (math.nan, float),
        (2**63, int),
        (Ring(), Any),
    ],
    ids=lambda each: str(each)[:30],
)
def test_a_value_of_another_type_is_refused_at_enqueue_with_function_and_argument(
    app: QmlApp, value: object, hint: object
) -> None:
    echo, given = declared(app, hint)

    with pytest.raises(InvalidJob, match=r"echo.*value|value.*echo"):
        echo.enqueue(value)

    assert not given
    assert sum(app.storage.job_counts().values()) == 0


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (Answer.UNKNOWN, Answer | None),
        ({Odd.NUMBER: 1}, dict[Odd, int]),
        (Prefixed("7"), Prefixed),
        (Square(1.0), Circle | Square),
        (np.zeros((0, 3)), np.ndarray),
        (np.array(["2025-03-01"], dtype="datetime64[D]"), np.ndarray),
        (np.ma.masked_array([1, 2], mask=[False, True]), np.ndarray),
    ],
    ids=lambda each: str(each)[:30],
)
def test_what_would_come_back_as_something_else_is_refused_as_argument_and_not_stored_as_result(
    app: QmlApp, value: object, hint: object
) -> None:
    echo, _ = declared(app, hint)

    with pytest.raises(InvalidJob):
        echo.enqueue(value)
    handle = returning(app, value, hint)

    with pytest.raises(ResultNotStored):
        handle.wait(0)


@pytest.mark.parametrize("hint", [Ring, complex, Callable[[int], int], list[Ring]], ids=str)
def test_an_annotation_that_cannot_travel_is_refused_by_the_name_of_its_argument(
    app: QmlApp, hint: object
) -> None:
    with pytest.raises((ConfigurationError, InvalidJob), match="value"):
        declared(app, hint)[0].enqueue(Ring())


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.uint8, np.bool_])
def test_an_array_comes_back_with_its_dtype_and_shape(app: QmlApp, dtype: Any) -> None:
    value = np.arange(4).astype(dtype).reshape(2, 2)
    echo, given = declared(app, NDArray[dtype])

    with app.inline():
        result = echo.enqueue(value).wait(0)

    for back in (given[0], result):
        assert back.dtype == dtype
        assert np.array_equal(back, value)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
        (
            {"mean": np.float64(1.5), "any": np.bool_(True), 3: np.uint8(7)},
            {"mean": 1.5, "any": True, "3": 7},
        ),
        ((1, 2), [1, 2]),
        (Colour.RED, "red"),
        (Address("a"), {"street": "a", "zip_code": None}),
        ({"bob": 9, "ann": 3}.keys(), ["bob", "ann"]),
        ({"a"}, ["a"]),
    ],
    ids=lambda each: str(each)[:30],
)
@pytest.mark.parametrize("hint", [Any, object])
def test_without_an_annotation_that_says_more_the_json_comes_back(
    app: QmlApp, value: object, plain: object, hint: object
) -> None:
    assert returning(app, value, hint).wait(0) == plain


@pytest.mark.parametrize("hint", ["Missing", list["Missing"], Iterator[int], WorkerResult], ids=str)  # type: ignore[name-defined]  # noqa: F821
def test_a_return_annotation_that_says_nothing_of_the_value_leaves_its_json(
    app: QmlApp, hint: object
) -> None:
    assert returning(app, [1, 2], hint).wait(0) == [1, 2]


def test_of_a_coroutine_it_is_what_it_returns(app: QmlApp) -> None:
    assert returning(app, 3, Awaitable[int]).wait(0) == 3


@pytest.mark.fault(31)
@pytest.mark.parametrize(
    ("value", "why"),
    [
        (np.array([1.0, math.inf]), r"The result at \[1\] is inf, which JSON cannot hold; pass null or text"),
        ({"a": math.nan}, r"The result at \['a'\] is nan, which JSON cannot hold"),
        (b"bytes", "The result holds bytes, which are not JSON; annotate the function"),
        (Ring(), "which is not JSON"),
        ({1: "a", "1": "b"}, "The result has two keys that are one text as JSON"),
        (np.longdouble(1.5), r"\.astype\('float64'\)"),
    ],
    ids=lambda each: str(each)[:30],
)
def test_what_cannot_be_stored_as_a_result_says_why_and_the_job_has_succeeded(
    app: QmlApp, value: object, why: str
) -> None:
    handle = returning(app, value)

    with pytest.raises(ResultNotStored, match=why):
        handle.wait(0)
    assert handle.state is StateName.SUCCEEDED


@pytest.mark.parametrize(
    ("stored", "hint", "problem"),
    [
        ("x", int, "The result must be a whole number, not str"),
        ({"path": "a"}, Thumbnail, "The result is no Thumbnail"),
        ({"street": "a", "old": 1}, Address, "The result has the field 'old', which Address has not"),
        ("ä", bytes, "The result is not base64"),
        ([0.2], NDArray[np.uint8], "uint8 does not hold what it was given"),
    ],
)
def test_a_result_that_no_longer_fits_the_annotation_is_told_with_the_stored_value(
    app: QmlApp, stored: Any, hint: object, problem: str
) -> None:
    def work() -> Any: ...

    work.__annotations__["return"] = hint
    handle = app.job("work")(work).enqueue()
    finish(app, Success(result=stored, duration=timedelta(0)))

    asks: list[Callable[[], object]] = [
        lambda: handle.result,
        lambda: handle.wait(0),
        lambda: app.wait_all([handle]),
    ]
    for ask in asks:
        with pytest.raises(ResultMismatch) as told:
            ask()
        assert problem in str(told.value)
        assert (told.value.job_id, told.value.value) == (handle.id, stored)
    assert app.handle(handle.id).wait(0) == stored  # by its id alone


def test_the_result_of_another_functions_job_is_not_given_as_ones_own(app: QmlApp) -> None:
    """Both have the unique key, so the second enqueue gives the handle of the first job."""

    @app.job()
    def mail() -> int:
        return 7

    @app.job()
    def resize() -> int:
        return 8

    sent = mail.using(unique_key="user-5").enqueue()
    kept = resize.using(unique_key="user-5").enqueue()
    by_name = app.enqueue("resize", unique_key="user-5")
    finish(app, Success(result=7, duration=timedelta(0)))

    asks: list[Callable[[], object]] = [lambda: kept.result, lambda: kept.wait(0), lambda: by_name.result]
    for ask in asks:
        with pytest.raises(ResultMismatch, match=r"is one of 'mail', and .* comes from 'resize'"):
            ask()
    assert (kept.is_new, kept.id) == (False, sent.id)
    assert sent.wait(0) == mail.handle(sent.id).result == 7


def test_handles_of_the_function_rebuild_and_handles_by_name_do_not(app: QmlApp) -> None:
    @app.job()
    def today() -> date:
        return date(2025, 3, 1)

    with app.inline():
        one, two = today.enqueue_many([today.job(), today.job()])
        by_name = app.enqueue("today")

        assert app.wait_all([one, two, today.handle(by_name.id)]) == [date(2025, 3, 1)] * 3
        assert (by_name.result, app.handle(one.id).wait(0)) == ("2025-03-01", "2025-03-01")


def test_a_function_may_keep_no_result(app: QmlApp) -> None:
    @app.job(result=False)
    def secret() -> bytes:
        return b"password"

    with app.inline():
        handle = secret.enqueue()

        assert (handle.wait(0), handle.result) == (None, None)
    assert secret() == b"password"
    with pytest.raises(ConfigurationError, match="result is 'no'; it must be True or False"):
        app.job(result="no")  # type: ignore[call-overload]  # what is tested


def test_arguments_are_bound_as_a_call_binds_them(app: QmlApp) -> None:
    seen: list[object] = []

    @app.job()
    def work(a: int, /, b: date, ctx: WorkerContext, *rest: Path, c: int = 3, **more: Colour) -> None:
        seen.append((a, b, ctx.attempt, rest, c, more))

    enqueue: Any = work.enqueue  # its type has the context in its place
    with app.inline():
        enqueue(1, date(2025, 3, 1), Path("x"), Path("y"), c=4, colour=Colour.RED)
        enqueue(1, b=date(2025, 3, 1))

    assert seen == [
        (1, date(2025, 3, 1), 1, (Path("x"), Path("y")), 4, {"colour": Colour.RED}),
        (1, date(2025, 3, 1), 1, (), 3, {}),
    ]


@pytest.mark.parametrize(
    ("args", "kwargs", "problem"),
    [
        ((), {}, "a"),
        ((1, 2, 3), {}, "too many"),
        ((1,), {"nope": 1}, "nope"),
        ((1,), {"ctx": None}, "ctx"),
        ((1,), {"a": 1}, "a"),
    ],
    ids=str,
)
def test_a_call_that_python_would_refuse_is_refused_at_enqueue(
    app: QmlApp, args: tuple[Any, ...], kwargs: dict[str, Any], problem: str
) -> None:
    @app.job()
    def work(a: int, b: int = 0, *, ctx: WorkerContext) -> None: ...

    with pytest.raises(InvalidJob, match=problem):
        work.enqueue(*args, **kwargs)


def test_a_payload_written_by_hand_is_converted_and_one_that_does_not_fit_fails_the_job_for_good(
    app: QmlApp,
) -> None:
    echo, given = declared(app, Address)

    with app.inline():
        app.enqueue("echo", {"value": {"street": "Main St"}})
        app.enqueue("echo", [{"street": "Side St"}])
    assert given == [Address("Main St"), Address("Side St")]

    with pytest.raises(InvalidJob, match="value"):
        app.enqueue("echo", {"value": {"town": "Ulm"}})
    assert json.loads(json.dumps(echo.job(Address("a")).payload)) == {
        "value": {"street": "a", "zip_code": None}
    }


def test_an_annotation_may_name_what_is_defined_further_down_and_one_that_is_nowhere_is_told(
    app: QmlApp,
) -> None:
    seen: list[object] = []

    @app.job()
    def work(value: Later) -> None:
        seen.append(value)

    @app.job()
    def lost(value: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    enqueue_lost: Any = lost.enqueue
    with app.inline():
        work.enqueue(Later(1))
        with pytest.raises((InvalidJob, ConfigurationError, JobFailed), match="Nowhere"):
            enqueue_lost(1)

    assert seen == [Later(1)]


@dataclass(frozen=True)
class Later:
    number: int
