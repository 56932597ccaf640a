"""Client and worker: whether a dataclass comes back as it is, although its `__post_init__` runs once more."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from qml_mp.core.payload import JsonValue
from qml_mp.processing.scalars import Mistakable, named

_is_looking: ContextVar[bool] = ContextVar("qml_mp_is_looking_whether_remade", default=False)
"""What is within the value that is looked at has been looked at: at each level anew, it would never end."""


def check_remade(
    kind: type,
    encode: Callable[[Any, str], JsonValue],
    decode: Callable[[Any, str], Any],
    written: dict[str, JsonValue],
    where: str,
) -> None:
    """Raise `Mistakable` for what was written of a value of the class, if the value that is made of it is
    written otherwise; `InvalidJob` if none can be made."""
    if not hasattr(kind, "__post_init__") or _is_looking.get():
        return
    token = _is_looking.set(True)
    try:
        stored = _as_stored(written)
        again = _as_stored(encode(decode(_as_stored(written), where), where))
    except _NoJson:
        return  # which is refused where it is stored
    finally:
        _is_looking.reset(token)
    for name, value in stored.items():
        if value != again[name]:
            raise Mistakable(
                f"{where[:300]} would come back with another {name!r}: when the job begins, or its result is "
                f"read, __post_init__ of {named(kind)} runs again. It must leave what it has made as it is."
            )


class _NoJson(Exception):
    pass


def _as_stored(written: Any) -> Any:
    """A copy of its own, which the user's code may change."""
    try:
        return json.loads(json.dumps(written, allow_nan=False))
    except (TypeError, ValueError):
        raise _NoJson from None
