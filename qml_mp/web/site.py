"""Web process: what every screen has: the storage, its reads, its URLs, and the page that it becomes."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote, unquote, urlencode

from jinja2 import Environment
from markupsafe import Markup
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from qml_mp import __version__
from qml_mp.core.payload import JsonValue
from qml_mp.errors import ConfigurationError
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Retention
from qml_mp.views.servers import ServerView, view_servers
from qml_mp.views.storage_name import storage_name
from qml_mp.web.addresses import cookie_path, is_secure, own_path, prefix_of
from qml_mp.web.changes import Changes
from qml_mp.web.reads import Reads
from qml_mp.web.rendering import masked
from qml_mp.web.safety import FORM, TOKEN_FIELD, TOKEN_HEADER
from qml_mp.web.sign_in import Auth, SignInTurns

_MOST_SAID_CHARS = 600
_BLOCK = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One for each dashboard; `site_of(request)` finds it."""

    storage: Storage
    retention: Retention
    """How long a job is kept that is ended here."""
    read_only: bool
    hide: Sequence[str]
    auth: Auth
    sign_in_turns: SignInTurns
    changes: Changes
    reads: Reads
    templates: Environment
    routes: Mapping[str, Route]
    """By name."""
    navigation: Sequence[tuple[str, str]]
    """The name of a route and the title of its screen, in order."""
    static_version: str

    @property
    def storage_name(self) -> str:
        """What people see of where the jobs are."""
        return storage_name(self.storage.display_url)

    @property
    def may_change(self) -> bool:
        """Whether anything that changes something is shown."""
        return not self.read_only

    def page(self, request: Request, template: str, *, status: int = 200, **context: Any) -> Response:
        """The screen; the block alone that is named like the element, when htmx asks for an element of it."""
        found = self.templates.get_template(template)
        common = self._common(request)
        parts = self.templates.get_template("_parts.html").make_module(common)
        values = found.new_context({**common, "parts": parts, **context})
        part = request.headers.get("hx-target", "")
        if "hx-request" in request.headers and _BLOCK.fullmatch(part) and part in found.blocks:
            return HTMLResponse("".join(found.blocks[part](values)), status)
        said = request.cookies.get(self.auth.cookie("said"))
        response = HTMLResponse("".join(found.root_render_func(values)), status)
        if said is not None:
            response.delete_cookie(self.auth.cookie("said"), path=cookie_path(request))
        return response

    def done(self, request: Request, sentence: str, *, to: str) -> Response:
        """After a change: back to a page, made from new reads, which says the sentence."""
        self.reads.forget()
        self.changes.tell_at(float("-inf"))
        response = RedirectResponse(to, 303)
        response.set_cookie(
            self.auth.cookie("said"),
            quote(sentence[:_MOST_SAID_CHARS]),
            max_age=30,
            path=cookie_path(request),
            httponly=True,
            samesite="strict",
            secure=is_secure(request),
        )
        return response

    def url(self, request: Request, name: str, **parameters: Any) -> str:
        """The path of a route under whatever the page is mounted; what is no part of the path is its query.

        None, and an empty text, are left out.
        """
        route = self.routes[name]
        in_path = {key: quote(str(parameters[key]), safe="") for key in route.param_convertors}
        query = [
            (key, str(value))
            for key, values in parameters.items()
            if key not in in_path
            for value in (values if isinstance(values, list | tuple) else [values])
            if value not in (None, "")
        ]
        path = prefix_of(request) + route.path_format.format(**in_path)
        return f"{path}?{urlencode(query)}" if query else path

    def form(self, request: Request) -> Form:
        """The fields of a POST."""
        return Form(request.scope[FORM])

    def masked(self, value: JsonValue) -> JsonValue:
        """The value with a mask in place of what is hidden."""
        return masked(value, self.hide)

    def static(self, request: Request, name: str) -> str:
        """The URL of a file in `static/`."""
        return f"{prefix_of(request)}/static/{name}?v={self.static_version}"

    def servers(self) -> Sequence[ServerView]:
        """As they were some seconds ago; all screens but that of the servers share them."""
        return self.reads.get("servers", lambda: view_servers(self.storage), statements=6, every_s=4.0)

    def _common(self, request: Request) -> dict[str, Any]:
        here = own_path(request) or "/"
        query = request.scope["query_string"].decode("latin-1")
        address = prefix_of(request) + quote(here) + (f"?{query}" if query else "")
        return {
            "site": self,
            "address": address,
            "page_token": request.scope.get("qml_mp.token", ""),
            "token_field": TOKEN_FIELD,
            "headers": json.dumps({TOKEN_HEADER: request.scope.get("qml_mp.token", "")}),
            "said": unquote(request.cookies.get(self.auth.cookie("said"), "")),
            "version": __version__,
            "is_signed_in": self.auth.has_form and self.auth.who(request) is not None,
            "url": lambda name, **parameters: self.url(request, name, **parameters),
            "static": lambda name: self.static(request, name),
            "live": lambda name: _live(name, address),
            "now": self._now,
            "elapsed": lambda since: max(timedelta(), self._now() - since),
        }

    def _now(self) -> datetime:
        """By the storage's clock, which is read rarely and goes on meanwhile."""
        now, read_at = self.reads.get("now", self._read_clock, every_s=10.0)
        return now + timedelta(seconds=time.monotonic() - read_at)

    def _read_clock(self) -> tuple[datetime, float]:
        """What it shows, and the monotonic instant of that."""
        read_at = time.monotonic()  # before the answer: else what has just begun would begin in the future
        return self.storage.now(), read_at


@dataclass(frozen=True, slots=True)
class Form:
    """The fields of a POST."""

    data: FormData

    def text(self, name: str, *, default: str | None = None) -> str:
        """One field. Raises `ConfigurationError` when it is missing, unless there is a default."""
        value = self.data.get(name, default)
        if not isinstance(value, str):
            raise ConfigurationError(f"The form has no field {name!r}. Load the page again, and try again.")
        return value

    def texts(self, name: str) -> list[str]:
        """All fields of the name, such as ticked boxes."""
        return [value for value in self.data.getlist(name) if isinstance(value, str)]


def site_of(request: Request) -> Site:
    """The site that the request is for."""
    site: Site = request.app.state.site
    return site


def _live(name: str, address: str) -> Markup:
    """Attributes of an element whose block of this name is fetched again when something has changed."""
    return Markup('id="{}" data-live hx-get="{}" hx-trigger="sse:changed" hx-swap="innerHTML"').format(
        name, address
    )
