"""Web process: what people change here is noted in the audit."""

from __future__ import annotations

import logging

from starlette.requests import Request

from qml_mp.core.acts import Asker
from qml_mp.errors import StorageError
from qml_mp.printable import printable
from qml_mp.web.safety import WHO
from qml_mp.web.site import site_of

logger = logging.getLogger(__name__)


def asker_of(request: Request) -> Asker:
    """Who sends the request, and from where. Of one that was let in."""
    address = f" from {request.client.host}" if request.client else ""
    return Asker(who=request.scope[WHO], where=f"web{address}")


def note(request: Request, what: str, subject: str, *, said: str | None = None) -> None:
    """After a change: who has made it, which ("pause queue"), of what, and what came of it."""
    site_of(request).storage.audit(asker_of(request), what, subject, said=said)


def note_so_far(request: Request, what: str, subject: str, *, said: str) -> None:
    """Note what was done of a change before an error broke it off. The person is told of that error: where
    the storage does not take the note either, the log has what was done."""
    try:
        note(request, what, subject, said=said)
    except StorageError as error:
        by = asker_of(request)
        logger.error(
            "This stands in no audit: %s %s by %s, %s (%s)",
            printable(what), printable(subject), printable(by.who), printable(said), error,
        )  # fmt: skip
