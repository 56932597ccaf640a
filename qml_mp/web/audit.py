"""Web process: what people change here is noted in the audit."""

from __future__ import annotations

from starlette.requests import Request

from qml_mp.core.acts import Asker
from qml_mp.web.safety import WHO
from qml_mp.web.site import site_of


def asker_of(request: Request) -> Asker:
    """Who sends the request, and from where. Of one that was let in."""
    address = f" from {request.client.host}" if request.client else ""
    return Asker(who=request.scope[WHO], where=f"web{address}")


def note(request: Request, what: str, subject: str, *, said: str | None = None) -> None:
    """After a change: who has made it, which ("pause queue"), of what, and what came of it."""
    site_of(request).storage.audit(asker_of(request), what, subject, said=said)
