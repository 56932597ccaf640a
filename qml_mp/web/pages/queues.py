"""Web process: the Queues screen: what waits in each, what holds it back, and the changes of that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from qml_mp.core.limits import Rate, Standing, check_max_running
from qml_mp.errors import ConfigurationError, shown
from qml_mp.setting_kinds import check_queue_name
from qml_mp.storage.store import Storage
from qml_mp.storage.values import MethodStats
from qml_mp.units import is_whole_number
from qml_mp.views.queues import QueueView, is_queue, limit_in_words, limit_of, served_queues, view_queues
from qml_mp.views.servers import ServerView
from qml_mp.web.audit import note
from qml_mp.web.pages.overview import MOST_COUNTED, MOST_OF_METHOD
from qml_mp.web.site import Site, site_of


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLine:
    """A queue as the screen shows it."""

    view: QueueView
    standing: Standing | None
    """None: it has no limit."""

    @property
    def name(self) -> str:
        return self.view.stats.name

    @property
    def limit_in_words(self) -> str | None:
        """Without the pause, which is shown as the state."""
        return limit_in_words(replace(self.view.limit, paused=False))

    @property
    def running(self) -> int:
        """What a worker holds and has not begun stands apart."""
        return self.view.stats.processing - self.view.stats.held

    @property
    def is_full(self) -> bool:
        """Jobs wait, and as many run as may."""
        most = self.view.limit.max_running
        return bool(self.view.stats.enqueued) and most is not None and self.view.stats.processing >= most

    @property
    def next_in(self) -> timedelta | None:
        """In how long its rate lets one more begin; None: that is not what its jobs wait for."""
        if not self.view.stats.enqueued or self.standing is None or self.standing.free != 0:
            return None
        return self.standing.next_in

    @property
    def is_stuck(self) -> bool:
        """Jobs wait, and nobody takes any."""
        return bool(self.view.stats.enqueued) and not self.view.servers


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuesPage:
    """What the screen shows."""

    lines: Sequence[QueueLine]
    waiting: Sequence[MethodStats]
    """By method, the most first."""
    methods: Sequence[Standing]
    """Those that are limited."""


def queues(request: Request) -> Response:
    """Every queue that holds jobs which have not ended, that is limited, or that a live server serves."""
    site = site_of(request)
    return site.page(
        request,
        "queues.html",
        read=lambda: _read(site),
        words=limit_in_words,
        most_counted=MOST_COUNTED,
        most_of_method=MOST_OF_METHOD,
    )


def pause(request: Request) -> Response:
    """Have no server claim jobs of it. Those that run go on."""
    site, name = site_of(request), _name(request)
    site.storage.set_paused(name, True)
    note(request, "pause queue", name)
    return site.done(request, f"{name} is paused. Jobs of it that run go on.", to=site.url(request, "queues"))


def resume(request: Request) -> Response:
    """The end of that."""
    site, name = site_of(request), _name(request)
    site.storage.set_paused(name, False)
    note(request, "resume queue", name)
    return site.done(request, f"{name} is resumed.", to=site.url(request, "queues"))


def limit(request: Request) -> Response:
    """Each as the form has it; an empty field ends it. One that was left as it was shown is left alone:
    somebody may have set it since."""
    site, name = site_of(request), _name(request)
    form = site.form(request)
    max_running, rate = form.text("max_running").strip(), form.text("rate").strip()
    wanted: dict[str, Any] = {
        "max_running": _number(max_running) if max_running else None,
        "rate": Rate.parse(rate, what="The rate") if rate else None,
    }
    typed = {"max_running": max_running, "rate": rate}
    set_here = {each: wanted[each] for each in wanted if typed[each] != form.data.get(f"shown_{each}")}
    # Read before the change: nothing may fail between that and its note.
    limited = replace(limit_of(site.storage, name), paused=False, **set_here)
    site.storage.limit(limited, only=list(set_here))
    words = limit_in_words(limited) or "no limit"
    note(request, "limit queue", name, said=words)
    return site.done(request, f"{name}: {words}.", to=site.url(request, "queues"))


def _read(site: Site) -> QueuesPage:
    servers = site.servers()
    return site.reads.get("queues_page", lambda: _page_of(site.storage, servers), statements=4)


def _page_of(storage: Storage, servers: Sequence[ServerView]) -> QueuesPage:
    views = view_queues(storage, servers, among=MOST_COUNTED, also=served_queues(servers))
    standings = storage.standings()
    of_queues = {each.limit.name: each for each in standings if is_queue(each)}
    return QueuesPage(
        lines=[QueueLine(view=view, standing=of_queues.get(view.stats.name)) for view in views],
        waiting=sorted(storage.method_stats(among=MOST_OF_METHOD), key=lambda each: -each.enqueued),
        methods=[each for each in standings if not is_queue(each)],
    )


def _name(request: Request) -> str:
    """Of the queue that the form is about. Raises `ConfigurationError` for one that can be none: only another
    program can have named a queue so, and it has jobs, or is limited since it had some."""
    site = site_of(request)
    name = site.form(request).text("name")
    limited = {each.limit.name for each in site.storage.standings() if is_queue(each)}
    if name not in limited | {stats.name for stats in site.storage.queue_stats(among=1)}:
        check_queue_name(name)
    return name


def _number(text: str) -> int | None:
    if not (text.isascii() and is_whole_number(text)):
        raise ConfigurationError(
            f"At most {shown(text)} running is no number; give a whole number from 1, or nothing: no limit."
        )
    return check_max_running(int(text))


ROUTES = (
    Route("/queues", queues, name="queues"),
    Route("/queues/pause", pause, methods=["POST"], name="pause_queue"),
    Route("/queues/resume", resume, methods=["POST"], name="resume_queue"),
    Route("/queues/limit", limit, methods=["POST"], name="limit_queue"),
)
