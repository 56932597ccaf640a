"""Web process: the Servers screen: servers with their workers, and what can be asked of them."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from qml_mp.core.acts import ActKind, ActRequest
from qml_mp.errors import ConfigurationError, shown
from qml_mp.views.changing import Changing
from qml_mp.views.servers import ServerView, view_servers
from qml_mp.web.audit import asker_of, note, reason_of
from qml_mp.web.pages.audit import ActLine
from qml_mp.web.site import Form, Site, site_of

_MOST_ASKED = 10
_ASKED = {
    ActKind.STACKS: "tell its stacks",
    ActKind.REPLACE: "replace a worker after its job",
    ActKind.RELOAD: "take over new code",
    ActKind.PAUSE: "claim nothing more",
    ActKind.RESUME: "claim again",
    ActKind.DRAIN: "claim nothing more, and end what it has claimed",
    ActKind.STOP: "stop",
}


def servers(request: Request) -> Response:
    """All that are registered, oldest first, with what was asked of servers lately."""
    site = site_of(request)
    return site.page(
        request,
        "servers.html",
        read=lambda: _servers(site),
        asked=lambda: _lately_asked(site),
    )


def ask(request: Request) -> Response:
    """Ask one run of a server; stacks are told on a page of their own."""
    site = site_of(request)
    asked = _request_of(site.form(request), site, request)
    act = site.storage.ask(asked)
    if asked.kind is ActKind.STACKS:
        return site.done(request, "The server was asked.", to=site.url(request, "act", id=act.id))
    name = asked.server_id.partition("#")[0]
    sentence = f"{name} was asked to {_ASKED[asked.kind]}. What becomes of it stands below."
    return site.done(request, sentence, to=site.url(request, "servers"))


def cancel(request: Request) -> Response:
    """Cancel the job that a worker runs."""
    site = site_of(request)
    job_id = site.form(request).text("job_id")
    reason = reason_of(request, "cancelled")
    told = Changing.one_by_one(site.storage, retention=site.retention, reason=reason).cancel(job_id)
    note(request, "cancel job", job_id, said=told)
    return site.done(request, f"Job {job_id} {told}.", to=site.url(request, "servers"))


def _servers(site: Site) -> Sequence[ServerView]:
    """As they are now; other screens have `Site.servers`, which is read less often."""
    return site.reads.get("servers now", lambda: view_servers(site.storage), statements=6, every_s=2.0)


def _lately_asked(site: Site) -> list[ActLine]:
    page = site.reads.get(
        "lately asked", lambda: site.storage.list_acts(asked_of_servers=True, limit=_MOST_ASKED)
    )
    return [ActLine(act=act) for act in page.acts]


def _request_of(form: Form, site: Site, request: Request) -> ActRequest:
    """What the form asks. Raises `ConfigurationError` for what this server cannot be asked."""
    kind, server_id = form.text("act"), form.text("server_id")
    if kind not in set(ActKind):
        raise ConfigurationError(f"No server can be asked to {shown(kind)}.")
    info = next((each for each in site.storage.list_servers() if each.id == server_id), None)
    if info is not None and not info.can(kind):
        raise ConfigurationError(
            f"The server {info.name} runs an older version of qml-mp, which cannot be asked to {kind}."
        )
    return ActRequest(
        kind=ActKind(kind),
        server_id=server_id,
        by=asker_of(request),
        worker_id=form.text("worker_id", default="") or None,
        then_stop=bool(form.text("then_stop", default="")),
        at_once=bool(form.text("at_once", default="")),
    )


ROUTES = (
    Route("/servers", servers, name="servers"),
    Route("/servers/ask", ask, methods=["POST"], name="ask_server"),
    Route("/servers/cancel", cancel, methods=["POST"], name="cancel_running"),
)
