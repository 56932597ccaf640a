"""Web process: the audit: what people have asked of servers and changed, and each with what came of it."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from qml_mp.core.acts import Act, ActState
from qml_mp.core.server_info import number_of_worker
from qml_mp.storage.acts import ActPage
from qml_mp.web.site import site_of

_A_PAGE = 50
_AS_STATE = {
    ActState.ASKED: "enqueued",
    ActState.TAKEN: "processing",
    ActState.DONE: "succeeded",
    ActState.FAILED: "failed",
    ActState.EXPIRED: "deleted",
    ActState.GONE: "deleted",
    ActState.UNFINISHED: "failed",
}
_WORDS = {ActState.TAKEN: "under way", ActState.EXPIRED: "not in time", ActState.GONE: "server gone"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ActLine:
    """What was asked or changed, as screens show it."""

    act: Act

    @property
    def of(self) -> str:
        """What it is about; of a server its name."""
        act = self.act
        if act.server_id is None:
            return act.subject
        name = act.server_id.partition("#")[0]
        return name if act.worker_id is None else f"{name}, worker {number_of_worker(act.worker_id)}"

    @property
    def like(self) -> str:
        """The state of a job that has the same colour."""
        return _AS_STATE[self.act.state]

    @property
    def word(self) -> str:
        return _WORDS.get(self.act.state, str(self.act.state))

    @property
    def told(self) -> str:
        """What came of it, on one line, if the state does not say all."""
        said = self.act.said or ""
        return said.splitlines()[0] if said else ""


def audit(request: Request) -> Response:
    """Newest first."""
    site, after = site_of(request), request.query_params.get("after")

    def read() -> ActPage:
        return site.reads.get(
            ("audit", after), lambda: site.storage.list_acts(limit=_A_PAGE, after=after), every_s=2.0
        )

    return site.page(request, "audit.html", read=read, lines=_lines, after=after)


def act(request: Request) -> Response:
    """One of them, with the whole answer."""
    site, act_id = site_of(request), request.path_params["id"]
    found = site.reads.get(("act", act_id), lambda: site.storage.get_act(act_id))
    if found is None:
        raise HTTPException(404, "There is no such entry in the audit, or it was deleted with the old ones.")
    return site.page(request, "act.html", line=ActLine(act=found))


def _lines(page: ActPage) -> list[ActLine]:
    return [ActLine(act=each) for each in page.acts]


ROUTES = (
    Route("/audit", audit, name="audit"),
    Route("/audit/{id}", act, name="act"),
)
