"""Tests: a dataclass that its own `__post_init__` would change once more is refused when it is written."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest

from qml_mp import InvalidJob, QmlApp, ResultNotStored
from qml_mp.processing.codec import from_json, to_json

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
