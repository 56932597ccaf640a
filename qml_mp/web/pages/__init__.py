"""Web process: the screens. Each is a module here; the docstring of `qml_mp.web` says how one is made."""

from __future__ import annotations

from importlib import import_module

from starlette.routing import Route

_SCREENS = (
    ("overview", "Overview"),
    ("jobs", "Jobs"),
    ("jobs_change", None),
    ("job", None),  # reached from the others
    ("errors", "Errors"),
    ("queues", "Queues"),
    ("history", "History"),
    ("recurring", "Recurring"),
    ("servers", "Servers"),
    ("audit", "Audit"),
    ("system", "System"),
)
"""Modules, each with the title of its first route in the navigation."""

NAVIGATION = tuple((name, title) for name, title in _SCREENS if title is not None)
"""The name of a screen's first route, and its title."""


def page_routes() -> list[Route]:
    """Those of all screens."""
    return [route for name, _ in _SCREENS for route in import_module(f"{__name__}.{name}").ROUTES]
