"""Every process: whether it imports its app just now, as a worker does, or the child that learns
what an app gives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_imports: ContextVar[bool] = ContextVar("qml_mp_imports_app", default=False)


@contextmanager
def importing() -> Iterator[None]:
    """Within the block the app is imported, by this thread. What runs jobs is there already: a module of the
    user's that starts another server is told so."""
    token = _imports.set(True)
    try:
        yield
    finally:
        _imports.reset(token)


def is_importing() -> bool:
    """Whether the code that asks is run by such an import."""
    return _imports.get()
