"""Web process: what stands before every request: its host, its size and time, who sends it, and from where.

A pure ASGI middleware around the whole application. What it refuses becomes a page with one sentence
that says why, and what to do.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import parse_qsl, quote

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, MutableHeaders, UploadFile
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qml_mp.errors import ConfigurationError
from qml_mp.web.addresses import (
    cookie_path,
    host_of,
    is_address,
    is_own_origin,
    is_secure,
    own_path,
    prefix_of,
)
from qml_mp.web.sign_in import Auth, form_token, is_form_token

logger = logging.getLogger(__name__)

FORM = "qml_mp.form"
WHO = "qml_mp.who"
"""In the scope: the name of who sends the request. It is asked for once: a change that was let in is noted as
his."""
TOKEN_FIELD = "page_token"
TOKEN_HEADER = "x-page-token"
SIGN_IN = "/sign-in"
SIGN_OUT = "/sign-out"
_STATIC = "/static/"

_MOST_BODY_BYTES = 2 * 1024 * 1024
_MOST_FIELDS = 5000
_MOST_URL_BYTES = 8 * 1024
_BODY_WITHIN_S = 10.0
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_VISIT = re.compile(r"[A-Za-z0-9_-]{20,60}")
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # with less, browsers hide the Origin of our own forms
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}


class Refused(Exception):
    """The request is not answered: the status, and the sentence for people."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence


class Refusals(Protocol):
    """Makes the page of a refusal."""

    def __call__(self, request: Request, status: int, sentence: str) -> Response: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Safety:
    """What is let through."""

    auth: Auth
    read_only: bool
    hosts: Sequence[str] | None
    """Names of the page besides this machine's own; None: any, if people sign in."""

    def check(self, request: Request) -> None:
        """Raises `Refused` for what can be told from the head of a request."""
        query = request.scope["query_string"]
        if len(request.scope.get("raw_path") or b"") + len(query) > _MOST_URL_BYTES:
            raise Refused(414, f"The address is longer than {_MOST_URL_BYTES // 1024} KiB.")
        if not query.isascii():
            raise Refused(400, "The address has bytes that no address has.")
        if request.method not in ("GET", "HEAD", "POST"):
            raise Refused(405, f"{request.method} is not used here: reading is GET, changing is POST.")
        self._check_host(request)
        if request.method == "POST":
            self._check_origin(request)
            if self.read_only and own_path(request) not in (SIGN_IN, SIGN_OUT):
                raise Refused(403, "This page is for reading only: it was started with read_only.")
        elif int_of(request.headers.get("content-length")) or "transfer-encoding" in request.headers:
            raise Refused(400, "A request that only reads has no body.")

    def _check_host(self, request: Request) -> None:
        host = host_of(request.headers.get("host", ""))
        if host is None:
            raise Refused(400, "The Host header is missing, or is no host.")
        if self.hosts is None and self.auth.is_set:
            return
        own = {*_LOOPBACK, socket.gethostname().lower(), *(name.lower() for name in self.hosts or ())}
        if host not in own and not is_address(host):  # a name may be made to lead here, a number may not
            raise Refused(
                421,
                f"This page is not known under the name {host!r}. If it is one of its names, say so: "
                f"`qml-mp web` and `qml-mp start` by --allow-host {host}, dashboard(…) by hosts=[{host!r}].",
            )

    def _check_origin(self, request: Request) -> None:
        """Browsers say where a request comes from. Those that do not are known by their token alone."""
        site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
        if site in (None, "same-origin") and (origin is None or is_own_origin(request, origin)):
            return
        there, host = (origin or "").partition("://")[2], request.headers.get("host", "")
        if site == "same-origin" and there.lower() not in ("", host.lower()):  # no script can have it say so
            raise Refused(
                403,
                f"The browser was at {origin!r}, and the Host header that came here is {host!r}: a proxy "
                "between must pass it on, with its port (nginx: proxy_set_header Host $http_host). Nothing "
                "was changed.",
            )
        raise Refused(403, "This change was asked for by another site, and nothing was changed.")


class Guard:
    """The middleware."""

    def __init__(self, app: ASGIApp, *, safety: Safety, refusal: Refusals) -> None:
        self._app = app
        self._safety = safety
        self._refusal = refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        request = Request(scope, receive)
        visit_cookie = _visit_cookie(request)
        visit = request.cookies.get(visit_cookie, "")
        is_new = not _VISIT.fullmatch(visit)
        scope["qml_mp.visit"] = visit = secrets.token_urlsafe(18) if is_new else visit
        scope["qml_mp.token"] = form_token(visit)
        safe_send = _with_headers(send, request, f"{visit_cookie}={visit}" if is_new else None)
        try:
            self._safety.check(request)
            if (away := await self._sign_in_first(request)) is not None:
                await away(scope, receive, safe_send)
                return
            if request.method == "POST":
                scope[FORM] = await _form(request)
                self._check_token(request)
        except Refused as refused:
            response = self._refusal(request, refused.status, refused.sentence)
            response.headers["connection"] = "close"  # what it still sends is not read
            await response(scope, receive, safe_send)
            return
        await self._app(scope, receive, safe_send)

    async def _sign_in_first(self, request: Request) -> Response | None:
        """Where somebody is sent who has to sign in; None: go on."""
        path = own_path(request)
        if path == SIGN_IN or path.startswith(_STATIC):
            return None
        request.scope[WHO] = who = await self._who(request)
        if who is not None:
            return None
        if not self._safety.auth.has_form:
            raise Refused(
                403, "You may not see this page: the application that it is part of does not know you."
            )
        there = f"{prefix_of(request)}{SIGN_IN}"
        if request.method == "POST" or "hx-request" in request.headers or path == "/events":
            if "hx-request" in request.headers:
                return Response(status_code=401, headers={"hx-redirect": there})
            raise Refused(
                401, "You are not signed in (any more). Nothing was changed. Sign in, and try again."
            )
        query = request.scope["query_string"].decode("latin-1")
        return RedirectResponse(f"{there}?next={quote(path + ('?' + query if query else ''), safe='')}", 303)

    async def _who(self, request: Request) -> str | None:
        auth = self._safety.auth
        try:
            if auth.ask is None:
                return auth.who(request)
            return await run_in_threadpool(auth.who, request)  # the host's function may ask a database
        except ConfigurationError as error:
            logger.error("Nobody may see the page: %s", error)
            raise Refused(
                500,
                "The application that this page is part of did not say who you are, and nothing was shown or "
                "changed; its log has more.",
            ) from error

    def _check_token(self, request: Request) -> None:
        """The form has to carry what belongs to the cookie of the visit, which was sent beside it.

        Another site can neither read that cookie (it is HttpOnly, random, and of another origin) nor have it
        sent with a POST (SameSite=Lax: with links alone, so that one from a mail finds who is signed in).
        What a neighbour of the same host or domain could still do, which is to set a cookie that it knows,
        does not help it: all browsers name the origin of a POST, and `check` has refused its. So what the
        form carries need not be made with a secret.
        """
        given = request.headers.get(TOKEN_HEADER) or request.scope[FORM].get(TOKEN_FIELD) or ""
        if not is_form_token(str(given), visit=request.scope["qml_mp.visit"]):
            raise Refused(
                403,
                "The proof is missing or old that this page itself asked for the change, and nothing was "
                "changed. Load the page again, and try again; cookies have to be allowed.",
            )


def int_of(text: str | None) -> int:
    """A number in a header; 0 for what is none."""
    return int(text) if text is not None and text.isascii() and text.isdecimal() and len(text) < 20 else 0


async def _form(request: Request) -> FormData:
    """The fields of the body. Raises `Refused` for one that is too large, too slow, or no form."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/x-www-form-urlencoded", ""):
        raise Refused(415, "A change is asked for by a form (application/x-www-form-urlencoded).")
    try:
        body = await asyncio.wait_for(_body(request), _BODY_WITHIN_S)
    except TimeoutError:
        raise Refused(
            408, f"The form did not come within {_BODY_WITHIN_S:.0f} s. Nothing was changed."
        ) from None
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=_MOST_FIELDS, errors="strict")
    except ValueError:
        raise Refused(400, f"The form is no UTF-8, or has more than {_MOST_FIELDS} fields.") from None
    fields: list[tuple[str, str | UploadFile]] = [*pairs]
    return FormData(fields)


async def _body(request: Request) -> bytes:
    too_large = Refused(
        413, f"The form is larger than {_MOST_BODY_BYTES // 1024**2} MiB. Nothing was changed."
    )
    if int_of(request.headers.get("content-length")) > _MOST_BODY_BYTES:
        raise too_large
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > _MOST_BODY_BYTES:
                raise too_large
    except ClientDisconnect:  # nobody reads the answer; the server would log this as an error of the page
        raise Refused(400, "The form was broken off. Nothing was changed.") from None
    return bytes(body)


def _with_headers(send: Send, request: Request, new_visit: str | None) -> Send:
    """Every answer has the headers that make it safe; the first of a visit its cookie."""

    async def safe_send(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers[name] = value
            headers.setdefault("cache-control", "no-store")
            if new_visit is not None and headers.get("content-type", "").startswith("text/html"):
                secure = "; Secure" if is_secure(request) else ""
                headers.append(
                    "set-cookie",
                    f"{new_visit}; Path={cookie_path(request)}; HttpOnly; SameSite=Lax{secure}",
                )
        await send(message)

    return safe_send


def _visit_cookie(request: Request) -> str:
    """Its name. All pages of a host that have this path share it, and each takes what another has set there;
    but a browser lets no page without TLS set, or see, one that was set with it. Pages below get what was set
    above them too: were the name the same, they would see one of the two cookies, and not their own."""
    path = hashlib.sha256(cookie_path(request).encode()).hexdigest()[:8]
    return f"qml_mp_visit_{'tls' if is_secure(request) else 'plain'}_{path}"
