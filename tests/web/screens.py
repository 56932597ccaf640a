"""Tests: which screens there are."""

from __future__ import annotations

from qml_mp.web.pages import NAVIGATION, page_routes

_PATHS = {route.name: route.path for route in page_routes()}
SCREENS = tuple(_PATHS[name] for name, _ in NAVIGATION)
"""The paths of those in the navigation, in its order."""
