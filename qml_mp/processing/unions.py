"""Client and worker: a value that is of one of several types, as JSON and back.

The JSON does not say of which member of the union it is. Where no member reads what a later one writes, as
with int, str and lists, a value is of the first that it fits. Of others it is seen when it is written whether
it would come back as it is: what would not is refused.
"""

from __future__ import annotations

import dataclasses
import enum
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from itertools import combinations
from pathlib import PurePath
from typing import Any, Final

from qml_mp.core.payload import JsonValue
from qml_mp.errors import InvalidJob
from qml_mp.processing.annotations import holds_later_typed_dict
from qml_mp.processing.choices import kinds_stored
from qml_mp.processing.numbers import is_numpy, is_numpy_array
from qml_mp.processing.plain import in_json
from qml_mp.processing.scalars import (
    ANYTHING,
    SCALARS,
    Codec,
    Mistakable,
    UnusableAnnotation,
    mismatch,
    named,
)

_Kinds = frozenset[type]
"""Of JSON, as Python reads it."""
_ALL: Final[_Kinds] = frozenset({type(None), bool, int, float, str, list, dict})
_WRITTEN: Final = {bool: bool, int: int, float: float, timedelta: float}
"""By scalars that are not written as text."""
_GENERAL: Final = (ANYTHING, SCALARS[str])
_READ_TOO: Final[Mapping[Any, set[type]]] = {int: {bool}, float: {int}, timedelta: {int}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One type of a union, not None."""

    hint: Any
    codec: Codec | None
    """None: what is of this type cannot travel."""
    written: _Kinds
    """What it writes."""
    read: _Kinds
    """What it reads."""
    fields: frozenset[str] | None
    """Those that a dataclass takes; None for anything else."""
    made: frozenset[str]
    """Those that it makes itself, and that may be written as well."""

    @classmethod
    def of(cls, hint: Any, codec: Codec | None) -> Member:
        """With the codec of the annotation, which has no `Annotated` and no `NewType` around it."""
        kind = typing.get_origin(hint) or hint
        written = _written(kind, codec, typing.get_args(hint))
        is_record = dataclasses.is_dataclass(kind)
        fields = dataclasses.fields(kind) if is_record else ()
        return cls(
            hint=hint,
            codec=codec,
            written=written,
            read=_read(kind, codec, written),
            fields=frozenset(each.name for each in fields if each.init) if is_record else None,
            made=frozenset(each.name for each in fields if not each.init),
        )


def are_apart(members: Iterable[Member]) -> bool:
    """Whether no member reads what a later one writes."""
    return all(earlier.read.isdisjoint(later.written) for earlier, later in combinations(members, 2))


_Found = tuple[Codec | None, Any]
"""Who reads a part of the JSON, and as what."""


class Union:
    """A union as a codec. With `has_none`, None is one of its members, and null stands for it alone."""

    def __init__(
        self, members: Sequence[Member], *, has_none: bool, codec_of: Callable[[Any, str], Codec]
    ) -> None:
        self._members = sorted(members, key=lambda member: holds_later_typed_dict(member.hint))
        self._has_none = has_none
        self._codec_of = codec_of
        self._name = " or ".join([*(named(each.hint) for each in members), *(["None"] if has_none else [])])
        self.are_apart = are_apart(self._members)
        null_of_a_value = any(type(None) in each.written and each.codec is not ANYTHING for each in members)
        self.is_mistakable = not self.are_apart or (has_none and null_of_a_value)
        """Whether what it writes of a value may be read as another one, and is refused then."""
        self.codec: Final = Codec(self._encode_first if self.are_apart else self._encode, self._decode)

    def _encode_first(self, value: Any, where: str) -> JsonValue:
        if value is None and self._has_none:
            return None
        problem: InvalidJob | None = None
        for member in self._members:
            try:
                stored = self._codec(member, where).encode(value, where)
            except InvalidJob as error:
                problem = _more_telling(problem, error)
                continue
            if stored is None and self._has_none:  # an enum has a member that is null
                raise _mistakable(value, None, where)
            return stored
        raise self._refusal(problem, value, where)

    def _encode(self, value: Any, where: str) -> JsonValue:
        """By the first member by which it comes back as it is. A value that is of none of the types is
        converted by the first that takes it, as a tuple to a list; but not where a later one has such."""
        if value is None and self._has_none:
            return None
        problem: InvalidJob | None = None
        taken: list[tuple[Codec, JsonValue, JsonValue, Codec | None, Any]] = []
        for member in self._members:
            try:
                codec = self._codec(member, where)
                written = codec.encode(value, where)
                stored: JsonValue = in_json(written)  # what is under Any is written as the very object
                reader, back = self._read(stored, where)
            except Mistakable:  # also where another one, as Any, would write the very same
                raise
            except InvalidJob as error:
                problem = _more_telling(problem, error)
                continue
            if _is_kept(value, back):
                return written
            taken.append((codec, written, stored, reader, back))
        if not taken:
            raise self._refusal(problem, value, where)
        codec, written, stored, reader, back = taken[0]
        with suppress(InvalidJob):
            is_taken_so = reader is codec or _is_kept(codec.decode(stored, where), back)
            kept_by = (each for each in taken[1:] if _is_kept(value, each[0].decode(each[1], where)))
            if is_taken_so and all(_is_kept(each[0].decode(each[2], where), back) for each in kept_by):
                return written
        raise _mistakable(value, back, where)

    def _decode(self, value: Any, where: str) -> Any:
        return self._read(value, where)[1]

    def _read(self, stored: Any, where: str) -> _Found:
        """Who reads this JSON, and as what. Once: where the members are trees, each reads what is within, and
        to read it anew for each, at each level, would never end."""
        if self.are_apart or not isinstance(stored, list | dict):
            return self._read_now(stored, where)
        with _one_reading() as parts:
            place = self, id(stored)
            if place not in parts:
                try:
                    parts[place] = stored, self._read_now(stored, where)
                except InvalidJob as problem:
                    parts[place] = stored, problem
            found = parts[place][1]
        if isinstance(found, InvalidJob):
            raise found
        return found

    def _read_now(self, stored: Any, where: str) -> _Found:
        """Of those that write such, else of all, the first that reads it.

        A later one goes before it when that one would write the very same and the first would not: a date
        before a datetime, the dataclass that has just these fields before one that has more. Those that take
        any text do not: what is written by hand ("2025-03-01T12:00Z") is often not just as it would be here.
        """
        if stored is None and self._has_none:
            return None, None
        problem: InvalidJob | None = None
        first: tuple[Codec, Any] | None = None
        for member in self._in_order_for(stored):
            if first is not None and member.codec in _GENERAL:
                continue
            try:
                codec = self._codec(member, where)
                found = codec, codec.decode(stored, where)
                if self.are_apart or _would_write(*found, stored):
                    return found
            except InvalidJob as error:
                problem = _more_telling(problem, error)
            else:
                first = first or found
        if first is None:
            raise self._refusal(problem, stored, where)
        return first

    def _in_order_for(self, stored: Any) -> Sequence[Member]:
        if self.are_apart:
            return self._members
        members = sorted(self._members, key=lambda member: type(stored) not in member.written)
        if type(stored) is not dict:
            return members
        keys = frozenset(stored)
        # Seen before any is read: with trees of dataclasses, to read twice at each level would never end.
        first = next(
            (place for place, member in enumerate(members) if member.fields is not None), len(members)
        )
        return members[:first] + sorted(
            members[first:], key=lambda member: keys - member.made != member.fields
        )

    def _codec(self, member: Member, where: str) -> Codec:
        return member.codec or self._codec_of(member.hint, where)  # which raises, naming the place

    def _refusal(self, problem: InvalidJob | None, value: Any, where: str) -> InvalidJob:
        is_optional = self._has_none and len(self._members) == 1
        if problem is not None and (is_optional or isinstance(problem, _TELLING)):
            return problem  # says more than "none of them"
        return mismatch(value, self._name, where)


_parts_read: ContextVar[dict[tuple[Union, int], tuple[Any, _Found | InvalidJob]] | None] = ContextVar(
    "qml_mp_parts_read", default=None
)
"""While a value is read, its lists and objects that unions have read so far, by their ids. They are kept with
what came of them, so that no other object is given the id."""


@contextmanager
def _one_reading() -> Iterator[dict[tuple[Union, int], tuple[Any, _Found | InvalidJob]]]:
    """With the outermost value, which what is within is a part of."""
    parts = _parts_read.get()
    if parts is not None:
        yield parts
        return
    token = _parts_read.set(parts := {})
    try:
        yield parts
    finally:
        _parts_read.reset(token)


_TELLING: Final = (UnusableAnnotation, Mistakable)


def _more_telling(earlier: InvalidJob | None, later: InvalidJob) -> InvalidJob:
    return earlier if isinstance(earlier, _TELLING) else later


def _mistakable(value: object, back: object, where: str) -> Mistakable:
    was, becomes = (named(type(each)) for each in (value, back))
    return Mistakable(
        f"{where[:300]} is of type {was}, and would come back as {becomes if was != becomes else 'another'}, "
        "since the JSON of both is alike. Annotate it with one of the types, or with dataclasses that "
        'a field tells apart (kind: Literal["a"]).'
    )


def _would_write(codec: Codec, back: Any, stored: Any) -> bool:
    """Whether the value that was read would be written just so; lists and mappings are not compared."""
    if isinstance(stored, list | dict):
        return True
    with suppress(InvalidJob):  # of a union inside
        again = codec.encode(back, "")
        return type(again) is type(stored) and bool(again == stored)
    return False


def _is_kept(value: Any, back: Any) -> bool:
    """Whether what came back is of the same types, also in lists, mappings, sets and the fields that are
    written of a dataclass. Then it is equal too, save where one type holds several kinds of number."""
    if type(value) is not type(back):
        if any(isinstance(each, PurePath) for each in (value, back)):
            # Who takes a path and text opens the same file by either.
            return all(_is_path_or_text(each) for each in (value, back)) and str(value) == str(back)
        # Text or a number as the enum that equals it.
        return type(value) in (str, int, float) and isinstance(back, type(value)) and bool(back == value)
    if isinstance(value, Mapping):
        return all(map(_is_kept, value.keys(), back.keys())) and all(
            map(_is_kept, value.values(), back.values())
        )
    if isinstance(value, list | tuple):
        return all(map(_is_kept, value, back))
    if isinstance(value, AbstractSet):
        found = {item: item for item in back}
        return all(item in found and _is_kept(item, found[item]) for item in value)
    if dataclasses.is_dataclass(value):
        names = [each.name for each in dataclasses.fields(value) if each.init]
        return all(_is_kept(getattr(value, name), getattr(back, name)) for name in names)
    return not is_numpy_array(type(value)) or bool(value.dtype == back.dtype)


def _is_path_or_text(value: Any) -> bool:
    return isinstance(value, PurePath | str) and not isinstance(value, enum.Enum)


def _written(kind: Any, codec: Codec | None, args: tuple[Any, ...]) -> _Kinds:
    if codec is None:
        return frozenset()
    if kind in SCALARS or kind is bytes:
        return frozenset({_WRITTEN.get(kind, str)})
    if kind is typing.Literal:
        return kinds_stored(args)
    if codec is ANYTHING or not isinstance(kind, type):
        return _ALL
    if issubclass(kind, enum.Enum):
        return kinds_stored(kind)
    if is_numpy(kind):
        return frozenset({list}) if is_numpy_array(kind) else _ALL
    return frozenset({dict if dataclasses.is_dataclass(kind) or issubclass(kind, Mapping) else list})


def _read(kind: Any, codec: Codec | None, written: _Kinds) -> _Kinds:
    if codec is ANYTHING or is_numpy(kind):
        return _ALL
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return written | {bool, int, float}  # 1.0 is the member whose value is 1
    return written | _READ_TOO.get(kind, set())
