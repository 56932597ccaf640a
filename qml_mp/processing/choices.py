"""Client and worker: values that are one of a few, and the keys of mappings, as JSON."""

from __future__ import annotations

import enum
from itertools import combinations
from typing import Any

from qml_mp.errors import InvalidJob, shown
from qml_mp.processing.scalars import Codec, Mistakable, UnusableAnnotation, mismatch, named


def literal(allowed: tuple[Any, ...]) -> Codec:
    """One of these very values; a member of an enum travels as its value."""

    def encode(value: Any, where: str) -> Any:
        for entry in allowed:
            if _is_same(value, entry):
                stored = _stored(entry)
                back = decode(stored, where)
                if type(back) is not type(entry):
                    raise Mistakable(
                        f"{where[:300]} is {shown(entry)}, and would come back as {shown(back)}, since the "
                        "JSON of both is alike; allow one of them."
                    )
                return stored
        raise refusal(where)

    def decode(value: Any, where: str) -> Any:
        value = tuple(value) if isinstance(value, list) else value  # of an enum
        for entry in allowed:
            if _is_same(value, _stored(entry)):
                return entry
        raise refusal(where)

    def refusal(where: str) -> InvalidJob:
        return InvalidJob(f"{where[:300]} must be one of {', '.join(map(shown, allowed))}.")

    return Codec(encode, decode)


def is_mistakable_literal(allowed: tuple[Any, ...]) -> bool:
    """Whether two of the values are written alike, one of them a member of an enum."""
    return any(_is_same(_stored(one), _stored(other)) for one, other in combinations(allowed, 2))


def _stored(entry: Any) -> Any:
    return entry.value if isinstance(entry, enum.Enum) else entry


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

    return Codec(
        lambda value, where: member(value, where).value,  # of a member, or of the value of one
        lambda value, where: member(tuple(value) if isinstance(value, list) else value, where),
    )


def keys_of(hint: Any) -> Codec:
    """Text, and what is written as text without a doubt: whole numbers and enums."""
    if hint is int:
        return Codec(_int_to_key, _int_of_key)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        by_text = {_enum_key(member): member for member in hint}
        member = enumeration(hint)

        def decode(key: Any, where: str) -> Any:
            return by_text[key] if key in by_text else member.decode(key, where)

        return Codec(lambda key, where: _enum_key(member.decode(key, where)), decode)

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


def _enum_key(member: enum.Enum) -> str:
    return member.value if isinstance(member.value, str) else str(member.value)
