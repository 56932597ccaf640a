"""Client and worker: values that are one of a few, and the keys of mappings, as JSON."""

from __future__ import annotations

import enum
from typing import Any

from qml_mp.errors import InvalidJob, shown
from qml_mp.processing.scalars import Codec, UnusableAnnotation, mismatch, named


def literal(allowed: tuple[Any, ...]) -> Codec:
    """One of these very values."""

    def check(value: Any, where: str) -> Any:
        # Type and value: True is not 1 here.
        if not any(type(value) is type(entry) and value == entry for entry in allowed):
            raise InvalidJob(f"{where[:300]} must be one of {', '.join(map(shown, allowed))}.")
        return value

    return Codec(check, check)


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
