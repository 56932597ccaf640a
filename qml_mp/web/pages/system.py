"""Web process: the System screen: schema, size, versions, and of each server its loops and settings."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from qml_mp import __version__
from qml_mp.core.server_description import ServerDescription, ToldLoop, ToldSetting
from qml_mp.errors import SchemaMismatch
from qml_mp.storage.store import Storage
from qml_mp.storage.system import StorageSize
from qml_mp.views.servers import ServerView
from qml_mp.web.site import Site, site_of

_BY_DEFAULT = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaLine:
    """The schema of the storage, against what this process needs."""

    version: int
    fits: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLine:
    """A server with what it tells of itself."""

    view: ServerView
    told: ServerDescription

    @property
    def busy_loops(self) -> Sequence[ToldLoop]:
        """Those that have ticked."""
        return [each for each in self.told.loops if each.succeeded_at is not None or each.is_failing]

    @property
    def idle_loops(self) -> Sequence[ToldLoop]:
        return [each for each in self.told.loops if each.succeeded_at is None and not each.is_failing]

    @property
    def set_settings(self) -> Sequence[ToldSetting]:
        """Those that somebody has set."""
        return [each for each in self.told.settings if each.source != _BY_DEFAULT]

    @property
    def default_settings(self) -> Sequence[ToldSetting]:
        return [each for each in self.told.settings if each.source == _BY_DEFAULT]


def system(request: Request) -> Response:
    """The screen. Nothing on it can be changed."""
    site = site_of(request)
    return site.page(
        request,
        "system.html",
        schema=lambda: site.reads.get("schema", lambda: _schema(site.storage), statements=2, every_s=30.0),
        size=lambda: _size(site),
        servers=lambda: _servers(site),
        own_versions={"qml-mp": __version__, "Python": platform.python_version()},
    )


def _schema(storage: Storage) -> SchemaLine:
    try:
        storage.check_schema()
    except SchemaMismatch:
        return SchemaLine(version=storage.schema_version(), fits=False)
    return SchemaLine(version=storage.schema_version(), fits=True)


def _size(site: Site) -> StorageSize:
    return site.reads.get("size", site.storage.size, every_s=30.0)


def _servers(site: Site) -> list[ServerLine]:
    told = site.reads.get("descriptions", site.storage.server_descriptions, every_s=5.0)
    return [
        ServerLine(view=view, told=told.get(view.info.id, ServerDescription())) for view in site.servers()
    ]


ROUTES = (Route("/system", system, name="system"),)
