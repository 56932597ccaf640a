"""Web process: the Jobs screen: a listing by pages, filtered by its URL, and searched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.job_selection import BulkChange
from qml_mp.storage.values import JobPage
from qml_mp.web.filters import Filters
from qml_mp.web.site import Site, site_of

_ON_A_PAGE = 50
_AMONG = 5000
"""Of each state so many jobs are looked at for what a filter asks."""
_MOST_COUNTED = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What the screen shows."""

    jobs: tuple[Job, ...]
    cut: frozenset[str] = frozenset()
    older: str | None = None
    newer: str | None = None
    newest: str | None = None
    looked_to: datetime | None = None
    """How far the look went, when it has not gone to the end."""
    looks_up: bool = False
    """Whether it went from older jobs to newer ones."""
    has_more: bool = False
    """Whether others have such an id, too, and there is no page of them."""

    @property
    def further(self) -> str | None:
        """Where the look goes on that has not gone to the end."""
        return (self.newer if self.looks_up else self.older) if self.looked_to is not None else None


def jobs(request: Request) -> Response:
    """Jobs, newest first."""
    site, query = site_of(request), request.query_params
    filters = Filters.of(query.getlist)
    search = query.get("id", "").strip()
    return site.page(
        request,
        "jobs.html",
        filters=filters,
        search=search,
        listing=lambda: _by_id(site, search) if search else _page(site, request, filters),
        counts=lambda: _counts(site),
        most_counted=_MOST_COUNTED,
        states=StateName,
        changes=BulkChange,
        methods=lambda: _methods(site),
    )


def _by_id(site: Site, search: str) -> Listing:
    found = site.reads.get(
        ("jobs by id", search), lambda: site.storage.jobs_with_id(search, limit=_ON_A_PAGE + 1), every_s=1.0
    )
    return Listing(jobs=found[:_ON_A_PAGE], has_more=len(found) > _ON_A_PAGE)


def _page(site: Site, request: Request, filters: Filters) -> Listing:
    after, before = request.query_params.get("after"), request.query_params.get("before")

    def read() -> JobPage:
        return site.storage.list_jobs(
            filters.job_filter(site.storage.now()), limit=_ON_A_PAGE, after=after, before=before,
            among=_AMONG, brief=True,
        )  # fmt: skip

    page = site.reads.get(("jobs", filters, after, before), read, statements=4, every_s=1.0)

    def at(**place: str | None) -> str:
        return site.url(request, "jobs", **filters.values, **place)

    return Listing(
        jobs=page.jobs,
        cut=page.cut,
        older=page.next_cursor and at(after=page.next_cursor),
        newer=page.previous_cursor and at(before=page.previous_cursor),
        newest=at() if after or before else None,
        looked_to=page.looked_to,
        looks_up=before is not None,
    )


def _counts(site: Site) -> Mapping[StateName, int]:
    return site.reads.get(
        "counts up to a number", lambda: site.storage.job_counts(among=_MOST_COUNTED), every_s=2.0
    )


def _methods(site: Site) -> list[str]:
    """That live servers know, or that wait: what a person may look for."""

    def read() -> list[str]:
        known = {name for server in site.storage.list_servers() for name in server.methods or ()}
        waiting = {stats.method for stats in site.storage.method_stats(among=1)}
        return sorted(known | waiting)[:500]

    return site.reads.get("names of methods", read, statements=2, every_s=10.0)


ROUTES = (Route("/jobs", jobs, name="jobs"),)
