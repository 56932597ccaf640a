"""Web process: the History screen: what came of jobs by queue and method, how long they waited and ran."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from qml_mp.storage.history import HistoryPoint
from qml_mp.views.history import SPANS, HistoryView, view_history
from qml_mp.web.charts import bar_chart
from qml_mp.web.site import Site, site_of

_EVERY_S = 5.0
_MOST_METHODS = 100
_FIRST_SPAN = "1h"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What is asked for, in the address of the screen."""

    span: str
    queue: str | None
    method: str | None

    @property
    def length(self) -> timedelta:
        return SPANS[self.span]


def history(request: Request) -> Response:
    """The screen."""
    site, query = site_of(request), request.query_params
    span = query.get("span", _FIRST_SPAN)
    shown = Shown(
        span=span if span in SPANS else _FIRST_SPAN,
        queue=query.get("queue") or None,
        method=query.get("method") or None,
    )
    return site.page(
        request,
        "history.html",
        shown=shown,
        spans=tuple(SPANS),
        view=lambda: read_history(site, shown),
        chart=bar_chart,
        methods=lambda: _methods(site, shown),
        queues=lambda: _queues(site, shown),
    )


def last_hour(site: Site) -> HistoryView:
    """That of everything."""
    return read_history(site, Shown(span=_FIRST_SPAN, queue=None, method=None))


def read_history(site: Site, shown: Shown) -> HistoryView:
    """The range, read for all browsers together."""

    def read() -> HistoryView:
        return view_history(site.storage, shown.length, queue=shown.queue, method=shown.method)

    return site.reads.get(("history", shown), read, statements=2, every_s=_EVERY_S)


def _methods(site: Site, shown: Shown) -> list[tuple[str, HistoryPoint]]:
    """Those with the most attempts first."""

    def read() -> Mapping[str, HistoryPoint]:
        now = site.storage.now()
        return site.storage.history_by_method(since=now - shown.length, until=now, queue=shown.queue)

    key = ("history by method", shown.span, shown.queue)
    return _by_count(site.reads.get(key, read, statements=2, every_s=2 * _EVERY_S))


def _queues(site: Site, shown: Shown) -> list[tuple[str, HistoryPoint]]:
    def read() -> Mapping[str, HistoryPoint]:
        now = site.storage.now()
        return site.storage.history_by_queue(since=now - shown.length, until=now)

    return _by_count(
        site.reads.get(("history by queue", shown.span), read, statements=2, every_s=2 * _EVERY_S)
    )


def _by_count(points: Mapping[str, HistoryPoint]) -> list[tuple[str, HistoryPoint]]:
    found = sorted(points.items(), key=lambda each: (-each[1].total.count, each[0]))
    return found[:_MOST_METHODS]


ROUTES = (Route("/history", history, name="history"),)
