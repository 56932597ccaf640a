"""Tests: an annotation that has a name, made by `type X = …` (Python 3.12), is what the name stands for."""

from __future__ import annotations

import json
import typing
from datetime import date
from typing import Any

import pytest
import typing_extensions

from qml_mp.processing.codec import from_json, is_mistakable, to_json

TypeAliasType: Any = getattr(typing, "TypeAliasType", typing_extensions.TypeAliasType)
_new: Any = typing.TypeVar
T, K = _new("T"), _new("K")
DAY = date(2025, 3, 1)
Day: Any = TypeAliasType("Day", date | None)
Days: Any = TypeAliasType("Days", list[T], type_params=(T,))  # type: ignore[valid-type]
Calendar: Any = TypeAliasType(
    "Calendar",
    dict[K, list[T]],  # type: ignore[valid-type]
    type_params=(T, K),
)


@pytest.mark.parametrize(
    ("value", "hint", "stored"),
    [
        (DAY, Day, "2025-03-01"),
        (None, Day, None),
        ([DAY], Days[date], ["2025-03-01"]),
        ([DAY, None], Days[Day], ["2025-03-01", None]),
        ({1: [DAY]}, Calendar[date, int], {"1": ["2025-03-01"]}),
        ([1, "a"], Days, [1, "a"]),
        ({"days": [DAY]}, dict[str, Days[date]] | None, {"days": ["2025-03-01"]}),
    ],
    ids=str,
)
def test_a_value_goes_by_what_the_name_stands_for(value: object, hint: object, stored: object) -> None:
    written = to_json(value, hint, where="it")

    assert written == stored
    assert from_json(json.loads(json.dumps(written)), hint, where="it") == value


def test_of_a_named_union_it_is_seen_that_one_member_may_be_taken_for_another() -> None:
    assert is_mistakable(TypeAliasType("Text", date | str))
    assert is_mistakable(Days[TypeAliasType("Text", bytes | str)])
    assert not is_mistakable(Days[Day])
