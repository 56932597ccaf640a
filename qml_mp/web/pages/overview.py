"""Web process: the overview: what is going on, and what is wrong, at a glance."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from qml_mp.views.queues import view_queues
from qml_mp.views.servers import view_servers
from qml_mp.web.site import site_of


def overview(request: Request) -> Response:
    """The screen."""
    site = site_of(request)
    storage = site.storage
    counts = site.reads.get("counts", storage.job_counts)
    servers = site.reads.get("servers", lambda: view_servers(storage), statements=6, every_s=4.0)
    queues = site.reads.get("queues", lambda: view_queues(storage, servers), statements=2, every_s=2.5)
    return site.page(request, "overview.html", counts=counts, servers=servers, queues=queues)


ROUTES = (Route("/", overview, name="overview"),)
