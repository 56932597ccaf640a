"""Client: what goes into a pickle as functions do, by name, so that `multiprocessing` can send it."""

from __future__ import annotations

import operator
import sys
from collections.abc import Mapping
from typing import Any, SupportsIndex

from qml_mp.errors import ConfigurationError, shown
from qml_mp.processing.registry import is_notebook


def name_of(part: Any) -> str | None:
    """Its qualified name, where that leads in its module to this very object; None where it has to go by
    value, as what cloudpickle sends from a notebook or a script."""
    module, name = part.__module__, getattr(part, "__qualname__", None)
    if name is None or (_is_sent_by_value() and (module == "__main__" or is_notebook())):
        return None
    try:
        found = operator.attrgetter(name)(sys.modules.get(module))
    except AttributeError:  # within a function, or replaced
        return None
    return name if found is part else None


def method_name_of(function: object) -> str:
    """The function's own name, as that of its jobs. Raises `ConfigurationError` for what has none."""
    name = getattr(function, "__name__", None)
    if isinstance(name, str):
        return name
    raise ConfigurationError(
        f"{shown(function)} has no name of its own, as functions have that are written with `def`; pass the "
        'name of its jobs: app.job("name")(…).'
    )


class OnePerProcess:
    """A part of `QmlApp`: it is not copied, and with job functions not pickled, save by cloudpickle."""

    _functions: Mapping[str, object]

    def __copy__(self) -> OnePerProcess:
        return self

    def __deepcopy__(self, memo: object) -> OnePerProcess:
        return self

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        if self._functions and not _is_sent_by_value():
            raise TypeError(
                "An app with job functions cannot be pickled: import it where it is needed, or pass a job "
                "function, which goes by its name."
            )
        return super().__reduce_ex__(protocol)


def _is_sent_by_value() -> bool:
    """Whether cloudpickle may be at work: a pickle does not say who makes it."""
    return "cloudpickle" in sys.modules
