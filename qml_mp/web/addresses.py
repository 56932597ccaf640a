"""Web process: what the address of a request says: its path within the page, its host, and its origin."""

from __future__ import annotations

import re
from ipaddress import ip_address
from urllib.parse import quote

from starlette.requests import Request


def own_path(request: Request) -> str:
    """The path within the page, without the prefix under which it is mounted."""
    path: str = request.scope["path"]
    root = request.scope.get("root_path", "")
    return path.removeprefix(root) if root and path.startswith(root) else path


def prefix_of(request: Request) -> str:
    """The path under which the page is mounted, as browsers write it: in links, and where a cookie is for. A
    browser sends a cookie only to where its own writing of the path begins so."""
    root: str = request.scope.get("root_path", "")
    return quote(root.rstrip("/"), safe="/!$&'()*+,=:@")


def cookie_path(request: Request) -> str:
    """Where the page's cookies are for."""
    return prefix_of(request) or "/"


def host_of(header: str) -> str | None:
    """The name or address in a Host header, in lower case; None: there is none in it."""
    found = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?", header)
    if found is None or (found[1].startswith("[") and not is_address(found[1][1:-1])):
        return None
    return found[1].strip("[]").rstrip(".").lower()


def is_secure(request: Request) -> bool:
    """Whether the browser has sent it by TLS, as far as the server knows."""
    return request.scope.get("scheme") == "https"


def is_own_origin(request: Request, origin: str) -> bool:
    """Whether it is the origin of the page. One without TLS is none of a page that is served by it: anybody
    between could have made its forms, and cookies."""
    scheme, _, there = origin.lower().partition("://")
    return there == request.headers.get("host", "").lower() and not (is_secure(request) and scheme != "https")


def is_address(host: str) -> bool:
    """Whether it is a number, not a name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
