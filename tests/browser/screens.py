"""Tests: which screens there are."""

from __future__ import annotations

from qml_mp.web.pages import NAVIGATION, page_routes

_PATHS = {route.name: route.path for route in page_routes()}
SCREENS = tuple(_PATHS[name] for name, _ in NAVIGATION)
"""The paths of those in the navigation, in its order."""


def has_screen(name: str) -> bool:
    """Whether there is a route of that name."""
    return name in _PATHS
