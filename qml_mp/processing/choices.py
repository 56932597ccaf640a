"""Client and worker: values that are one of a few, and the keys of mappings, as JSON."""

from __future__ import annotations

import enum
import typing
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final, TypeVar

from qml_mp.core.payload import JsonValue
from qml_mp.errors import InvalidJob, shown
from qml_mp.processing.plain import in_json
from qml_mp.processing.scalars import Codec, Mistakable, UnusableAnnotation, mismatch, named

_T = TypeVar("_T")
_MOST_ENUMS: Final = 500


def literal(allowed: tuple[Any, ...]) -> Codec:
    """One of these very values; a member of an enum travels as its value."""

    def encode(value: Any, where: str) -> Any:
        for entry in allowed:
            if _is_same(value, entry):
                stored = stored_of(entry)
                back = decode(stored, where)
                if not _is_same(back, entry):
                    raise Mistakable(
                        f"{where[:300]} is {shown(entry)}, and would come back as {shown(back)}, since the "
                        "JSON of both is alike; allow one of them."
                    )
                return stored
        raise refusal(where)

    def decode(value: Any, where: str) -> Any:
        found = in_json(value)
        for entry in _as_read(allowed):
            if _is_same(found, stored_of(entry)):
                return entry
        raise refusal(where)

    def refusal(where: str) -> InvalidJob:
        return InvalidJob(f"{where[:300]} must be one of {', '.join(map(shown, allowed))}.")

    return Codec(encode, decode)


def is_mistakable_choice(codec: Codec, entries: Iterable[Any]) -> bool:
    """Whether one of these members of an enum, or values of a `Literal`, is written as another one is."""
    return any(codec.decode(stored_of(entry), "") is not entry for entry in entries)


def stored_of(entry: Any) -> Any:
    """What is written of a member of an enum, or of another value of a `Literal`."""
    return in_json(entry.value) if isinstance(entry, enum.Enum) else entry


def kinds_stored(entries: Iterable[Any]) -> frozenset[type]:
    """The types of JSON, as Python reads it, that are written of these."""
    return frozenset(_kind_of(stored_of(each)) for each in entries)


def _kind_of(stored: Any) -> type:
    kinds = (type(None), bool, int, float, str, dict)
    return next((kind for kind in kinds if isinstance(stored, kind)), list)


def _as_read(entries: Iterable[_T]) -> list[_T]:
    """Where two are written alike, as a date and its text, it is read as the one that is JSON itself."""
    return sorted(entries, key=lambda entry: isinstance(entry, enum.Enum) and not _is_json(entry.value))


def _is_json(value: Any) -> bool:
    """With tuples, too, which are lists in JSON."""
    if isinstance(value, list | tuple):
        return all(map(_is_json, value))
    if isinstance(value, dict):
        return all(type(key) is str for key in value) and all(map(_is_json, value.values()))
    return value is None or isinstance(value, str | int | float)


def _is_same(value: Any, other: Any) -> bool:
    """By type too: True is not 1 here."""
    return type(value) is type(other) and bool(value == other)


def enumeration(kind: type[enum.Enum]) -> Codec:
    """The value of a member."""

    def member(value: Any, where: str) -> enum.Enum:
        try:
            return kind(value)
        except Exception:  # ValueError, or what making its text of the value raises
            values = ", ".join(shown(member.value) for member in list(kind)[:10])
            raise InvalidJob(f"{where[:300]} is none of the values of {named(kind)} ({values}).") from None

    def encode(value: Any, where: str) -> Any:
        found = member(value, where)  # of a member, or of its value
        stored = stored_of(found)
        if _told_by_json(kind) and (back := decode(stored, where)) is not found:
            raise Mistakable(
                f"{where[:300]} is {shown(found)}, and would come back as {shown(back)}, since the JSON of "
                "both is alike; change the value of one."
            )
        return stored

    def decode(value: Any, where: str) -> enum.Enum:
        for stored, each in _told_by_json(kind):
            if _is_same(stored, value):
                return each
        return member(tuple(value) if isinstance(value, list) else value, where)

    return Codec(encode, decode)


@lru_cache(_MOST_ENUMS)
def _told_by_json(kind: type[enum.Enum]) -> tuple[tuple[JsonValue, enum.Enum], ...]:
    """The members by what is written of them; none where that is the very value of each, which tells them."""
    both = tuple((stored_of(each), each) for each in _as_read(kind))
    return both if any(stored is not each.value for stored, each in both) else ()


def keys_of(hint: Any) -> Codec:
    """Text, all or some, and what is written as text without a doubt: whole numbers and enums."""
    if hint is int:
        return Codec(_int_to_key, _int_of_key)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _enum_keys(hint)
    texts = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
    if texts and all(type(each) is str for each in texts):
        return literal(texts)

    def check(key: Any, where: str) -> Any:
        if hint not in (str, Any):
            raise UnusableAnnotation(
                f"{where[:300]} is annotated with keys of {named(hint)}; keys in JSON are text."
            )
        if not isinstance(key, str):
            raise InvalidJob(f"{where[:300]} has keys that are not text; keys in JSON are.")
        return key

    return Codec(check, check)


def _int_to_key(key: Any, where: str) -> str:
    if isinstance(key, bool) or not isinstance(key, int):
        raise mismatch(key, "a mapping with whole numbers as keys", where)
    return int.__repr__(key)


def _int_of_key(key: Any, where: str) -> int:
    try:
        return int(key)
    except (TypeError, ValueError):
        raise InvalidJob(f"{where[:300]} has the key {shown(key)}; it must be a whole number.") from None


def is_mistakable_key(hint: Any) -> bool:
    """Whether two members of an enum are written alike as keys."""
    is_enum = isinstance(hint, type) and issubclass(hint, enum.Enum)
    return is_enum and len(set(map(_enum_key, hint))) < len(hint)


def _enum_keys(kind: type[enum.Enum]) -> Codec:
    by_text = {_enum_key(member): member for member in kind}
    members = enumeration(kind)

    def encode(key: Any, where: str) -> str:
        member = members.decode(key, where)
        text = _enum_key(member)
        if (other := by_text.get(text, member)) is not member:
            raise Mistakable(
                f"{where[:300]} has the key {shown(member)}, which would come back as {shown(other)}, since "
                "the text of both is alike; change the value of one."
            )
        return text

    def decode(key: Any, where: str) -> Any:
        if key in by_text:
            return by_text[key]
        if issubclass(kind, enum.Flag) and key.isdecimal():  # of several flags
            found = members.decode(int(key), where)
            if _enum_key(found) == key:  # Python before 3.11.4 drops those that there are not
                return found
        return members.decode(key, where)

    return Codec(encode, decode)


def _enum_key(member: enum.Enum) -> str:
    return member.value if isinstance(member.value, str) else str(member.value)
