"""Tests: members of enums that a `Literal` allows travel as their values."""

from __future__ import annotations

import json
from enum import Enum, IntEnum, StrEnum
from typing import Any, Literal

import pytest

from qml_mp import QmlApp, ResultNotStored
from qml_mp.errors import InvalidJob
from qml_mp.processing.codec import from_json, is_mistakable, to_json


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1


class Place(Enum):
    START = (0, 0)
    EDGE = ((0, 0), (0, 9))
    CORNERS = [0, 9]  # noqa: RUF012 - a value that has no hash
    NOWHERE = None


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (Colour.RED, Literal[Colour.RED]),
        (Colour.BLUE, Literal[Colour.RED, Colour.BLUE, 1]),
        (Level.LOW, Literal[Level.LOW, True, "red"]),
        (True, Literal[Level.LOW, True, "red"]),
        (Place.START, Literal[Place.START]),
        (Place.EDGE, Literal[Place.START, Place.EDGE]),
        (Place.CORNERS, Literal[Place.CORNERS]),
        ([Colour.RED], list[Literal[Colour.RED]]),
        (Level.LOW, Literal[Level.LOW] | str | None),
        (2, Literal[Level.LOW] | int),
    ],
    ids=str,
)
def test_a_value_comes_back_equal_and_of_its_type(value: object, hint: Any) -> None:
    back = from_json(json.loads(json.dumps(to_json(value, hint, where="it"))), hint, where="it")

    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (Colour.BLUE, Literal[Colour.RED]),
        ("red", Literal[Colour.RED]),
        (Colour.RED, Literal["red"]),
        (1, Literal[Level.LOW, 1]),  # which would come back as the member
        (Place.NOWHERE, Literal[Place.NOWHERE] | None),
    ],
    ids=str,
)
def test_what_is_not_allowed_or_would_come_back_as_another_is_refused(value: object, hint: Any) -> None:
    with pytest.raises(InvalidJob):
        to_json(value, hint, where="it")


def test_arguments_and_results_are_members(app: QmlApp) -> None:
    @app.job()
    def same(colour: Literal[Colour.RED]) -> Literal[Colour.RED]:
        assert colour is Colour.RED
        return colour

    with app.inline():
        assert same.enqueue(Colour.RED).wait() is Colour.RED
        assert app.enqueue("same", {"colour": "red"}).wait() == "red"


def test_a_result_that_would_come_back_as_another_is_not_stored(app: QmlApp) -> None:
    @app.job()
    def one() -> Literal[Level.LOW, 1]:
        return 1

    assert is_mistakable(list[Literal[Level.LOW, 1]])
    with app.inline(), pytest.raises(ResultNotStored, match="alike"):
        one.enqueue().wait()
