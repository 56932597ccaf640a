"""Tests: the fields of a generic class are of the types that it is given."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, Generic, NamedTuple, TypedDict, TypeVar, TypeVarTuple

import pytest

from qml_mp import QmlApp
from qml_mp.errors import InvalidJob
from qml_mp.processing.codec import from_json, is_mistakable, to_json

T = TypeVar("T")
K = TypeVar("K")
Ts = TypeVarTuple("Ts")
DAY = date(2025, 3, 1)


@dataclass(frozen=True)
class Box(Generic[T]):
    item: T


@dataclass(frozen=True)
class Page(Generic[T]):
    items: list[T]
    rest: Page[T] | None = None


@dataclass(frozen=True)
class Pair(Box[T], Generic[K, T]):
    key: Annotated[K | None, "may be missing"]


@dataclass(frozen=True)
class Dates(Box[date]):
    note: str


@dataclass(frozen=True)
class Diary(Dates):
    pages: int = 0


@dataclass(frozen=True, slots=True)
class Slotted(Generic[T]):
    items: tuple[T, ...]


@dataclass(frozen=True)
class Deeper(Generic[T]):
    item: T
    next: Deeper[list[T]] | None = None


@dataclass(frozen=True)
class Row(Generic[*Ts]):
    cells: tuple[*Ts]


class Named(NamedTuple, Generic[T]):
    item: T


class Options(TypedDict, Generic[T]):
    item: T


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (Box(DAY), Box[date]),
        (Box(Box(DAY)), Box[Box[date]]),
        (Box([1]), Box),
        (Page([Box(DAY)], Page([])), Page[Box[date]]),
        (Pair(DAY, 1), Pair[int, date]),
        (Pair(1, DAY), Pair[date, int]),
        (Dates(DAY, "a"), Dates),
        (Diary(DAY, "a", 1), Diary),
        (Slotted((DAY,)), Slotted[date]),
        (Deeper(DAY, Deeper([DAY])), Deeper[date]),
        (Named(DAY), Named[date]),
        ({"item": 1}, Options[int]),
        (Box("a"), Box[int] | Box[str]),
    ],
    ids=str,
)
def test_a_value_comes_back_equal(value: object, hint: Any) -> None:
    written = json.loads(json.dumps(to_json(value, hint, where="it")))

    assert from_json(written, hint, where="it") == value


@pytest.mark.parametrize(
    ("value", "hint"),
    [(Box("2025-03-01"), Box[date]), (Named(1), Named[str]), (Row((1,)), Row[int])],
    ids=str,
)
def test_a_field_of_another_type_than_the_class_is_given_is_refused(value: object, hint: Any) -> None:
    with pytest.raises(InvalidJob, match="it"):
        to_json(value, hint, where="it")


def test_of_a_field_it_is_seen_that_one_type_may_be_taken_for_another() -> None:
    assert is_mistakable(Box[date | str])
    assert is_mistakable(Deeper[int])  # the types in it have no end
    assert not is_mistakable(Page[date])


def test_a_result_is_of_the_types_that_its_class_is_given(app: QmlApp) -> None:
    @app.job()
    def page() -> Page[Box[date]]:
        return Page([Box(DAY)])

    @app.job()
    def row() -> Row[date]:
        return Row((DAY,))

    with app.inline():
        assert page.enqueue().wait() == Page([Box(DAY)])
        stored: object = row.enqueue().wait()
    assert stored == {"cells": ["2025-03-01"]}  # and not half of it rebuilt
