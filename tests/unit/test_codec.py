"""Tests: values to JSON by their annotation, and back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import InitVar, dataclass, field, make_dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, Flag, IntEnum, StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NewType, Optional, TypedDict, TypeVar, Union
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
import pytest
import typing_extensions
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qml_mp import QmlApp
from qml_mp.core.payload import JsonValue
from qml_mp.errors import InvalidJob
from qml_mp.processing.codec import from_json, to_json
from qml_mp.processing.plain import plain_result
from qml_mp.processing.returned import Returned
from qml_mp.processing.scalars import Mistakable, UnusableAnnotation

UserId = NewType("UserId", int)
T = TypeVar("T")


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1


class Pair(Enum):
    ONE_TWO = (1, 2)


class Path2D(Enum):
    LINE = ((0, 0), (1, 2))
    CORNERS = [[0, 0], [3, 4]]  # noqa: RUF012 - a value that has no hash


class Setting(Enum):
    WIDE = {"width": (1, 2)}  # noqa: RUF012 - likewise


class Every(Enum):
    DAY = timedelta(days=1)
    WEEK = timedelta(days=7)


class Term(Enum):
    SPRING = date(2025, 3, 1)
    AUTUMN = (date(2025, 9, 1), Decimal("0.5"))


class Folder(Enum):
    IN = Path("in")


class Twice(Enum):
    NUMBER = 60.0
    SPAN = timedelta(minutes=1)


class Start(Enum):
    DAY = date(2025, 3, 1)
    TEXT = "2025-03-01"
    PAIR = (1, 2)
    LIST = [1, 2]  # noqa: RUF012 - likewise


class Keys(Enum):
    NUMBER = {1: 2}  # noqa: RUF012 - likewise
    TEXT = {"1": 2}  # noqa: RUF012 - likewise


class Roles(Enum):
    STAFF = frozenset({"read", "write", "admin"})


class Right(Flag):
    READ = 1
    WRITE = 2


class Odd(Enum):
    NUMBER = 1
    TEXT = "1"
    OTHER = "a"


class Point(NamedTuple):
    x: int
    y: float = 0.0


class Options(TypedDict):
    deep: bool


class LaterOptions(typing_extensions.TypedDict):
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
    colour: Colour = Colour.RED
    seen: int = field(default=0, init=False)


@dataclass(frozen=True)
class Positive:
    number: int

    def __post_init__(self) -> None:
        if self.number <= 0:
            raise ValueError("the number must be positive")


@dataclass(frozen=True)
class Scaled:
    size: float
    factor: InitVar[float] = 1.0


@dataclass(frozen=True)
class Measured:
    size: float
    unit: InitVar[str]


@dataclass(frozen=True)
class Framed(Measured):
    width: int


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (3, int),
        (3.5, float),
        (True, bool),
        ("a", str),
        (None, None),
        ({"a": [1, None]}, Any),
        ([1], object),
        (datetime(2025, 3, 1, 12, 30, tzinfo=UTC), datetime),
        (date(2025, 3, 1), date),
        (time(9, 30), time),
        (time(9, 30, tzinfo=UTC), time),
        (timedelta(hours=1, microseconds=1), timedelta),
        (UUID(int=7), UUID),
        (Path("/a/b c.png"), Path),
        (Decimal("0.10"), Decimal),
        (Colour.BLUE, Colour),
        (Level.LOW, Level),
        (Pair.ONE_TWO, Pair),
        (Path2D.LINE, Path2D),
        (Path2D.CORNERS, Path2D | str),
        (Setting.WIDE, Setting),
        (Every.WEEK, Every),
        (Every.DAY, Every | str),
        ({Every.DAY: 1}, dict[Every, int]),
        (Every.DAY, Literal[Every.DAY, "never"]),
        (Term.SPRING, Term),
        (Term.AUTUMN, Term | None),
        (Folder.IN, Folder),
        (Twice.NUMBER, Twice),
        (Start.TEXT, Start),
        ([Start.TEXT, Start.PAIR], list[Start]),
        (Start.TEXT, Literal[Start.DAY, Start.TEXT]),
        (Start.DAY, Literal[Start.DAY]),
        (Keys.TEXT, Keys),
        (Roles.STAFF, Roles),
        (Right.READ | Right.WRITE, Right),
        ({Right.READ | Right.WRITE: 1, Right(0): 2, Right.READ: 3}, dict[Right, int]),
        ({Odd.OTHER: 1, Odd.TEXT: 2}, dict[Odd, int]),
        (None, Optional[int]),  # noqa: UP045 - the older spelling must work too
        (3, int | None),
        ("a", Union[int, str]),  # noqa: UP007 - likewise
        (date(2025, 3, 1), date | str),
        ([1, 2], list[int]),
        ([Path("a")], Sequence[Path]),
        ([1], Iterable[int]),
        ((1, "a"), tuple[int, str]),
        ((1, 2, 3), tuple[int, ...]),
        ((), tuple[()]),
        ((1, 2), tuple),
        ({1, 2}, set[int]),
        (frozenset({Colour.RED}), frozenset[Colour]),
        ({3}, AbstractSet[int]),
        ({3, "a"}, set),
        (set(), set[complex]),
        (frozenset(), frozenset[complex] | None),
        ({(1, 2)}, set[tuple[int, int]]),
        ({(1, "a"), 3}, set[tuple[int, Any] | int]),
        ({3, "a", None}, set[int | Any]),
        ({"a": UUID(int=1)}, dict[str, UUID]),
        ({"a": 1}, Mapping[str, int]),
        ({"a": 1}, dict[Literal["a", "b"], int]),
        ({"deep": True}, LaterOptions),
        ({"a": 1}, dict),
        (Point(1, 2.5), Point),
        ({"deep": True}, Options),
        ("a", Literal["a", 1]),
        (5, UserId),
        (5, Annotated[int, "positive"]),
        ([1], T),
        (Customer(name="Ada", since=date(2025, 1, 2)), Customer),
        (
            Customer(
                name="Ada",
                since=date(2025, 1, 2),
                addresses=[Address("Main St"), Address("Side St", "123")],
                friends={"Bob": Customer(name="Bob", since=date(2024, 1, 2), colour=Colour.BLUE)},
            ),
            Customer,
        ),
        ([Address("a")], list[Address] | None),
        ({"a": [Address("a"), None]}, dict[str, list[Address | None]]),
        (Scaled(2.0, 3.0), Scaled),
        (Address("a"), Positive | Address),
    ],
)
def test_a_value_comes_back_equal_and_of_its_type(value: object, hint: object) -> None:
    text = json.dumps(to_json(value, hint, where="it"))
    back = from_json(json.loads(text), hint, where="it")

    assert back == value
    assert type(back) is type(value)


@given(st.timedeltas(timedelta(days=-3650), timedelta(days=3650)))
def test_a_timedelta_comes_back_to_the_microsecond(value: timedelta) -> None:
    assert from_json(to_json(value, timedelta, where="it"), timedelta, where="it") == value


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("3", int),
        (3.0, int),
        (True, float),
        (1, bool),
        (3, str),
        (None, int),
        (Path("a"), str),
        ("a.png", Path),
        ("2025-03-01", date),
        (datetime(2025, 3, 1, tzinfo=UTC), date),
        ("abc", list[str]),
        ([1, "a"], list[int]),
        ((1,), tuple[int, int]),
        ({1: 2}, dict[str, int]),
        ([], dict[str, int]),
        ("green", Colour),
        ("b", Literal["a"]),
        (True, Literal[1]),
        ({"street": "a"}, Address),
        ((1, 2), Point),
        (3.5, int | str),
        ("x", bytes),
        ({True: 1}, dict[int, int]),
        ({"c": 1}, dict[Literal["a", "b"], int]),
        ({1: 1}, dict[Literal["a", 1], int]),
        ({"red": 1}, dict[Level, int]),
        ({Odd.NUMBER: 1, Odd.TEXT: 2}, dict[Odd, int]),
        ({Odd.NUMBER: 1}, dict[Odd, int]),
        ({Odd.OTHER: 1, "a": 3}, dict[Odd, int]),
        (Address("a"), Positive),
        (object(), str | None),
        ({(1, 2)}, set),
        (frozenset({Point(1, 2)}), frozenset[Any] | None),
        ({(1, 2)}, set[int | Any]),
        ({"a", (1, 2)}, set[str | Any | None]),
        ([{((1, 2), 3)}], list[set[tuple[Any, int] | int]]),
    ],
)
def test_a_value_that_is_not_what_its_annotation_says_is_refused(value: object, hint: object) -> None:
    with pytest.raises(InvalidJob, match=r"^argument "):
        to_json(value, hint, where="argument 'it'")


@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_a_member_whose_value_is_a_set_is_read_where_sets_have_another_order(seed: str) -> None:
    write = (
        "import json; from qml_mp.processing.codec import to_json; from tests.unit.test_codec import Roles;"
        "print(json.dumps(to_json(Roles.STAFF, Roles, where='it')))"
    )

    written = subprocess.run(
        [sys.executable, "-c", write],
        env={**os.environ, "PYTHONHASHSEED": seed},
        stdout=subprocess.PIPE,
        check=True,
    ).stdout

    assert from_json(json.loads(written), Roles, where="it") is Roles.STAFF


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (Twice.SPAN, Twice),
        (Start.DAY, Start),
        (Start.DAY, Start | None),
        ({"a": Start.LIST}, dict[str, Start]),
        (Start.DAY, Literal[Start.DAY, Start.TEXT]),
        (Start.DAY, Literal[Start.DAY, "2025-03-01"]),
        ((Start.LIST,), tuple[Literal[Start.PAIR, Start.LIST], ...]),
        (Keys.NUMBER, Keys),
    ],
)
def test_a_member_that_would_come_back_as_another_is_refused_as_argument_and_as_result(
    value: object, hint: object
) -> None:
    def function() -> Any: ...

    function.__annotations__["return"] = hint

    with pytest.raises(Mistakable, match=r"^it.* would come back as"):
        to_json(value, hint, where="it")
    with pytest.raises(Mistakable, match=r"^The result.* would come back as"):
        Returned(function).encoded(value)


@pytest.mark.parametrize(
    "hint", [complex, type, range, dict[float, str], list[complex], list[complex] | complex]
)
def test_an_annotation_that_cannot_travel_is_refused_by_name(hint: object) -> None:
    with pytest.raises(InvalidJob):
        to_json([1j] if hint == list[complex] else {1: "a"}, hint, where="it")


@pytest.mark.parametrize(
    ("value", "hint", "told"),
    [
        ("x", int, "it must be a whole number, not str"),
        ("x", UUID, "it is not a UUID"),
        ("2025-13-01", date, "it is not an ISO 8601 date"),
        ("1,5", Decimal, "it is not a decimal number"),
        (1e300, timedelta, "it is not a number of seconds"),
        ({"street": 3}, Address, "it.street must be text"),
        ({}, Address, "missing 1 required"),
        ({"street": "a", "lane": 1}, Address, "the field 'lane'"),
        ([], Address, "it must be an object"),
        ({"number": -1}, Positive, "ValueError: the number must be positive"),
        ([[1], ["a"]], list[list[int]], r"it\[1\]\[0\] must be a whole number"),
        ({"a": {"b": "x"}}, dict[str, dict[str, int]], r"it\['a'\]\['b'\]"),
        ([1], tuple[int, int], "it has 1 items"),
        ([[1]], set[list[int]], "cannot be a set"),
        ("green", Colour, "'red', 'blue'"),
        ([1, 2], Level, "none of the values of Level"),
        ([[0, 0], [9, 9]], Path2D, "none of the values of Path2D"),
        ({"x": 1}, dict[Right, int], "none of the values of Right"),
        ({"8": 1}, dict[Right, int], "none of the values of Right"),
        (3, str | None, "it must be text"),
        (3.5, int | str, "it must be int or str"),
        ({"name": "A", "since": "2025-01-01", "seen": "x"}, Customer, "it.seen must be a whole number"),
    ],
)
def test_json_that_does_not_fit_is_refused_with_the_place(value: Any, hint: object, told: str) -> None:
    with pytest.raises(InvalidJob, match=told):
        from_json(value, hint, where="it")


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (timedelta.max, timedelta),
        (timedelta(days=200_000, microseconds=1), timedelta),
        (2**53 + 1, float),
        (np.int64(2**53 + 1), float),
        (2**53 + 1, list[float] | float),
    ],
)
def test_a_number_or_duration_that_would_be_altered_is_refused(value: Any, hint: object) -> None:
    with pytest.raises(InvalidJob):
        to_json(value, hint, where="it")


NOT_HELD: list[tuple[Any, object]] = [
    ([1.5], NDArray[np.int64]),
    ([0.2, 1.0], NDArray[np.uint8]),
    ([300], NDArray[np.uint8]),
    ([[5, 1]], NDArray[np.bool_]),
    (["12"], NDArray[np.int64]),
]


@pytest.mark.parametrize(("value", "hint"), NOT_HELD)
def test_an_array_with_what_the_dtype_of_its_annotation_does_not_hold_is_refused(
    value: Any, hint: object
) -> None:
    with pytest.raises(InvalidJob, match=r"^it is no ndarray: "):
        to_json(np.array(value), hint, where="it")


@pytest.mark.parametrize(
    ("value", "hint"), [*NOT_HELD, (2.7, np.int64), ("12", np.int64), ("false", np.bool_), (None, np.bool_)]
)
def test_json_that_a_whole_number_or_truth_of_numpy_does_not_hold_is_not_cut_to_one(
    value: Any, hint: object
) -> None:
    with pytest.raises(InvalidJob, match=r"^it is no "):
        from_json(value, hint, where="it")


@pytest.mark.parametrize(
    ("value", "hint", "dtype"),
    [
        (np.array([1.0, 255.0]), NDArray[np.uint8], np.uint8),
        (np.array([1, 2], dtype=np.int32), NDArray[np.int64], np.int64),
        (np.array([0, 1]), NDArray[np.bool_], np.bool_),
        (np.array([True]), NDArray[np.int64], np.int64),
        (np.array([0.5]), NDArray[np.float32], np.float32),
        (np.array(3.0), NDArray[np.int64], np.int64),
    ],
)
def test_an_array_that_the_dtype_of_its_annotation_holds_comes_back_of_that_dtype(
    value: Any, hint: Any, dtype: type
) -> None:
    back = from_json(to_json(value, hint, where="it"), hint, where="it")

    assert np.array_equal(back, value)
    assert back.dtype == dtype


def test_a_time_whose_text_would_lose_its_zone_is_refused() -> None:
    opens_at = time(9, tzinfo=ZoneInfo("Europe/Berlin"))

    for write in (lambda: to_json(opens_at, time, where="it"), lambda: plain_result([opens_at])):
        with pytest.raises(InvalidJob, match="is a time in a zone whose offset depends on the day"):
            write()


def test_a_truth_of_numpy_is_stored_as_one_and_an_array_of_them_is_none() -> None:
    truths = to_json([np.True_, np.False_], list[bool | None], where="it")
    assert json.dumps(truths) == "[true, false]"  # Python's own, as those of numpy cannot be encoded
    with pytest.raises(InvalidJob, match="must be true or false, not ndarray"):
        to_json(np.array([True]), bool, where="it")


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (timedelta.min, timedelta),
        (timedelta(days=200_000), timedelta),
        (2**53 + 1, float | int),
        (2**60, float),
    ],
)
def test_a_large_number_or_duration_that_is_kept_comes_back(value: Any, hint: object) -> None:
    back = from_json(json.loads(json.dumps(to_json(value, hint, where="it"))), hint, where="it")

    assert back == value


class Stamp(datetime):
    """As pandas makes its own."""

    nanosecond = 0

    def __eq__(self, other: object) -> bool:
        is_nat = self.year == 1
        return not is_nat and self.nanosecond == getattr(other, "nanosecond", 0) and super().__eq__(other)

    __hash__ = datetime.__hash__


@pytest.mark.parametrize("hint", [datetime, datetime | None, list[datetime] | datetime])
def test_an_instant_that_no_datetime_holds_is_refused(hint: object) -> None:
    nat, exact = Stamp(1, 1, 1), Stamp(2025, 3, 1)
    exact.nanosecond = 1

    for value in (nat, exact):
        with pytest.raises(InvalidJob):
            to_json(value, hint, where="it")
        with pytest.raises(InvalidJob, match=r"The result is a Stamp that no datetime holds"):
            plain_result({"at": value})


@pytest.mark.parametrize("fold", [0, 1])
def test_an_instant_of_a_class_of_its_own_comes_back_as_a_datetime(fold: int) -> None:
    zone = ZoneInfo("Europe/Berlin")
    value = Stamp(2025, 10, 26, 2, 30, tzinfo=zone, fold=fold)  # the hour that there is twice

    back = from_json(to_json(value, datetime, where="it"), datetime, where="it")

    assert type(back) is datetime
    assert back.astimezone(UTC) == value.astimezone(UTC)


def test_a_field_that_the_class_makes_itself_is_put_back_where_the_json_has_it() -> None:
    ada: dict[str, JsonValue] = {"name": "Ada", "since": "2025-01-01"}

    assert from_json({**ada, "seen": 3}, Customer, where="it").seen == 3
    assert from_json(ada, Customer, where="it").seen == 0


@pytest.mark.parametrize("value", [Measured(2.0, "cm"), Framed(2.0, "cm", width=1)])
def test_a_dataclass_is_refused_that_could_not_be_made_anew(value: object) -> None:
    with pytest.raises(UnusableAnnotation, match=r"'it'\[0\] is .* InitVar 'unit' is not kept"):
        to_json([value], list[type(value)], where="the argument 'it'")  # type: ignore[misc]


def test_a_result_that_could_not_be_made_anew_comes_back_as_json(app: QmlApp) -> None:
    @app.job()
    def measure() -> Measured:
        return Measured(2.0, "cm")

    with app.inline():
        stored: object = measure.enqueue().wait()
    assert stored == {"size": 2.0}


@pytest.mark.parametrize(
    "define",
    [lambda: make_dataclass("Picture", [("size", int)]), lambda: NamedTuple("Picture", [("size", int)])],
    ids=["dataclass", "named tuple"],
)
def test_a_value_of_a_class_that_was_defined_anew_since_is_refused_with_what_helps(
    define: Callable[[], Any],
) -> None:
    earlier, later = define(), define()

    with pytest.raises(InvalidJob, match=r"^it must be Picture, not int\.$"):
        to_json(3, later, where="it")
    for value, hint in ((earlier(3), later), (later(3), earlier)):
        with pytest.raises(InvalidJob, match=r"^it must be Picture, and is of another class .* cell"):
            to_json(value, hint, where="it")


def test_foreign_whole_numbers_become_plain_ones() -> None:
    class Index:
        def __index__(self) -> int:
            return 7

    assert to_json(Index(), int, where="it") == 7


def test_a_dataclass_that_holds_itself_is_refused() -> None:
    friends: dict[str, Customer] = {}
    friends["me"] = Customer(name="A", since=date(2025, 1, 1), friends=friends)

    with pytest.raises(InvalidJob, match="nested too deep"):
        to_json(friends["me"], Customer, where="it")
