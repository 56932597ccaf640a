"""Tests: what functions return is given back as it was, by the return annotation."""

from __future__ import annotations

import array
import asyncio
import json
import math
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from uuid import UUID

import pytest

from qml_mp import QmlApp, ResultMismatch, ResultNotStored, WorkerResult
from qml_mp.core.outcome import Success
from qml_mp.core.payload import JsonValue, encode_json
from qml_mp.errors import ConfigurationError, InvalidJob
from qml_mp.processing.codec import to_json
from qml_mp.processing.returned import Returned
from tests.unit.app_case import finish
from tests.unit.processor_case import claim_of, returning, run

with pytest.MonkeyPatch.context() as patch:
    # Its library would start threads now, in a process of which other tests fork workers.
    patch.setenv("OPENBLAS_NUM_THREADS", "1")
    import numpy as np
    from numpy.typing import NDArray

if TYPE_CHECKING:
    from qml_mp.nowhere import Missing  # type: ignore[import-not-found]


class Colour(StrEnum):
    RED = "red"


class Level(IntEnum):
    LOW = 1


class Odd(Enum):
    NUMBER = 1
    TEXT = "1"


class Answer(Enum):
    YES = True
    UNKNOWN = None


class Every(Enum):
    DAY = timedelta(days=1)
    TERM = (date(2025, 3, 1), Path("a"))


class Start(Enum):
    DAY = date(2025, 3, 1)
    TEXT = "2025-03-01"


class Point(NamedTuple):
    x: int
    y: float


@dataclass(frozen=True)
class Report:
    counts: dict[Literal["good", "bad"], int]


@dataclass(frozen=True)
class Thumbnail:
    path: Path
    taken: date
    digest: bytes
    sizes: dict[Level, tuple[int, int]]


@dataclass(frozen=True)
class Order:
    lines: list[int]
    total: int = field(init=False)
    sorting: Callable[[int], int] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        object.__setattr__(self, "total", sum(self.lines))


@dataclass
class Upload:
    data: bytes
    size: int = field(init=False, default=0)
    on_end: Callable[[], int] | None = field(init=False, default=None)
    parts: list[Upload] = field(default_factory=list)


@dataclass
class Picture:
    data: bytes
    details: dict[str, Any]


class OrderedSet(set[str]):
    """As SQLAlchemy's is made."""

    def __init__(self, items: Iterable[str]) -> None:
        super().__init__(items)
        self.items = [*items]

    def __iter__(self) -> Iterator[str]:
        return iter(self.items)


@dataclass
class Tally:
    words: int = field(init=False, default=0)


TALLY = Tally()
TALLY.words = 7
UPLOAD = Upload(b"abc", parts=[Upload(b"a")])
UPLOAD.size, UPLOAD.parts[0].size = 3, 1
SCORES = {"bob": 9, "cy": 5, "ann": 3}
THUMBNAIL = Thumbnail(Path("a.png"), date(2025, 3, 1), b"\0\xff", {Level.LOW: (1, 2)})


def function_returning(hint: object) -> Callable[..., Any]:
    def function() -> Any: ...

    function.__annotations__["return"] = hint
    return function


def there_and_back(value: object, hint: object) -> object:
    """Written by a worker and read by a client."""
    returned = Returned(function_returning(hint))
    stored: JsonValue = json.loads(returned.encoded(value).text)
    return returned.rebuilt(stored)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (None, None),
        (3, int),
        (2, float),
        (THUMBNAIL, Thumbnail),
        ([THUMBNAIL], list[Thumbnail] | None),
        (None, Thumbnail | None),
        (Order([1, 2]), Order),
        ([Order([])], list[Order]),
        (Order([1, 2]), Tally | Order | None),
        (TALLY, Tally),
        (TALLY, Order | Tally),
        (UPLOAD, Upload),
        ([UPLOAD], list[Upload | Tally]),
        (datetime(2025, 3, 1, tzinfo=UTC), datetime),
        (timedelta(seconds=1.5), timedelta),
        (UUID(int=1), UUID),
        (Decimal("0.1"), Decimal),
        (Path("a"), Path),
        (Colour.RED, Colour),
        (Report({"good": 1}), Report),
        ([Every.DAY, Every.TERM], list[Every]),
        (Start.TEXT, Start),
        ({"a": Start.TEXT}, dict[str, Start]),
        (Start.TEXT, Literal[Start.DAY, Start.TEXT]),
        ({Every.DAY: Every.TERM}, dict[Every, Every]),
        (Point(1, 2.0), Point),
        ({1: "a"}, dict[int, str]),
        ({Colour.RED: 1, "red": 1}, dict[Colour, int]),
        ({"a"}, set[str]),
        (b"\0\xff", bytes),
        ({"a": [b""]}, dict[str, list[bytes]]),
        (3, Awaitable[int]),
        (True, np.bool_),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_result_comes_back_equal_and_of_its_type(value: object, hint: object) -> None:
    back = there_and_back(value, hint)

    assert back == value
    if isinstance(value, Enum | Thumbnail | Point | Path | bytes):
        assert type(back) is type(value)


@pytest.mark.parametrize(
    ("value", "hint", "plain"),
    [
        (Thumbnail, Any, InvalidJob),
        ((1, 2), Any, [1, 2]),
        (Colour.RED, object, "red"),
        ({"a": THUMBNAIL.path}, dict[str, Any], {"a": "a.png"}),
        ([1, 2], Iterator[int], [1, 2]),
        ([1, 2], "Missing", [1, 2]),
        ([1, 2], list["Missing"], [1, 2]),
        ([[1, 2]], list[Iterator[int]], [[1, 2]]),
        ([1, 2], int | Iterator[int], [1, 2]),
        ({"result": 1}, WorkerResult, {"result": 1}),
        ({"result": 1}, WorkerResult | int, {"result": 1}),
    ],
    ids=lambda value: str(value)[:30],
)
def test_without_an_annotation_that_says_more_the_json_comes_back(
    value: object, hint: object, plain: object
) -> None:
    if plain is InvalidJob:
        with pytest.raises(InvalidJob):
            there_and_back(value, hint)
    else:
        assert there_and_back(value, hint) == plain


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
        (np.float32(0.5), 0.5),
        (np.array(3), 3),
        (
            {"mean": np.float64(1.5), "any": np.bool_(True), 3: np.uint8(7)},
            {"mean": 1.5, "any": True, "3": 7},
        ),
        (array.array("d", [1.0, 2.0]), [1.0, 2.0]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_arrays_and_numbers_of_other_libraries_are_stored_as_lists_and_numbers(
    value: object, plain: object
) -> None:
    outcome = run(returning(value))

    assert isinstance(outcome, Success)
    assert (outcome.result, outcome.not_stored) == (plain, None)
    assert outcome.encoded == encode_json(plain, what="it")


@pytest.mark.parametrize(
    ("value", "hint", "back"),
    [
        (SCORES.keys(), Any, ["bob", "cy", "ann"]),
        ({9: "", 10: "", 2: ""}.keys(), list[int], [9, 10, 2]),
        (SCORES.items(), list[tuple[str, int]], [("bob", 9), ("cy", 5), ("ann", 3)]),
        ({"ranks": (SCORES.items(), 1)}, dict[str, Any], {"ranks": [[["bob", 9], ["cy", 5], ["ann", 3]], 1]}),
        (OrderedSet(["c", "b", "a"]), list[str], ["c", "b", "a"]),
        ((b"", SCORES.keys()), tuple[bytes, Any], (b"", ["bob", "cy", "ann"])),
        ([{10, 9, 2}, frozenset({"a"})], list[Any], [[10, 2, 9], ["a"]]),
    ],
    ids=range(7),
)
def test_a_set_with_an_order_of_its_own_keeps_it_as_a_result_and_another_has_the_same_in_every_process(
    value: object, hint: object, back: object
) -> None:
    assert there_and_back(value, hint) == back


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (np.array([1.0, math.inf]), r"The result at \[1\] is inf, which JSON cannot hold; pass null or text"),
        ({"a": math.nan}, r"The result at \['a'\] is nan, which JSON cannot hold"),
        (b"bytes", r"The result holds bytes, which are not JSON; annotate the function"),
        (np.array([b"a"]), r"The result holds bytes"),
        (
            np.array([1j]),
            r"holds a complex, which is not JSON; return text, numbers, lists",
        ),
        (bytearray(b"a"), r"The result holds bytes"),
        (np.zeros, r"which is not JSON"),
        ({1: "a", "1": "b"}, r"The result has two keys that are one text as JSON"),
    ],
    ids=[
        "infinity in an array",
        "nan",
        "bytes",
        "bytes in an array",
        "complex",
        "bytearray",
        "a function",
        "keys",
    ],
)
def test_what_cannot_be_stored_says_why_in_a_sentence(value: object, why: str) -> None:
    outcome = run(returning(value))

    assert isinstance(outcome, Success)
    assert outcome.result is None
    assert re.search(why, outcome.not_stored or "")


def test_an_annotated_array_comes_back_as_one() -> None:
    small = np.arange(4, dtype=np.float32).reshape(2, 2)

    for hint in (np.ndarray, NDArray[np.float32], NDArray[Any], NDArray[np.floating[Any]]):
        back = there_and_back(small, hint)
        assert isinstance(back, np.ndarray)
        assert np.array_equal(back, small)
    typed = there_and_back(small, NDArray[np.float32])
    number = there_and_back(np.float32(0.5), np.float32)
    assert isinstance(typed, np.ndarray)
    assert typed.dtype == np.float32
    assert (type(number), number) == (np.float32, 0.5)


@pytest.mark.parametrize("value", [{Odd.NUMBER: 1, Odd.TEXT: 2}, {Odd.NUMBER: 1}])
def test_a_result_with_an_enum_as_key_that_would_come_back_as_another_is_not_stored(value: object) -> None:
    with pytest.raises(InvalidJob, match=r"key <Odd.NUMBER: 1>, which would come back as <Odd.TEXT: '1'>"):
        Returned(function_returning(dict[Odd, int])).encoded(value)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (Answer.UNKNOWN, Answer | None),
        ([Answer.YES, Answer.UNKNOWN], list[Answer | None]),
        (Answer.UNKNOWN, Literal[Answer.UNKNOWN] | None),
        ({"a": Answer.UNKNOWN}, dict[str, Answer | None]),
    ],
    ids=str,
)
def test_a_member_that_is_null_is_not_stored_where_it_would_come_back_as_none(
    value: object, hint: object
) -> None:
    with pytest.raises(InvalidJob, match=r"is of type Answer, and would come back as None,"):
        Returned(function_returning(hint)).encoded(value)


@pytest.mark.parametrize("value", [Answer.YES, None])
def test_other_members_of_such_an_enum_and_none_come_back(value: object) -> None:
    assert there_and_back(value, Answer | None) is value
    assert there_and_back(Answer.UNKNOWN, Answer) is Answer.UNKNOWN


UNCARRIED = [
    (
        np.array(["2025-03-01T12:00"], dtype="datetime64[ns]"),
        r"is datetime64\[ns\], .* \(\.astype\('int64'\)\)",
    ),
    (np.array(["2025-03-01"], dtype="datetime64[D]"), r"is datetime64\[D\]"),
    (np.timedelta64(5, "ns"), r"is timedelta64\[ns\]"),
    (np.longdouble(1.5), r"is float\d+, .* \(\.astype\('float64'\)\)"),
    (np.array([1.5], dtype=np.longdouble), r"is float\d+, .* \(\.astype\('float64'\)\)"),
    (np.ma.masked_array([1, 2], mask=[False, True]), r"is a masked array, .* its mask"),
    (np.array([(1, 2.5)], dtype=[("a", int), ("b", float)]), r"is a structured array, .* each field"),
    (np.array([(1, 2.5)], dtype=[("a", int), ("b", float)])[0], r"is a structured array"),
]


@pytest.mark.parametrize(("value", "why"), UNCARRIED)
@pytest.mark.parametrize("is_annotated", [False, True])
def test_a_result_that_lists_cannot_carry_is_not_stored(value: Any, why: str, is_annotated: bool) -> None:
    returned = Returned(function_returning(type(value) if is_annotated else Any))

    with pytest.raises(InvalidJob, match=f"^The result {why}"):
        returned.encoded(value)


@pytest.mark.parametrize(("value", "why"), UNCARRIED)
def test_an_argument_that_lists_cannot_carry_is_refused(value: Any, why: str) -> None:
    hint = np.ndarray if isinstance(value, np.ndarray) else type(value)

    with pytest.raises(InvalidJob, match=rf"^it\[0\] {why}"):
        to_json([value], list[hint], where="it")  # type: ignore[valid-type]


@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3)])
def test_an_empty_array_whose_shape_lists_do_not_say_is_refused(shape: tuple[int, ...]) -> None:
    empty = np.zeros(shape)

    with pytest.raises(InvalidJob, match=rf"^it is an empty array of the shape \({shape[0]}, .*pass None"):
        to_json(empty, np.ndarray, where="it")
    with pytest.raises(InvalidJob, match=r"^The result is an empty array"):
        Returned(function_returning(NDArray[np.float64] | None)).encoded(empty)


@pytest.mark.parametrize("shape", [(0,), (3, 0), ()])
def test_an_array_whose_shape_lists_say_comes_back_with_it(shape: tuple[int, ...]) -> None:
    back = there_and_back(np.zeros(shape), NDArray[np.float64])

    assert isinstance(back, np.ndarray)
    assert (back.shape, back.dtype) == (shape, np.float64)


@pytest.mark.parametrize(
    ("stored", "hint", "problem"),
    [
        ("x", int, "The result must be a whole number, not str."),
        (None, int, "The result must be a whole number, not NoneType."),
        ({"path": "a"}, Thumbnail, "The result is no Thumbnail: TypeError"),
        ({"path": "a", "old": 1}, Thumbnail, "The result has the field 'old', which Thumbnail has not."),
        ("ä", bytes, "The result is not base64"),
        ({"x": 1}, dict[int, int], "The result has the key 'x'; it must be a whole number."),
        ([[1], [1, 2]], np.ndarray, "The result is no "),
        ([0.2], NDArray[np.uint8], "The result is no ndarray: uint8 does not hold what it was given"),
        (2.7, np.int64, "The result is no int64: int64 does not hold what it was given"),
    ],
)
def test_a_result_that_does_not_fit_the_annotation_any_more_is_told_with_the_value(
    app: QmlApp, stored: JsonValue, hint: object, problem: str
) -> None:
    function = app.job("work")(function_returning(hint))
    handle = function.enqueue()
    finish(app, Success(result=stored, duration=timedelta(0)))

    asks: list[Callable[[], object]] = [
        lambda: handle.result,
        lambda: handle.wait(0),
        lambda: app.wait_all([handle]),
        lambda: asyncio.run(handle.await_result()),
    ]
    for ask in asks:
        with pytest.raises(ResultMismatch) as told:
            ask()
        assert problem in str(told.value)
        assert (told.value.job_id, told.value.value) == (handle.id, stored)
    assert app.handle(handle.id).wait(0) == stored


@pytest.mark.parametrize("keeps_result", [True, False], ids=["a result", "no result"])
def test_the_result_of_another_functions_job_is_not_given_as_ones_own(
    app: QmlApp, keeps_result: bool
) -> None:
    mail = app.job("mail")(function_returning(int))
    resize = app.job("resize", result=keeps_result)(function_returning(int))
    sent = mail.using(unique_key="user-5").enqueue()
    kept = resize.using(unique_key="user-5").enqueue()
    by_name = app.enqueue("resize", unique_key="user-5")
    by_name_too = asyncio.run(app.aenqueue("resize", unique_key="user-5"))
    [of_many] = app.enqueue_many([app.make_job("resize", unique_key="user-5")])
    [of_many_too] = asyncio.run(app.aenqueue_many([resize.using(unique_key="user-5").job()]))
    not_yet = kept.result
    finish(app, Success(result=7, duration=timedelta(0)))

    asks: list[Callable[[], object]] = [
        lambda: kept.result,
        lambda: kept.wait(0),
        lambda: resize.handle(sent.id).wait(0),
        lambda: app.wait_all([kept]),
        lambda: asyncio.run(kept.await_result()),
        lambda: asyncio.run(app.await_all([kept])),
        lambda: by_name.result,
        lambda: by_name_too.wait(0),
        lambda: of_many.result,
        lambda: app.wait_all([of_many_too]),
    ]
    for ask in asks:
        with pytest.raises(ResultMismatch, match=r"is one of 'mail', and .* comes from 'resize'") as told:
            ask()
        assert (told.value.job_id, told.value.value) == (sent.id, 7)
    assert (kept.is_new, kept.id, not_yet) == (False, sent.id, None)
    assert sent.wait(0) == app.handle(sent.id).wait(0) == mail.handle(sent.id).result == 7


def test_handles_of_the_function_rebuild_and_handles_by_name_do_not(app: QmlApp) -> None:
    @app.job()
    def today() -> date: ...  # type: ignore[empty-body]

    one, two = today.enqueue_many([today.job(), today.job()])
    plain = app.enqueue("today")
    by_using = today.using(priority=-1).enqueue()
    for _ in range(4):
        finish(app, Success(result="2025-03-01", duration=timedelta(0)))

    day = date(2025, 3, 1)
    assert app.wait_all([one, two, by_using, today.handle(plain.id)]) == [day] * 4
    assert (one.result, plain.result, app.handle(one.id).wait(0)) == (day, "2025-03-01", "2025-03-01")


def test_jobs_of_another_function_are_not_enqueued_as_ones_own(app: QmlApp) -> None:
    @app.job()
    def one() -> None: ...

    @app.job()
    def other() -> None: ...

    with pytest.raises(InvalidJob, match="is one of 'other', not of 'one'"):
        one.enqueue_many([one.job(), other.job()])
    assert sum(app.storage.job_counts().values()) == 0


def test_a_function_may_keep_no_result(app: QmlApp) -> None:
    @app.job(result=False)
    def secret() -> bytes:
        return b"password"

    handle = secret.enqueue()
    outcome = run(secret.worker, claim_of(method="secret"))
    assert isinstance(outcome, Success)
    assert (outcome.result, outcome.not_stored, outcome.encoded) == (None, None, "null")

    finish(app, outcome)
    assert (handle.wait(0), handle.result) == (None, None)
    assert secret() == b"password"


def test_whether_the_result_is_kept_is_true_or_false(app: QmlApp) -> None:
    with pytest.raises(ConfigurationError, match="result is 'no'; it must be True or False"):
        app.job(result="no")  # type: ignore[call-overload]  # what is tested


def test_beside_bytes_what_is_under_any_is_stored_as_it_is_without_them() -> None:
    value = Picture(b"abc", {"taken": date(2025, 3, 1)})

    assert there_and_back(value, Picture) == Picture(b"abc", {"taken": "2025-03-01"})


def test_bytes_are_stored_by_the_annotation_and_told_when_there_is_none(app: QmlApp) -> None:
    @app.job()
    def compress() -> bytes:
        return b"\0\xff"

    @app.job()
    def untyped():  # type: ignore[no-untyped-def]
        return b"\0\xff"

    first, second = compress.enqueue(), untyped.enqueue()
    finish(app, run(compress.worker, claim_of(method="compress")))
    finish(app, run(untyped.worker, claim_of(method="untyped")))

    assert app.handle(first.id).result == "AP8="
    assert first.wait(0) == b"\0\xff"
    with pytest.raises(ResultNotStored, match="annotate the function with what it returns"):
        second.wait(0)
