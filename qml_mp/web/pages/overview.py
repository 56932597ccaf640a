"""Web process: the overview: what is going on, and what is wrong, at a glance."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from qml_mp.core.state import StateName
from qml_mp.storage.values import FailureKind, JobFilter
from qml_mp.views.concerns import Concern, concerns
from qml_mp.views.failure_lines import FailureLine
from qml_mp.views.queues import served_queues, view_queues
from qml_mp.views.servers import ServerView, WorkerView
from qml_mp.views.snapshot import Snapshot
from qml_mp.web.charts import bar_chart
from qml_mp.web.pages.history import last_hour
from qml_mp.web.site import Site, site_of

MOST_COUNTED = 1000
"""Of each state, queue, method and kind: to tell more apart would cost what the storage is full."""
MOST_OF_METHOD = 100
"""Of each method of a queue, whose rows have to be read for it."""
_MOST_FAILURES = 6
_MOST_KINDS_LATELY = 100
_MOST_WORKERS = 12


def overview(request: Request) -> Response:
    """The screen. Its parts are asked for one by one when something has changed."""
    site = site_of(request)
    return site.page(
        request,
        "overview.html",
        snapshot=lambda: _snapshot(site),
        wrong=lambda: _wrong(site),
        failed_lately=lambda: _failed_lately(site),
        history=lambda: last_hour(site),
        chart=bar_chart,
        failures=lambda: _failures(site),
        busy=lambda servers: _busy(servers)[:_MOST_WORKERS],
        busy_count=lambda servers: len(_busy(servers)),
        states=StateName,
        most=MOST_COUNTED,
    )


def _snapshot(site: Site) -> Snapshot:
    storage, reads, servers = site.storage, site.reads, site.servers()
    counts = reads.get("counts", lambda: storage.job_counts(among=MOST_COUNTED), every_s=2.0)
    return Snapshot(
        counts={str(state): count for state, count in counts.items()},
        queues=reads.get(
            "queues",
            lambda: view_queues(storage, servers, among=MOST_COUNTED, also=served_queues(servers)),
            statements=2,
            every_s=3.0,
        ),
        servers=servers,
        methods=reads.get("methods", lambda: storage.method_stats(among=MOST_OF_METHOD), every_s=6.0),
        most=MOST_OF_METHOD,
        most_of_queue=MOST_COUNTED,
    )


def _wrong(site: Site) -> list[Concern]:
    return concerns(_snapshot(site))


def _failed_lately(site: Site) -> str | None:
    """How many jobs have failed for good in the last hour, as a sentence; None: none has."""

    def read() -> list[FailureKind]:
        lately = JobFilter(states=[StateName.FAILED], since=site.storage.now() - timedelta(hours=1))
        return site.storage.failure_kinds(lately, limit=_MOST_KINDS_LATELY, among=MOST_COUNTED)

    kinds = site.reads.get("failed lately", read, statements=2, every_s=5.0)
    count = sum(min(kind.count, MOST_COUNTED) for kind in kinds)
    if not count:
        return None
    is_all = len(kinds) < _MOST_KINDS_LATELY and all(kind.count <= MOST_COUNTED for kind in kinds)
    jobs = "1 job" if count == 1 else f"{count} jobs"
    return f"{'' if is_all else 'At least '}{jobs} failed for good in the last hour."


def _failures(site: Site) -> list[FailureLine]:
    """The kinds whose newest failure is the newest."""
    kinds = site.reads.get(
        "failure kinds",
        lambda: site.storage.failure_kinds(limit=_MOST_FAILURES, among=MOST_COUNTED, newest_first=True),
        every_s=5.0,
    )
    return [FailureLine.of(kind) for kind in kinds]


def _busy(servers: Sequence[ServerView]) -> list[tuple[ServerView, WorkerView]]:
    """Workers of live servers that run something, those that have run longest first. The rows of a server
    that is dead stay until another one finds them."""
    found = [
        (server, worker)
        for server in servers
        if server.alive
        for worker in server.workers
        if worker.claim is not None
    ]
    return sorted(found, key=lambda each: each[1].running is not None and -each[1].running.total_seconds())


ROUTES = (Route("/", overview, name="overview"),)
