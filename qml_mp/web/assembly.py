"""Web process: the application, put together from its screens and what stands before them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp

from qml_mp.app import QmlApp
from qml_mp.settings import ServerConfig
from qml_mp.sources import load_config
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Retention
from qml_mp.web import own_routes, refusals, static_files
from qml_mp.web.changes import Changes
from qml_mp.web.pages import NAVIGATION, page_routes
from qml_mp.web.reads import Reads
from qml_mp.web.rendering import make_environment
from qml_mp.web.safety import Guard, Safety
from qml_mp.web.sign_in import Auth, SignInTurns
from qml_mp.web.site import Site


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembled:
    """What serves the page."""

    application: ASGIApp
    site: Site


def assemble(
    app: QmlApp | Storage, *, auth: Auth, read_only: bool, hide: Sequence[str], hosts: Sequence[str] | None
) -> Assembled:
    """The page over the storage of an app, or over a storage alone."""
    storage = app.storage if isinstance(app, QmlApp) else app
    config = app.config if isinstance(app, QmlApp) else None
    changes = Changes(storage)
    routes: list[Route] = [*page_routes(), *own_routes.ROUTES, *static_files.ROUTES]
    site = Site(
        storage=storage,
        retention=Retention.of(_config_of(config)),
        read_only=read_only,
        hide=tuple(hide),
        auth=auth,
        sign_in_turns=SignInTurns(),
        changes=changes,
        reads=Reads(changes),
        templates=make_environment(),
        routes={route.name: route for route in routes},
        navigation=NAVIGATION,
        static_version=static_files.static_version(),
    )
    inner = Starlette(routes=routes, exception_handlers=refusals.HANDLERS)
    inner.state.site = site
    safety = Safety(auth=auth, read_only=read_only, hosts=hosts)
    return Assembled(application=Guard(inner, safety=safety, refusal=refusals.Page(site)), site=site)


def _config_of(code: ServerConfig | None) -> ServerConfig:
    return load_config(flags={}, code=code)
