"""Every process, no I/O: what of a storage URL people may see.

A password with a character of the URL's own grammar in it, written as it is, ends somewhere else for
libpq than for its writer, and part of it then counts as host, port, path or option. So nothing is shown
that has not been recognised: what is not plain is masked, and when it is not plain where the parts of
the URL end, everything behind the scheme is.
"""

from __future__ import annotations

import difflib
import re
import string
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from urllib.parse import unquote

MASK = "***"

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_SCHEME_CHARACTERS = string.ascii_letters + string.digits + "+.-"
# Up to the last colon: from one before it no more can be a password. Atomic: they are not tried one by one.
_USER_IN_TEXT = re.compile(r"(?>[^\s'\"/@]*:)")
# Behind the user a password, with spaces perhaps that were not encoded. Only a quote ends it: what looks like
# a port and a sentence (`ada:12/my pass@host`), like the next URL or like a mask may be part of it.
_PASSWORD_IN_TEXT = re.compile(r"[^'\"\n]*")
_PLACE_IN_TEXT = re.compile(r"\S*[^\s'\").,;]")  # without the quotes around it
_NEXT_URL = re.compile(rf"[\s(]{_SCHEME.pattern}")
_FILE_OR_WORD = re.compile(r"[\w./~-]*", re.ASCII)
_WITHOUT_SLASHES = re.compile(r"sqlite:[\w./~-]*|memory:", re.ASCII)  # nobody has a password there
_LONGEST_WORD = 60

# As written, and as it reads decoded.
_USER = re.compile(r"[\w.~%+-]*"), re.compile(r"[\w.~+@-]*")
_HOST = r"(?:\[[0-9A-Fa-f:.%]+\]|[\w.%~-]*)(?::\d{0,5})?"
_HOSTS = re.compile(rf"{_HOST}(?:,{_HOST})*"), re.compile(r"[\w.~,:/\[\]%@-]*")
_PATH = re.compile(r"(?:/[\w.~%+-]*)?"), re.compile(r"(?:/[\w.~+-]*)?")
_PARAMETERS_IN_LOGIN = re.compile(
    r"\?.*=", re.DOTALL
)  # of `host:1?password=…@…`, whose @ libpq takes for the end
_VALUE = re.compile(r"[^@&#\s]*"), re.compile(r"[\w.,:/~+-]*")
_SESSION = re.compile(r"[^@&#]*"), re.compile(r"[\w.,/~+= -]*")
_PLACES = frozenset({
    "host", "hostaddr", "port", "dbname", "user", "schema", "pooler", "application_name",
    "fallback_application_name", "client_encoding", "connect_timeout", "tcp_user_timeout", "keepalives",
    "keepalives_idle", "keepalives_interval", "keepalives_count", "target_session_attrs",
    "load_balance_hosts", "replication", "service", "passfile", "channel_binding", "require_auth",
    "requirepeer", "sslmode", "sslnegotiation",
    "sslcert", "sslkey", "sslrootcert", "sslcrl", "sslcrldir", "sslsni", "sslcompression", "sslcertmode",
    "gssencmode", "gsslib", "gssdelegation", "krbsrvname", "ssl_min_protocol_version",
    "ssl_max_protocol_version", "min_protocol_version", "max_protocol_version",
})  # fmt: skip
"""Parameters of which the value may be seen when it is plain."""
_SECRETS = frozenset(
    {"password", "sslpassword", "scram_client_key", "scram_server_key", "oauth_client_secret"}
)
"""Parameters that nobody quotes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UrlParts:
    """A URL of PostgreSQL, cut where libpq cuts it."""

    scheme: str
    login: str | None
    """What stands before the first @ that no / precedes."""
    hosts: str
    path: str
    """With its slash; empty when there is none."""
    parameters: tuple[str, ...]

    @property
    def base(self) -> str:
        """Everything before the parameters."""
        login = "" if self.login is None else f"{self.login}@"
        return f"{self.scheme}{login}{self.hosts}{self.path}"

    @property
    def has_plain_hosts(self) -> bool:
        """Whether hosts and ports can be such."""
        return _is_plain(self.hosts, _HOSTS)


def split_url(url: str) -> UrlParts:
    """Cut `scheme://login@hosts/path?parameters`, whatever stands in it."""
    start = url.find("://") + 3
    scheme, rest = url[:start], url[start:]
    login: str | None = None
    before, at, behind = rest.partition("@")
    if at and "/" not in before:
        login, rest = before, behind
    place, _, query = rest.partition("?")
    hosts, slash, path = place.partition("/")
    parameters = tuple(part for part in query.split("&") if part)
    return UrlParts(scheme=scheme, login=login, hosts=hosts, path=slash + path, parameters=parameters)


def is_plain(parts: UrlParts) -> bool:
    """Whether no part of a password can have strayed into another part of the URL, so that the driver,
    whose errors quote every part but passwords, can be quoted in turn."""
    return _base_is_plain(parts) and all(
        _key(part) in _SECRETS or _shown_parameter(part) == part for part in parts.parameters
    )


def shown_url(url: object) -> str:
    """The URL with everything masked that is or may be part of a password, whatever it was meant to be."""
    text = str(url)
    if text.startswith(("postgresql://", "postgres://")):
        return _shown_postgres_url(text)
    scheme = _SCHEME.match(text)
    start = scheme.end() if scheme else 0
    rest = text[start:]
    is_file = text.startswith("sqlite:///") and not {"@", "?"} & set(rest) and rest.isprintable()
    is_ours = scheme is None and _WITHOUT_SLASHES.fullmatch(rest)
    if not is_file and not is_ours and not _FILE_OR_WORD.fullmatch(rest):
        rest = MASK
    return text[:start] + rest[:_LONGEST_WORD]


def unknown_parameters(url: str, known: Collection[str]) -> str:
    """What to say of those parameters of a URL of PostgreSQL that are none, which are masked where it is
    shown; "": nothing. Only their like among the known ones is named: they may be parts of a password."""
    parts = split_url(url)
    unknown = [_key(part) for part in parts.parameters if _key(part) not in known]
    if not unknown or not _base_is_plain(parts):
        return ""
    alike = [name for key in unknown for name in difflib.get_close_matches(key.lower(), known, n=1)]
    hint = f"; did you mean {', '.join(dict.fromkeys(alike))}?" if alike else "."
    return f"A parameter that is shown as {MASK} is none that libpq or qml-mp knows{hint}"


def without_passwords(text: str, *, shown: str = "") -> str:
    """A text that quotes what somebody typed, with the URLs in it as they may be seen.

    `shown`: a URL that is so already, as a storage's own: it stays, and so does the sentence behind it.
    Behind another, what goes on up to an @ may be a password, and is masked.
    """
    known = re.compile(rf"{re.escape(shown)}(?=[).,;]*(?:\s|$))" if shown else "(?!)")
    pieces: list[str] = []
    done = 0
    for start, end in _urls_in(text, known):
        pieces += text[done:start], _shown_in_text(text[start:end])
        done = end
    return "".join([*pieces, text[done:]])


def _urls_in(text: str, known: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    """Where each begins and ends that is not known. However many there are, a line is searched once for what
    may end a password."""
    done = searched = last_at = 0
    while (colon := text.find("://", done)) >= 0:
        before, place = text[done:colon], colon + 3
        scheme = before[len(before.rstrip(_SCHEME_CHARACTERS)) :].lstrip("0123456789+.-")
        start, done = colon - len(scheme), place
        if found := known.match(text, start):
            done = found.end()
        elif scheme:
            if place > searched:
                searched = _end_of(_PASSWORD_IN_TEXT, text, place)
                last_at = _last_at(text, place, searched)
            user = _end_of(_USER_IN_TEXT, text, place)
            if 0 <= user <= last_at:
                place = last_at + 1
            if (end := _end_of(_PLACE_IN_TEXT, text, place)) >= 0:
                yield start, end
                done = end


def _last_at(text: str, start: int, end: int) -> int:
    """Where the last @ is behind which a place stands; -1: nowhere."""
    at = text.rfind("@", start, end)
    while at >= 0 and _end_of(_PLACE_IN_TEXT, text, at + 1) < 0:
        at = text.rfind("@", start, at)
    return at


def _end_of(pattern: re.Pattern[str], text: str, start: int) -> int:
    """-1: it does not match there."""
    found = pattern.match(text, start)
    return -1 if found is None else found.end()


def _shown_in_text(url: str) -> str:
    """Nothing of what may be two URLs: the place of the one would be shown as that of the other."""
    return f"{url.partition('://')[0]}://{MASK}" if _NEXT_URL.search(url) else shown_url(url)


def _shown_postgres_url(url: str) -> str:
    parts = split_url(url)
    if not _base_is_plain(parts):
        return _shown_by_last_at(parts.scheme, url[len(parts.scheme) :])
    base = f"{parts.scheme}{_shown_login(parts.login)}{parts.hosts}{parts.path}"
    shown = [_shown_parameter(part) for part in parts.parameters]
    return f"{base}?{'&'.join(shown)}" if shown else base


def _base_is_plain(parts: UrlParts) -> bool:
    login = parts.login or ""
    return (
        _is_plain(login.partition(":")[0], _USER)
        and not _PARAMETERS_IN_LOGIN.search(login)
        and parts.has_plain_hosts
        and _is_plain(parts.path, _PATH)
        and not any("@" in part for part in parts.parameters if _key(part) not in _SECRETS)
    )


def _shown_by_last_at(scheme: str, rest: str) -> str:
    """A URL in whose password somebody wrote / or @ as they are: shown around it, if it is a password."""
    login, _, place = rest.rpartition("@")
    parts = split_url(f"{scheme}{place}")
    if ":" not in login or "?" in login or not _base_is_plain(parts):
        return scheme + MASK
    if not _is_plain(login.partition(":")[0], _USER):
        return scheme + MASK
    return f"{scheme}{_shown_login(login)}{_shown_postgres_url(f'{scheme}{place}').removeprefix(scheme)}"


def _shown_login(login: str | None) -> str:
    if login is None:
        return ""
    user, colon, _ = login.partition(":")
    return f"{user}{colon}{MASK if colon else ''}@"


def _shown_parameter(part: str) -> str:
    key, value = _key(part), part.partition("=")[2]
    if key in _SECRETS:
        return f"{key}={MASK}"
    if key in _PLACES and _is_plain(value, _VALUE):
        return part
    if key == "options" and _is_plain(value, _SESSION):
        return part
    return f"{key}={MASK}" if key in _PLACES or key == "options" else MASK


def _key(part: str) -> str:
    return unquote(part.partition("=")[0])


def _is_plain(text: str, forms: tuple[re.Pattern[str], re.Pattern[str]]) -> bool:
    written, decoded = forms
    return bool(written.fullmatch(text) and decoded.fullmatch(unquote(text)))
