"""Client: an app by its name."""

from __future__ import annotations

from qml_mp import host
from qml_mp.app import QmlApp
from qml_mp.child.import_errors import import_error_text
from qml_mp.child.source import import_named
from qml_mp.core.failure_kinds import place_of_error
from qml_mp.errors import AppImportError


def load_app(spec: str) -> QmlApp:
    """Import the app named "module:attribute", with the current directory importable.

    Raises `AppImportError` when the module cannot be imported or the attribute is no `QmlApp`.
    """
    try:
        found = import_named(spec)
    except AppImportError:
        raise
    except Exception as error:  # importing runs the user's module
        said = error.msg if isinstance(error, SyntaxError) else error  # whose text names half of the place
        place = place_of_error(import_error_text(error))
        told = f"{type(error).__name__}: {said}" + (f" ({place})" if place else "")
        where = host.shown_directory()
        raise AppImportError(f"The app {spec!r} cannot be imported from {where}: {told}") from error
    if not isinstance(found, QmlApp):
        raise AppImportError(f"{spec!r} is a {type(found).__name__}, not a QmlApp.")
    return found
