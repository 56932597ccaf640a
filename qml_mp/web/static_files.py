"""Web process: the files that pages load. Their addresses change with what is in them."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.staticfiles import StaticFiles

from qml_mp.web.site import site_of

_FOLDER = Path(__file__).with_name("static")


def static_version() -> str:
    """Another one when any of the files is."""
    content = sha256()
    for file in sorted(_FOLDER.rglob("*")):
        if file.is_file():
            content.update(file.read_bytes())
    return content.hexdigest()[:12]


async def static(request: Request) -> Response:
    """One file. Browsers keep it: a page that wants another names another version.

    Under any version but its own nobody keeps it: while an older process of the page serves beside a newer
    one, it is asked for the newer one's files, and has its own.
    """
    files = StaticFiles(directory=_FOLDER)
    response = await files.get_response(request.path_params["path"], request.scope)
    is_own = request.query_params.get("v") == site_of(request).static_version
    response.headers["cache-control"] = "public, max-age=31536000, immutable" if is_own else "no-store"
    return response


ROUTES = (Route("/static/{path:path}", static, name="static"),)
