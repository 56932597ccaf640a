"""Every process, no I/O: where a PostgreSQL URL leads, checked once, and how it is shown to people."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from qml_mp.errors import ConfigurationError

DEFAULT_SCHEMA = "qml_mp"
_SCHEMA = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,55}")  # so that the channel fits into 63 bytes too
_SECRET_PARAMETER = re.compile(r"(?i)\b((?:ssl)?password)=[^&]*")
_MASK = "***"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A database and a schema in it."""

    url: str
    """What a child process opens the same storage with; names the schema unless it is the default."""
    display_url: str
    """The same with passwords masked."""
    conninfo: str
    """The URL without what libpq does not know."""
    schema: str
    channel: str
    """Where commits are announced with NOTIFY."""


def parse_target(url: str, *, schema: str | None = None) -> Target:
    """Read `postgresql://user:password@host:port/database?schema=name&…`.

    The schema is that of the argument, else that of the URL, else `qml_mp`. The rest of the query
    is libpq's and is passed on as it is. Raises `ConfigurationError` for a scheme or a schema name
    that cannot be.
    """
    base, _, query = url.partition("?")
    if not base.startswith(("postgresql://", "postgres://")):
        raise ConfigurationError(
            f"The storage URL {mask_url(url)!r} is not one of PostgreSQL; it must begin with postgresql://"
        )
    parts = [part for part in query.split("&") if part]
    named = [unquote(part.removeprefix("schema=")) for part in parts if part.startswith("schema=")]
    for_libpq = [part for part in parts if not part.startswith("schema=")]
    name = check_schema_name(schema or (named[-1] if named else DEFAULT_SCHEMA))
    full_url = _joined(base, [*for_libpq, *([f"schema={name}"] if name != DEFAULT_SCHEMA else [])])
    return Target(
        url=full_url,
        display_url=mask_url(full_url),
        conninfo=_joined(base, for_libpq),
        schema=name,
        channel=f"qml_mp.{name}",
    )


def check_schema_name(name: str) -> str:
    """Return the name of a schema, or raise `ConfigurationError` when it cannot be one."""
    if not _SCHEMA.fullmatch(name) or name.lower().startswith("pg_"):
        raise ConfigurationError(
            f"The schema name {name!r} is not usable; use 1 to 56 letters, digits, _ or -, beginning with "
            "a letter or _ and not with pg_."
        )
    return name


def mask_url(url: str) -> str:
    """The URL with its passwords masked, however badly it is formed."""
    base, mark, query = url.partition("?")
    scheme, separator, rest = base.partition("://")
    login, at, place = rest.rpartition("@")
    user, colon, _ = login.partition(":")
    masked = f"{scheme}{separator}{user}{colon}{_MASK if colon else ''}{at}{place}"
    return masked + mark + _SECRET_PARAMETER.sub(rf"\1={_MASK}", query)


def _joined(base: str, parameters: list[str]) -> str:
    return f"{base}?{'&'.join(parameters)}" if parameters else base
