"""Client and worker: Python values to JSON by their annotation, and back again.

What `to_json` accepts under an annotation, `from_json` gives back equal and of the annotated type:
what could not be given back is refused when it is encoded. How a union does this says `unions`.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import (
    Callable,
    Collection,
    Iterable,
    Mapping,
    MutableMapping,
    MutableSequence,
    MutableSet,
    Sequence,
)
from collections.abc import Set as AbstractSet
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final

from qml_mp.core.payload import JsonValue
from qml_mp.errors import InvalidJob, shown
from qml_mp.processing.annotations import given_and_lost, hints_of, is_typed_dict, parts_of, unwrapped
from qml_mp.processing.choices import enumeration, is_mistakable_choice, is_mistakable_key, keys_of, literal
from qml_mp.processing.numbers import is_numpy_array, numpy_codec
from qml_mp.processing.plain import in_json
from qml_mp.processing.remade import are_made_fields_written, own_code, refusing_remade
from qml_mp.processing.scalars import ANYTHING, BYTES, SCALARS, Codec, UnusableAnnotation, mismatch, named
from qml_mp.processing.unions import Member, Union

_ARRAYS = (list, tuple, set, frozenset)
_ABSTRACT_ARRAYS = (Iterable, Collection, Sequence, MutableSequence, AbstractSet, MutableSet)
_MAPPINGS = (dict, Mapping, MutableMapping)
_UNIONS = (typing.Union, types.UnionType)
_MOST_UNIONS: Final = 500
_MOST_SEEN: Final = 200


def to_json(value: object, hint: object, *, where: str) -> JsonValue:
    """The value as JSON, checked against its annotation. `where` names it in errors (`InvalidJob`).

    Understood: JSON types, dataclasses, named tuples, enums, datetime, date, time, timedelta, UUID,
    Path, Decimal, bytes (as base64), numpy's arrays and numbers, Literal, unions, and lists, tuples, sets and
    mappings of all these, these with keys of text, whole numbers or enums.
    Without an annotation (or under Any) a value must be JSON already, which storing it checks. A dataclass
    with a `__post_init__`, `__init__` or `__setattr__` of its own is made anew and written again, to see that
    this leaves it as it is.
    """
    return encoded(codec_of(hint, where), value, where)


def encoded(codec: Codec, value: object, where: str) -> JsonValue:
    """`to_json` by the codec of the annotation."""
    try:
        return codec.encode(value, where)
    except RecursionError:
        raise InvalidJob(f"{where[:300]} is nested too deep; flatten it or pass a reference.") from None


def from_json(value: JsonValue, hint: object, *, where: str) -> Any:
    """The value as its annotation wants it; `InvalidJob` naming `where` when it does not fit."""
    return decoded(codec_of(hint, where), value, where)


def decoded(codec: Codec, value: JsonValue, where: str) -> Any:
    """`from_json` by the codec of the annotation."""
    return codec.decode(value, where)


def codec_of(hint: Any, where: str) -> Codec:
    """The codec of an annotation; `UnusableAnnotation` naming `where` when nothing of the kind can travel."""
    hint = unwrapped(hint)
    kind = typing.get_origin(hint) or hint
    if kind in SCALARS:
        return SCALARS[kind]
    if hint is Any or hint is object or isinstance(hint, typing.TypeVar) or is_typed_dict(kind):
        return ANYTHING
    if hint is None or hint is type(None):
        return _NOTHING
    if kind in _UNIONS:
        return _union(typing.get_args(hint)).codec
    if kind is typing.Literal:
        return literal(typing.get_args(hint))
    if kind is bytes:
        return BYTES
    if isinstance(kind, type):
        codec = _codec_of_class(hint, kind, typing.get_args(hint)) or numpy_codec(kind, typing.get_args(hint))
        if codec is not None:
            return codec
    raise UnusableAnnotation(
        f"{where[:300]} is annotated with {named(hint)}, which cannot be rebuilt from JSON; "
        "use JSON types, a dataclass, or a reference to the data."
    )


def is_mistakable(hint: Any) -> bool:
    """Whether `Mistakable` may be raised for a value of this annotation: where a union is in it of which one
    member may read what another one writes (as None does the null of an enum), an array, whose shape lists
    may not say, an enum or a `Literal` of which two are written alike, an enum as keys of which two are one
    text, or a dataclass that code of its own may change again."""
    seen: list[Any] = []
    rest = [hint]
    while rest:
        hint = unwrapped(rest.pop())
        kind, args = typing.get_origin(hint) or hint, typing.get_args(hint)
        if kind is typing.Literal or (isinstance(kind, type) and issubclass(kind, enum.Enum)):
            if is_mistakable_choice(codec_of(hint, ""), args or hint):
                return True
            continue
        if hint in seen:
            continue
        if is_numpy_array(kind) or (kind in _MAPPINGS and args and is_mistakable_key(unwrapped(args[0]))):
            return True
        if len(seen) > _MOST_SEEN or (kind in _UNIONS and _union(args).is_mistakable):
            return True  # what has no end, as a class that has one of `Self[list[T]]`, is looked at by value
        seen.append(hint)
        rest += args
        if dataclasses.is_dataclass(kind) or hasattr(kind, "_fields"):
            if dataclasses.is_dataclass(kind) and own_code(kind):
                return True
            with suppress(UnusableAnnotation):
                rest += hints_of(hint, "").values()
    return False


def _codec_of_class(hint: Any, kind: type, args: tuple[Any, ...]) -> Codec | None:
    if issubclass(kind, enum.Enum):
        return enumeration(kind)
    if dataclasses.is_dataclass(kind):
        return _record(hint, kind)
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return _named_tuple(hint, kind)
    if kind is tuple and args and args[1:] != (...,):
        return _fixed_tuple(args)
    if kind in _MAPPINGS:
        return _mapping(args)
    if kind in _ARRAYS or kind in _ABSTRACT_ARRAYS:
        return _array(kind, args[0] if args else Any)
    return None


def _union(hints: tuple[Any, ...]) -> Union:
    try:
        return _kept_union(hints, parts_of(hints))
    except TypeError:  # what is in an `Annotated` has no hash
        return _new_union(hints)


def _new_union(hints: tuple[Any, ...], _parts: tuple[Any, ...] = ()) -> Union:
    others = [unwrapped(hint) for hint in hints if hint is not type(None)]
    members = [Member.of(hint, _codec_or_none(hint)) for hint in others]
    return Union(members, has_none=len(others) < len(hints), codec_of=codec_of)


_kept_union = lru_cache(_MOST_UNIONS)(_new_union)
"""Each item of a list asks for it."""


def _codec_or_none(hint: Any) -> Codec | None:
    try:
        return codec_of(hint, "")
    except UnusableAnnotation:
        return None


def _record(hint: Any, kind: Any) -> Codec:
    """Fields that the class does not take (`init=False`) are not written of an argument, as it makes them. Of
    a result they are, and they are put back. What is given for an `InitVar` is not kept: it must have a
    default."""

    def encode(value: Any, where: str) -> JsonValue:
        if type(value) is not kind:  # a subclass would come back as its parent
            raise mismatch(value, named(kind), where)
        hints = _fields(hint, kind, where)
        written: dict[str, JsonValue] = {}
        for name, is_taken in ((each.name, each.init) for each in dataclasses.fields(kind)):
            if is_taken:
                written[name] = to_json(getattr(value, name), hints[name], where=f"{where}.{name}")
            elif are_made_fields_written() and hasattr(value, name):
                with suppress(UnusableAnnotation):  # then it is left as the class makes it
                    written[name] = to_json(getattr(value, name), hints[name], where=f"{where}.{name}")
        return written

    def decode(value: Any, where: str) -> Any:
        if not isinstance(value, dict):
            raise mismatch(value, f"an object with the fields of {named(kind)}", where)
        is_taken = {field.name: field.init for field in dataclasses.fields(kind)}
        for unknown in value.keys() - is_taken.keys():
            raise InvalidJob(f"{where[:300]} has the field {shown(unknown)}, which {named(kind)} has not.")
        hints = _fields(hint, kind, where)
        taken, others = {}, {}
        for name, item in value.items():
            place = f"{where}.{name}"
            if is_taken[name]:
                taken[name] = from_json(item, hints[name], where=place)
                continue
            with suppress(UnusableAnnotation):
                others[name] = from_json(item, hints[name], where=place)
        try:
            made = kind(**taken)
            for name, item in others.items():
                object.__setattr__(made, name, item)  # of a frozen one, too
            return made
        except Exception as error:  # a missing field, or whatever its own checks raise
            raise InvalidJob(f"{where[:300]} is no {named(kind)}: {type(error).__name__}: {error}") from error

    return refusing_remade(kind, Codec(encode, decode))


def _fields(hint: Any, kind: Any, where: str) -> dict[str, Any]:
    """The annotations of a dataclass."""
    hints = hints_of(hint, where)
    if lost := given_and_lost(kind, hints):
        raise UnusableAnnotation(
            f"{where[:300]} is annotated with {named(kind)}, which cannot be made anew: what is given "
            f"for its InitVar {lost!r} is not kept. Give that a default, or make it a field."
        )
    return hints


def _named_tuple(hint: Any, kind: Any) -> Codec:
    def parts(where: str) -> Codec:
        return _fixed_tuple(tuple(hints_of(hint, where).get(name, Any) for name in kind._fields))

    def encode(value: Any, where: str) -> JsonValue:
        if not isinstance(value, kind):
            raise mismatch(value, named(kind), where)
        return parts(where).encode(value, where)

    return Codec(encode, lambda value, where: kind._make(parts(where).decode(value, where)))


def _fixed_tuple(hints: tuple[Any, ...]) -> Codec:
    def visit(direction: Callable[..., Any], value: Sequence[Any], where: str) -> list[Any]:
        if len(value) != len(hints):
            raise InvalidJob(f"{where[:300]} has {len(value)} items; it must have {len(hints)}.")
        return [direction(value[i], hint, where=f"{where}[{i}]") for i, hint in enumerate(hints)]

    def encode(value: Any, where: str) -> JsonValue:
        if not isinstance(value, list | tuple):
            raise mismatch(value, f"a tuple of {len(hints)} items", where)
        return visit(to_json, value, where)

    def decode(value: Any, where: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise mismatch(value, f"a list of {len(hints)} items", where)
        return tuple(visit(from_json, value, where))

    return Codec(encode, decode)


def _array(kind: type, part: Any) -> Codec:
    def encode(value: Any, where: str) -> JsonValue:
        if not isinstance(value, _ARRAYS):
            raise mismatch(value, "a list, tuple or set", where)
        items = [to_json(item, part, where=f"{where}[{index}]") for index, item in enumerate(value)]
        is_set = issubclass(kind, AbstractSet)
        if is_set and not all(isinstance(item, str | int | float) for item in items):  # tuples become lists
            decode(in_json(items), where)
        return sorted(items, key=repr) if is_set else items  # the same of equal sets

    def decode(value: Any, where: str) -> Any:
        if not isinstance(value, list):
            raise mismatch(value, "a list", where)
        items = [from_json(item, part, where=f"{where}[{index}]") for index, item in enumerate(value)]
        return _collected(kind, items, where)

    return Codec(encode, decode)


def _collected(kind: type, items: list[Any], where: str) -> Any:
    if kind is tuple:
        return tuple(items)
    if not issubclass(kind, AbstractSet):
        return items
    try:
        return frozenset(items) if kind is frozenset else set(items)
    except TypeError as error:
        raise InvalidJob(
            f"{where[:300]} cannot be a set: {error}. In JSON tuples are lists; annotate what is in it, as "
            "set[tuple[int, str]]."
        ) from None


def _mapping(args: tuple[Any, ...]) -> Codec:
    key_hint, part = args if len(args) == 2 else (str, Any)
    keys = keys_of(unwrapped(key_hint))

    def visit(
        direction: Callable[..., Any], key_of: Callable[[Any, str], Any], value: Any, where: str
    ) -> dict[Any, Any]:
        if not isinstance(value, Mapping):
            raise mismatch(value, "a mapping", where)
        return {
            key_of(key, where): direction(item, part, where=f"{where}[{str(key)[:50]!r}]")
            for key, item in value.items()
        }

    def encode(value: Any, where: str) -> JsonValue:
        written = visit(to_json, keys.encode, value, where)
        if len(written) < len(value):
            raise InvalidJob(f"{where[:300]} has two keys that are one text as JSON; pass one of them.")
        return written

    return Codec(encode, lambda value, where: visit(from_json, keys.decode, value, where))


def _only_none(value: Any, where: str) -> None:
    if value is not None:
        raise mismatch(value, "null", where)


_NOTHING = Codec(_only_none, _only_none)
