"""Web process: errors as pages: what is wrong, in a sentence, and a way back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from qml_mp.errors import (
    ConfigurationError,
    InvalidJob,
    InvalidTransition,
    JobNotFound,
    QmlError,
    RecurringNotFound,
    StorageError,
)
from qml_mp.printable import printable
from qml_mp.storage.shown_url import without_passwords
from qml_mp.views.storage_name import without_its_place
from qml_mp.web.site import Site, site_of

_STATUSES: tuple[tuple[type[QmlError], int], ...] = (  # the first that fits decides
    (JobNotFound, 404),
    (RecurringNotFound, 404),
    (InvalidTransition, 409),
    (ConfigurationError, 400),
    (InvalidJob, 400),
    (StorageError, 503),
)
_TITLES = {
    400: "That cannot be done as asked", 401: "Not signed in", 403: "Refused", 404: "Not there",
    405: "Not by this method", 408: "Too slow", 409: "Not possible now", 413: "Too large", 503: "No storage",
}  # fmt: skip


class Page:
    """A refusal as the page of a site; as a line of text for htmx, which shows it in its place."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def __call__(self, request: Request, status: int, sentence: str) -> Response:
        text = printable(" ".join(sentence.split()))
        if "hx-request" in request.headers:
            return PlainTextResponse(text, status)
        title = _TITLES.get(status, "Refused" if status < 500 else "Something went wrong")
        return self._site.page(request, "refused.html", status=status, title=title, sentence=text)


def _of_ours(request: Request, error: Exception) -> Response:
    status = next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)
    site = site_of(request)
    url = site.storage.display_url
    sentence = without_its_place(without_passwords(str(error), shown=url), url)
    return Page(site)(request, status, sentence)


def _of_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    page = Page(site_of(request))
    if error.status_code == 404:
        said = error.detail if error.detail != "Not Found" else "There is no such page here."
        return page(request, 404, said)
    if error.status_code == 405:
        sentence = (
            "This address changes something, which needs POST from the page itself; nothing was changed."
        )
        return page(request, 405, sentence if request.method != "POST" else "This address is for reading.")
    return page(request, error.status_code, error.detail)


def _of_others(request: Request, error: Exception) -> Response:
    # Starlette raises it again once this is sent, and so the server's log has it.
    sentence = (
        f"This is an error of the page itself ({type(error).__name__}); the log of its process has more."
    )
    return Page(site_of(request))(request, 500, sentence)


HANDLERS: Mapping[Any, Any] = {QmlError: _of_ours, HTTPException: _of_http, Exception: _of_others}
