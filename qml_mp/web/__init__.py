"""Web process, or the host of an ASGI application: the page that shows what is there, and changes it.

`dashboard(app)` is an ASGI application of its own; `qml-mp web` serves it. It needs the extra `web`.

How to add a screen
-------------------

A screen is a module in `web/pages/`, and a template in `web/templates/`. The module has `ROUTES`, of which
the first is the one that the navigation leads to, and stands in the list of `web/pages/__init__.py`:

    def queues(request: Request) -> Response:  # not async: it runs in a thread
        site = site_of(request)
        views = site.reads.get("queue views", lambda: view_queues(site.storage), statements=2)
        return site.page(request, "queues.html", queues=views)

    def pause(request: Request) -> Response:
        site = site_of(request)
        name = site.form(request).text("name")
        site.storage.set_paused(name, True)
        note(request, "pause queue", name)
        return site.done(request, f"The queue {name} is paused.", to=site.url(request, "queues"))

    ROUTES = (
        Route("/queues", queues, name="queues"),
        Route("/queues/pause", pause, methods=["POST"], name="pause_queue"),
    )

**Reads** go through `site.reads.get(key, read, statements=, every_s=)`. They are shared by all browsers, and
made again only after something was committed, at most once in `every_s`. The key names all that the answer
depends on.

**Live parts.** What is to change by itself stands in a block of its own, in an element marked by `live`:

    <section {{ live("queue_list") }}>{% block queue_list %} … {% endblock %}</section>

When something has changed the browser asks for the same URL again, and `site.page` renders that block alone.
A screen may have several. What is given to `site.page` as a function is called only if a block uses it
(`{{ queues() }}`). Open `<details>`, ticked boxes and the focus outlive the exchange if they have an `id`.

**URLs** are made by `url("queues", page=2)` in templates and by `site.url(request, …)`: they have the prefix
under which the page is mounted. Names that people choose (of queues, methods, servers) go into the query,
never into the path.

**Changes** are POST. `parts.button(url("pause_queue"), "Pause", name=queue.name)` is a form with one button
and hidden fields; `parts.post_form` one with whatever stands in its call block. They carry the proof that the
page itself sent them, without which `safety.py` refuses. Show them only where `site.may_change`. A `QmlError`
becomes a page with its sentence. `note(request, "pause queue", name)` of `web/audit.py` notes
the change, with who has made it and from where.

**Text from storage** is escaped and made printable by the templates themselves: never use `|safe`. Payloads
and results are shown through `site.masked(value)`. No inline script, style or event attribute: the policy of
the page forbids them.

**Parts** to use are in `_parts.html`: state, instant, ago, since, table, pager, button, post_form, empty,
json, figure; and the filters duration, size, number, utc, lines (a traceback), pretty (JSON), in_words,
key (for ids of elements).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from qml_mp.errors import ConfigurationError, shown
from qml_mp.setting_kinds import WEB_MODULES, Hosts

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection
    from starlette.types import ASGIApp

    from qml_mp.app import QmlApp
    from qml_mp.storage.store import Storage

HIDDEN = ("password", "token", "secret")
"""Keys whose values are not shown, unless others are named."""


def dashboard(
    app: QmlApp | Storage,
    *,
    auth: str | tuple[str, str] | Callable[[HTTPConnection], str | None] | None = None,
    read_only: bool = False,
    hide: Iterable[str] = HIDDEN,
    hosts: Sequence[str] | None = None,
) -> ASGIApp:
    """The page as an ASGI application, to be served or mounted: `host.mount("/jobs", dashboard(app))`.

    `auth` is a token (16 characters or more), a user and a password (12 or more), or a plain function that
    gives the name of who sends a request (None: nobody who may see the page), which is called for each
    request, in a thread, and may wait; without it everybody who reaches it may do everything. `read_only`
    shows nothing that changes anything, and refuses it. Values under keys that contain one of `hide`,
    whatever the case, are masked in payloads and results. `hosts` are the names under which it is reached
    besides this machine's own, without ports; None: any, if there is an `auth`.

    Raises `ConfigurationError` when the extra `web` is missing, or an argument is wrong.
    """
    check_extra("dashboard()")
    from qml_mp.web.assembly import assemble
    from qml_mp.web.sign_in import Auth

    _check_app(app)
    named = None if hosts is None else Hosts().check(hosts, "hosts")
    keys = _checked_keys(hide)
    return assemble(app, auth=Auth.of(auth), read_only=read_only, hide=keys, hosts=named).application


def check_extra(what: str) -> None:
    """Raises `ConfigurationError` unless what the page is made of is installed."""
    if any(find_spec(name) is None for name in WEB_MODULES):
        raise ConfigurationError(f"{what} needs the extra `web`: pip install 'qml-mp[web]'.")


def _check_app(app: object) -> None:
    from qml_mp.app import QmlApp
    from qml_mp.storage.store import Storage

    if not isinstance(app, QmlApp | Storage):  # a URL is not shown: it may have a password
        raise ConfigurationError(
            f"dashboard() got a value of type {type(app).__name__} to show; it takes a QmlApp, or the "
            "storage that open_storage(url) gives."
        )


def _checked_keys(hide: Iterable[str]) -> tuple[str, ...]:
    if isinstance(hide, Iterable) and not isinstance(hide, str):
        keys = tuple(hide)
        if all(isinstance(key, str) for key in keys):
            return keys
    raise ConfigurationError(f'hide is {shown(hide)}; it must be a list of texts, such as [*HIDDEN, "iban"].')
