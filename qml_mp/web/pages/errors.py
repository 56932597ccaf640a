"""Web process: the Errors screen: failures by method, type and line, counted, and retried by kind."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from qml_mp.core.state import StateName
from qml_mp.storage.values import FAILED_STATES, FailureKind
from qml_mp.views.failure_lines import FailureLine
from qml_mp.web.filters import Filters
from qml_mp.web.site import Site, site_of

_MOST_KINDS = 100
_MOST_COUNTED = 10_000


def errors(request: Request) -> Response:
    """Failed jobs, and those that wait for a retry, by kind."""
    site, query = site_of(request), request.query_params
    taken = ("state", "method", "since", "until")
    filters = Filters.of(lambda name: query.getlist(name) if name in taken else [])
    return site.page(
        request, "errors.html", filters=filters, lines=lambda: _lines(site, filters), states=FAILED_STATES,
        most_counted=_MOST_COUNTED, most_kinds=_MOST_KINDS, failed=StateName.FAILED,
    )  # fmt: skip


def _lines(site: Site, filters: Filters) -> list[FailureLine]:
    def read() -> list[FailureKind]:
        where = filters.job_filter(site.storage.now())
        return site.storage.failure_kinds(where, limit=_MOST_KINDS, among=_MOST_COUNTED)

    return [
        FailureLine.of(kind) for kind in site.reads.get(("kinds", filters), read, statements=2, every_s=2.0)
    ]


ROUTES = (Route("/errors", errors, name="errors"),)
