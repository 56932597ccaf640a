"""Tests: a dataclass that its own code would change once more is refused when it is written."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest

from qml_mp import InvalidJob, QmlApp, ResultNotStored
from qml_mp.processing.codec import from_json, to_json
from qml_mp.processing.remade import own_code

CHANGED = "would come back with another 'number': .* __post_init__ of Order runs again"
made: list[str] = []


@dataclass
class Order:
    number: str
    lines: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.number = f"ORD-{self.number}"


@dataclass(frozen=True)
class Email:
    address: str
    domain: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "address", self.address.strip().lower())
        object.__setattr__(self, "domain", self.address.partition("@")[2])


@dataclass
class Sorted:
    items: Any

    def __post_init__(self) -> None:
        self.items.reverse()


@dataclass(frozen=True)
class Tags:
    names: frozenset[int]

    def __post_init__(self) -> None:
        pass


@dataclass
class Nested:
    name: str
    inner: Nested | None = None

    def __post_init__(self) -> None:
        made.append(self.name)


@dataclass(init=False)
class Price:
    cents: int

    def __init__(self, cents: float) -> None:
        self.cents = round(cents * 100)


@dataclass
class Shout:
    text: str

    def __setattr__(self, name: str, value: str) -> None:
        object.__setattr__(self, name, f"{value}!")


@dataclass(init=False)
class Folder:
    path: str

    def __init__(self, path: str) -> None:
        self.path = path.rstrip("/")


@dataclass
class Word:
    length: int


class WordOf(Word):
    def __init__(self, text: str) -> None:
        super().__init__(len(text))


class Plain(Word):
    pass


@dataclass(init=False)
class Longer(Word):
    more: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Still:
    length: int


@dataclass
class Failure(Exception):
    text: str


@dataclass
class Basket:
    orders: dict[str, list[Order]]


@dataclass
class Checked(Basket):
    def __post_init__(self) -> None:
        pass


@pytest.mark.parametrize(
    ("value", "hint", "place"),
    [
        (Order("7"), Order, r"it"),
        (Order("7"), Order | None, r"it"),
        (Order("7"), Order | Email, r"it"),
        ([Order("7")], list[Order], r"it\[0\]"),
        (Basket({"a": [Order("7")]}), Basket, r"it\.orders\['a'\]\[0\]"),
        (Checked({"a": [Order("7")]}), Checked, r"it\.orders\['a'\]\[0\]"),
    ],
)
def test_what_its_own_post_init_would_change_again_is_refused(
    value: object, hint: object, place: str
) -> None:
    with pytest.raises(InvalidJob, match=f"^{place} {CHANGED}"):
        to_json(value, hint, where="it")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (Price(1.5), r"would come back with another 'cents': .* __init__ of Price runs again"),
        (Shout("a"), r"would come back with another 'text': .* __setattr__ of Shout runs again"),
        (WordOf("abc"), r"is no WordOf: TypeError: .* unexpected keyword argument 'length'"),
        (Longer(3), r"is no Longer: TypeError: .* unexpected keyword argument 'more'"),
    ],
)
def test_what_its_own_init_or_setattr_would_make_otherwise_is_refused(value: object, told: str) -> None:
    with pytest.raises(InvalidJob, match=rf"^it\[0\] {told}"):
        to_json([value], list[type(value)], where="it")  # type: ignore[misc]


def test_a_result_that_its_own_init_would_make_otherwise_is_not_stored(app: QmlApp) -> None:
    @app.job()
    def ask() -> Price:
        return Price(1.5)

    with app.inline(), pytest.raises(ResultNotStored, match="another 'cents'"):
        ask.enqueue().wait()


def test_one_whose_own_init_leaves_what_it_has_made_comes_back() -> None:
    value = Folder("/tmp/")

    assert from_json(to_json(value, Folder, where="it"), Folder, where="it") == value


@pytest.mark.parametrize("kind", [Word, Plain, Still, Failure, Basket])
def test_one_without_code_of_its_own_is_not_made_anew_to_see_it(kind: type) -> None:
    assert own_code(kind) is None


def test_an_argument_and_a_result_of_it_are_refused(app: QmlApp) -> None:
    @app.job()
    def send(order: Order) -> None: ...

    @app.job()
    def load() -> Order | None:
        return Order("7")

    with pytest.raises(InvalidJob, match=CHANGED):
        send.enqueue(Order("7"))
    with app.inline(), pytest.raises(ResultNotStored, match=CHANGED):
        load.enqueue().wait()


def test_one_that_leaves_what_it_has_made_comes_back() -> None:
    value = Email(" Kim@Example.org")

    assert from_json(to_json([value], list[Email], where="it"), list[Email], where="it") == [value]


def test_json_that_was_written_by_hand_is_normalised_as_ever(app: QmlApp) -> None:
    @app.job()
    def send(order: Order, to: Email) -> str:
        return f"{order.number} to {to.address}"

    with app.inline():
        handle = app.enqueue("send", {"order": {"number": "7"}, "to": {"address": " KIM@a.org"}})

    assert handle.result == "ORD-7 to kim@a.org"


def test_one_that_changes_a_list_in_place_changes_none_of_the_callers() -> None:
    value = Sorted([1, 2])

    with pytest.raises(InvalidJob, match="another 'items'"):
        to_json(value, Sorted, where="it")

    assert value.items == [2, 1]


def test_the_order_of_a_set_is_no_change() -> None:
    value = Tags(frozenset([45, 53]))
    again = Tags(frozenset(value.names))

    assert to_json(value, Tags, where="it") == to_json(again, Tags, where="it")
    assert from_json(to_json(value, Tags, where="it"), Tags, where="it") == value


def test_what_it_raises_when_it_is_made_again_is_told() -> None:
    @dataclass
    class Once:
        number: int

        def __post_init__(self) -> None:
            if self.number < 0:
                raise ValueError("below zero")
            self.number = -1

    with pytest.raises(InvalidJob, match=r"^it is no .*Once: ValueError: below zero"):
        to_json(Once(3), Once, where="it")


@pytest.mark.parametrize("number", [math.nan, {1}])
def test_what_is_no_json_is_refused_for_that(app: QmlApp, number: object) -> None:
    @app.job()
    def turn(it: Tagged) -> None: ...

    with pytest.raises(InvalidJob, match=r"arguments at .* is (nan|of type set)"):
        turn.enqueue(Tagged(number))


@dataclass
class Tagged:
    tag: Any

    def __post_init__(self) -> None:
        pass


def test_nested_ones_are_made_once_each() -> None:
    value = Nested("0")
    for depth in range(1, 30):
        value = Nested(str(depth), value)
    made.clear()

    to_json(value, Nested, where="it")

    assert sorted(made, key=int) == [str(depth) for depth in range(30)]
