"""Web process: what is no screen: the stream of changes, and signing in and out."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from qml_mp.web.addresses import cookie_path, is_secure, prefix_of
from qml_mp.web.safety import SIGN_IN, SIGN_OUT
from qml_mp.web.sign_in import SESSION_S
from qml_mp.web.site import site_of


async def events(request: Request) -> Response:
    """The stream. It takes no thread."""
    headers = {"x-accel-buffering": "no"}  # nginx would keep the events until there are many
    return StreamingResponse(
        site_of(request).changes.stream(), media_type="text/event-stream", headers=headers
    )


def sign_in_form(request: Request) -> Response:
    site = site_of(request)
    there = request.query_params.get("next", "")
    if not site.auth.has_form or site.auth.who(request) is not None:
        return _lead_to(request, there)
    return site.page(request, "sign_in.html", next=there, refusal=None)


async def sign_in(request: Request) -> Response:
    site = site_of(request)
    form = site.form(request)
    there = form.text("next", default="")
    has_turn = await site.sign_in_turns.take()
    if not has_turn or not site.auth.admits(form.text("user", default=""), form.text("secret", default="")):
        site.sign_in_turns.note_refused(request.client.host if request.client else "an unknown address")
        status, refusal = (403, "wrong") if has_turn else (429, "crowded")
        return site.page(request, "sign_in.html", status=status, next=there, refusal=refusal)
    response = _lead_to(request, there)
    response.set_cookie(
        site.auth.cookie("session"), site.auth.session(), max_age=SESSION_S, path=cookie_path(request),
        httponly=True, samesite="lax", secure=is_secure(request),
    )  # fmt: skip
    return response


def sign_out(request: Request) -> Response:
    site = site_of(request)
    response = RedirectResponse(site.url(request, "sign_in_form"), 303)
    response.delete_cookie(site.auth.cookie("session"), path=cookie_path(request))
    return response


def _lead_to(request: Request, there: str) -> Response:
    """To where somebody wanted to go; to the overview when that is no path of the page."""
    is_ours = there.startswith("/") and not there.startswith(("//", "/\\"))
    url = prefix_of(request) + there if is_ours else site_of(request).url(request, "overview")
    return RedirectResponse(url, 303)


ROUTES = (
    Route("/events", events, name="events"),
    Route(SIGN_IN, sign_in_form, name="sign_in_form"),
    Route(SIGN_IN, sign_in, methods=["POST"], name="sign_in"),
    Route(SIGN_OUT, sign_out, methods=["POST"], name="sign_out"),
)
