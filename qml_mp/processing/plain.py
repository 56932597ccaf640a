"""Client and worker: values as JSON by what they are, without an annotation, as what a job returned."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Final

from qml_mp.core.payload import MAX_DEPTH, EncodedJson, JsonValue
from qml_mp.errors import InvalidJob
from qml_mp.processing.numbers import in_python
from qml_mp.processing.scalars import SCALARS

NOTHING: Final = EncodedJson(None, "null")
_AS_THEY_ARE: Final = (str, int, float, bool)
_WITHOUT_ORDER: Final = (set.__iter__, frozenset.__iter__)


def plain_result(value: object) -> EncodedJson:
    """The value as JSON that can be stored: dataclasses as objects, dates and their kin as text.

    Raises `InvalidJob` when it cannot be stored, and whatever the value's own code raises.
    """
    if value is None:  # what most jobs return
        return NOTHING
    return EncodedJson.of(_plain(value, 0), what="The result")


def in_json(value: Any) -> Any:
    """The value as it is once it was stored: tuples are lists, and dates are text. What cannot be stored is
    left as it is, to be refused where it is."""
    try:
        return _plain(value, 0)
    except Exception:  # InvalidJob, or whatever its own code raises
        return value


def _plain(value: Any, depth: int) -> JsonValue:
    if depth > MAX_DEPTH:
        raise InvalidJob(f"The result is nested deeper than {MAX_DEPTH} levels")
    if value is None or type(value) in _AS_THEY_ARE:
        plain: JsonValue = value
        return plain
    if type(value) is list:
        return [_plain(item, depth + 1) for item in value]
    if type(value) is dict:
        return _object(value, depth)
    if isinstance(value, enum.Enum):
        return _plain(value.value, depth)
    if isinstance(value, bool | int | float | str):
        return _builtin(value)
    for kind, codec in SCALARS.items():
        if isinstance(value, kind):
            return codec.encode(value, "The result")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: _plain(getattr(value, field.name), depth + 1) for field in fields}
    if isinstance(value, Mapping):
        return _object(value, depth)
    if isinstance(value, list | tuple | AbstractSet):
        items = [_plain(item, depth + 1) for item in value]
        return sorted(items, key=repr) if _has_no_order(value) else items
    return _plain(in_python(value), depth + 1)


def _has_no_order(value: object) -> bool:
    """Whether it is a set whose items come by their hashes, in each process in another order. `dict.items()`
    has an order that means something, and so have ordered sets, some of which are subclasses of `set`."""
    return isinstance(value, set | frozenset) and type(value).__iter__ in _WITHOUT_ORDER


def _object(value: Mapping[Any, Any], depth: int) -> JsonValue:
    plain = {_key(key): _plain(item, depth + 1) for key, item in value.items()}
    if len(plain) < len(value):
        raise InvalidJob("The result has two keys that are one text as JSON, as 1 and '1' are")
    return plain


def _builtin(value: bool | int | float | str) -> JsonValue:
    """The value without whatever a subclass adds, so that storing it runs no code of the subclass."""
    match value:
        case bool():
            return value
        case int():
            return int.__index__(value)
        case float():
            return float.__pos__(value)
        case str():
            return str.__str__(value)


def _key(key: object) -> str:
    if isinstance(key, enum.Enum):
        key = key.value
    if isinstance(key, str):
        return str.__str__(key)
    if isinstance(key, int) and not isinstance(key, bool):
        return int.__repr__(key)
    raise InvalidJob(f"The result has a key of type {type(key).__name__}; keys in JSON are text")
