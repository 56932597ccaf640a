"""Web process: what people change here is noted in the audit."""

from __future__ import annotations

import logging

from starlette.requests import Request

from qml_mp.core.acts import ActState, Asker
from qml_mp.errors import StorageError
from qml_mp.printable import printable
from qml_mp.web.safety import WHO
from qml_mp.web.site import site_of

logger = logging.getLogger(__name__)


def asker_of(request: Request) -> Asker:
    """Who sends the request, and from where. Of one that was let in."""
    address = f" from {request.client.host}" if request.client else ""
    return Asker(who=request.scope[WHO], where=f"web{address}")


def reason_of(request: Request, done: str) -> str:
    """What the row of a job keeps that was "cancelled" or "deleted" here."""
    return f"{done} on the page by {asker_of(request).who}"


def note(
    request: Request,
    what: str,
    subject: str,
    *,
    said: str | None = None,
    state: ActState = ActState.DONE,
    act_id: str | None = None,
) -> None:
    """After a change: who has made it, which ("pause queue"), of what, and what came of it; see `Acts.audit`.
    Where the storage does not take the note, the change stands all the same, and the log has what was done.
    """
    by = asker_of(request)
    try:
        site_of(request).storage.audit(by, what, subject, said=said, state=state, act_id=act_id)
    except StorageError as error:
        logger.error(
            "This stands in no audit: %s %s by %s, %s (%s)",
            printable(what), printable(subject), printable(by.who), printable(said or "done"), error,
        )  # fmt: skip
