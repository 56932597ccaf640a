"""Tests of values made fast: they are what the constructor makes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, field, replace
from typing import Any

import pytest

from qml_mp.frozen import maker


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    number: int
    text: str = "text"
    items: list[int] = field(default_factory=list, compare=False)
    _note: str | None = field(default=None, init=False, repr=False)


made = maker(Value)


def test_a_value_that_was_made_is_what_the_constructor_makes() -> None:
    value = made(number=1, items=[2])

    assert type(value) is Value
    assert value == Value(number=1, items=[2])
    assert repr(value) == repr(Value(number=1, items=[2]))
    assert hash(value) == hash(Value(number=1))
    assert made(number=1).items is not made(number=1).items


def test_it_cannot_be_changed() -> None:
    value = made(number=1)

    with pytest.raises(FrozenInstanceError):
        value.number = 2  # type: ignore[misc]
    assert value.number == 1


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it)), replace]
)
def test_its_copies_are_values_like_it(copied: Callable[[Value], Any]) -> None:
    value = copied(made(number=1))

    assert (type(value), value) == (Value, Value(number=1))


def test_what_the_constructor_refuses_is_refused() -> None:
    with pytest.raises(TypeError):
        made()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        made(number=1, other=2)  # type: ignore[call-arg]
