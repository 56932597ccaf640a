"""Web process: the Recurring screen: templates in words, when they fire next, what became of their jobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from qml_mp.core.recurring import RecurringJob
from qml_mp.errors import RecurringNotFound
from qml_mp.views.templates import (
    TemplateView,
    disable_template,
    enable_template,
    get_template,
    remove_template,
    run_template,
    trouble_of,
    view_templates,
)
from qml_mp.web.audit import note
from qml_mp.web.site import Site, site_of

_MOST_ON_A_PAGE = 50
_JOBS_IN_A_LINE = 5
_FIRINGS = 12
_JOBS = 20
_STANDINGS = ("enabled", "disabled", "does not fire")
_SOURCES = ("code", "person", "unknown")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which templates are shown, as the URL says it; empty fields do not restrict."""

    text: str = ""
    """In the id, the method or the queue."""
    source: str = ""
    standing: str = ""
    after: str = ""
    """The last id of the page before."""

    @property
    def filters(self) -> dict[str, str]:
        """Those that restrict, for forms and URLs: without the page."""
        found = {"text": self.text, "source": self.source, "standing": self.standing}
        return {name: value for name, value in found.items() if value}

    def takes(self, template: RecurringJob, *, trouble: str | None) -> bool:
        """Whether it is one of them."""
        names = (template.id, template.method, template.queue)
        return (
            (not self.text or any(self.text.lower() in name.lower() for name in names))
            and self.source in ("", template.source)
            and self.standing in ("", _standing_of(template, trouble))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Templates:
    """One page of the chosen ones."""

    views: Sequence[TemplateView]
    chosen: int
    """How many there are on all pages."""
    all: int
    next: str | None
    """The last id here, when more follow."""


def recurring(request: Request) -> Response:
    """All templates, or those that are chosen."""
    site, choice = site_of(request), _choice_of(request.query_params.get)
    return site.page(
        request,
        "recurring.html",
        choice=choice,
        sources=_SOURCES,
        standings=_STANDINGS,
        read=lambda: site.reads.get(("recurring", choice), lambda: _read(site, choice), statements=3),
    )


def template(request: Request) -> Response:
    """One of them, with its next firings and newest jobs. Raises `RecurringNotFound`."""
    site, recurring_id = site_of(request), request.query_params.get("id", "")

    def read() -> TemplateView:
        one = [get_template(site.storage, recurring_id)]
        return _views(site, one, firings=_FIRINGS, jobs=_JOBS)[0]

    view: TemplateView | None = None
    try:
        view = site.reads.get(("template", recurring_id), read, statements=3)
    except RecurringNotFound:
        if "hx-request" not in request.headers:  # a part of a screen that is open says it in its place
            raise
    return site.page(request, "recurring_template.html", view=view, screen="recurring")


def run(request: Request) -> Response:
    """One job now; the schedule stays as it is."""
    recurring_id = _id(request)
    job_id = run_template(site_of(request).storage, recurring_id)
    note(request, "run template", recurring_id, said=f"job {job_id}")
    return _done(request, f"{recurring_id}: the job {job_id} is enqueued.")


def enable(request: Request) -> Response:
    """From its next firing after now on."""
    recurring_id = _id(request)
    upcoming = enable_template(site_of(request).storage, recurring_id)
    note(request, "enable template", recurring_id)
    return _done(request, f"{recurring_id} is enabled; it fires next at {upcoming.local}.")


def disable(request: Request) -> Response:
    """It stays, and can be enabled again."""
    recurring_id = _id(request)
    disable_template(site_of(request).storage, recurring_id)
    note(request, "disable template", recurring_id)
    return _done(request, f"{recurring_id} is disabled.")


def remove(request: Request) -> Response:
    """Jobs that it has made stay."""
    recurring_id = _id(request)
    removed = remove_template(site_of(request).storage, recurring_id)
    note(request, "remove template", recurring_id)
    again = "" if not removed.app else " The code that declares it adds it again when a server starts."
    return _done(request, f"{recurring_id} is deleted; its jobs stay.{again}", to_list=True)


def _read(site: Site, choice: Choice) -> Templates:
    templates = site.reads.get("templates", site.storage.list_recurring_jobs, every_s=1.5)
    servers = site.servers()
    chosen = [each for each in templates if choice.takes(each, trouble=trouble_of(each, servers))]
    left = [each for each in chosen if each.id > choice.after]
    shown = left[:_MOST_ON_A_PAGE]
    return Templates(
        views=_views(site, shown, firings=1, jobs=_JOBS_IN_A_LINE),
        chosen=len(chosen),
        all=len(templates),
        next=shown[-1].id if len(left) > len(shown) else None,
    )


def _views(site: Site, templates: Sequence[RecurringJob], *, firings: int, jobs: int) -> list[TemplateView]:
    now = site.storage.now()
    return view_templates(site.storage, templates, site.servers(), now=now, firings=firings, jobs=jobs)


def _standing_of(template: RecurringJob, trouble: str | None) -> str:
    if trouble is not None:
        return "does not fire"
    return "enabled" if template.enabled else "disabled"


def _choice_of(text_of: Callable[[str, str], str]) -> Choice:
    found = {name: text_of(name, "").strip() for name in ("text", "source", "standing")}
    return Choice(**found, after=text_of("after", ""))


def _id(request: Request) -> str:
    return site_of(request).form(request).text("id")


def _done(request: Request, sentence: str, *, to_list: bool = False) -> Response:
    """Back to where the button was."""
    site = site_of(request)
    form = site.form(request)
    if form.text("there", default="") and not to_list:
        to = site.url(request, "recurring_template", id=_id(request))
    else:
        choice = _choice_of(lambda name, default: form.text(name, default=default))
        to = site.url(request, "recurring", **choice.filters, after=choice.after)
    return site.done(request, sentence, to=to)


ROUTES = (
    Route("/recurring", recurring, name="recurring"),
    Route("/recurring/template", template, name="recurring_template"),
    Route("/recurring/run", run, methods=["POST"], name="run_template"),
    Route("/recurring/enable", enable, methods=["POST"], name="enable_template"),
    Route("/recurring/disable", disable, methods=["POST"], name="disable_template"),
    Route("/recurring/remove", remove, methods=["POST"], name="remove_template"),
)
