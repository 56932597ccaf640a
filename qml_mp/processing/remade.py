"""Client and worker: whether a dataclass comes back as it is, although its own code runs once more."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from types import CodeType, WrapperDescriptorType
from typing import Any

from qml_mp.core.payload import JsonValue
from qml_mp.processing.scalars import Codec, Mistakable, named

_is_looking: ContextVar[bool] = ContextVar("qml_mp_is_looking_whether_remade", default=False)
"""What is within a value is looked at with the value: at each level anew, that would take its time."""
_writes_made_fields: ContextVar[bool] = ContextVar("qml_mp_writes_made_fields", default=False)


def writing_made_fields() -> AbstractContextManager[None]:
    """Within it the fields that dataclasses make themselves are written, too, as they may have changed."""
    return _set(_writes_made_fields)


def are_made_fields_written() -> bool:
    """Whether the code runs within `writing_made_fields()`."""
    return _writes_made_fields.get()


def refusing_remade(kind: type, codec: Codec) -> Codec:
    """The codec of the class, which raises `Mistakable` for a value that, made anew of what is written of it,
    would be written otherwise, and `InvalidJob` where none can be made."""
    own = own_code(kind)
    if own is None:
        return codec

    def encode(value: Any, where: str) -> JsonValue:
        if _is_looking.get():
            return codec.encode(value, where)
        with _set(_is_looking):
            written = codec.encode(value, where)
            changed = _changed_field(codec, written, where)
        if changed is not None:
            codec.encode(value, where)  # now what is within looks for itself, and names its own place
            raise Mistakable(
                f"{where[:300]} would come back with another {changed!r}: when the job begins, or its result "
                f"is read, {own} of {named(kind)} runs again, and must leave what it made as it is."
            )
        return written

    return Codec(encode, codec.decode)


def own_code(kind: Any) -> str | None:
    """The name of the code by which a dataclass may make something else of its fields; None: it has only what
    `dataclass` has made, which keeps them."""
    if not kind.__dataclass_params__.init or not _is_made_by_dataclass(kind.__init__):
        return "__init__"
    if hasattr(kind, "__post_init__"):
        return "__post_init__"
    if isinstance(kind.__setattr__, WrapperDescriptorType) or _is_made_by_dataclass(kind.__setattr__):
        return None  # that of every object, or of a frozen dataclass
    return "__setattr__"


def _is_made_by_dataclass(method: object) -> bool:
    code = getattr(method, "__code__", None)
    return isinstance(code, CodeType) and code.co_qualname.startswith("__create_fn__.")


@contextmanager
def _set(state: ContextVar[bool]) -> Iterator[None]:
    token = state.set(True)
    try:
        yield
    finally:
        state.reset(token)


def _changed_field(codec: Codec, written: JsonValue, where: str) -> str | None:
    """The first that differs; None also for what is no JSON, which is refused where it is stored."""
    try:
        stored = _as_stored(written)
        again = _as_stored(codec.encode(codec.decode(_as_stored(written), where), where))
    except _NoJson:
        return None
    return next((name for name, value in stored.items() if value != again[name]), None)


class _NoJson(Exception):
    pass


def _as_stored(written: JsonValue) -> Any:
    """A copy of its own, which the user's code may change."""
    try:
        return json.loads(json.dumps(written, allow_nan=False))
    except (TypeError, ValueError):
        raise _NoJson from None
