"""Every process, no I/O: where a PostgreSQL URL leads, checked once, and how it is shown to people."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from urllib.parse import unquote

from qml_mp.errors import ConfigurationError
from qml_mp.storage.shown_url import is_plain, shown_url, split_url

DEFAULT_SCHEMA = "qml_mp"
OURS = ("schema", "pooler")
"""Parameters that libpq does not know."""
_SCHEMA = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,55}")  # so that the channel fits into 63 bytes too
_FORM = (
    "It must look like postgresql://user:password@host:5432/database?parameter=value, with parameters of "
    "libpq, and special characters of user and password written as %XX (@ is %40, : is %3A, / is %2F, "
    "? is %3F, # is %23, % is %25)."
)


class Pooler(StrEnum):
    """What a pooler on the way keeps for a client."""

    SESSION = "session"
    """One session, as long as the client is connected: as good as none."""
    TRANSACTION = "transaction"
    """One transaction: the next one may be another session's, and what was set or prepared is not there."""


@dataclass(slots=True)
class NewestHost:
    """Which of a URL's hosts the newest connection leads to. Whoever connects writes and reads it, and a
    forked worker begins with what its supervisor knows."""

    place: tuple[object, ...] | None = None
    """None: there was no connection yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A database and a schema in it."""

    url: str = field(repr=False)
    """What a child process opens the same storage with; names the schema unless it is the default."""
    display_url: str
    """The same with passwords masked."""
    conninfo: str = field(repr=False)
    """The URL without what libpq does not know."""
    is_plain: bool
    """Whether errors of the driver about this URL can be quoted: no part of a password can be in them."""
    schema: str
    channel: str
    """Where commits are announced with NOTIFY."""
    ended_channel: str
    """Where the ends of jobs are, for which somebody waits."""
    pooler: Pooler | None = None
    """What the URL says of one; None: nothing, so that each connection looks for itself."""
    newest: NewestHost = field(default_factory=NewestHost, compare=False, repr=False)

    @property
    def quoted_schema(self) -> str:
        """As an identifier. Its name holds no quotation mark: see `check_schema_name`."""
        return f'"{self.schema}"'

    @property
    def quoted_channel(self) -> str:
        """As an identifier."""
        return f'"{self.channel}"'


@lru_cache  # so that forked workers need not read it again: what that touches would be memory of their own
def parse_target(url: str) -> Target:
    """Read `postgresql://user:password@host:port/database?schema=name&pooler=transaction&…`.

    The schema is that of the URL, else `qml_mp`. The rest of the query is libpq's and is passed on as
    it is. Raises `ConfigurationError` for a scheme, a place, a schema name or a pooler that cannot be.
    """
    if not url.startswith(("postgresql://", "postgres://")):
        raise ConfigurationError(
            f"The storage URL {shown_url(url)!r} is not one of PostgreSQL; it must begin with postgresql://"
        )
    parts = split_url(url)
    if not parts.has_plain_hosts or not url.isprintable():
        raise unreadable(shown_url(url))
    ours = {
        name: value for name, _, value in (part.partition("=") for part in parts.parameters) if name in OURS
    }
    for_libpq = [part for part in parts.parameters if part.partition("=")[0] not in OURS]
    schema = check_schema_name(unquote(ours.get("schema", DEFAULT_SCHEMA)))
    pooler = _pooler(unquote(ours["pooler"])) if "pooler" in ours else None
    kept = [f"schema={schema}"] if schema != DEFAULT_SCHEMA else []
    kept += [f"pooler={pooler}"] if pooler is not None else []
    full_url = _joined(parts.base, [*for_libpq, *kept])
    return Target(
        url=full_url,
        display_url=shown_url(full_url),
        is_plain=is_plain(parts),
        conninfo=_joined(parts.base, for_libpq),
        schema=schema,
        channel=f"qml_mp.{schema}",
        ended_channel=f"qml_mp/{schema}",
        pooler=pooler,
    )


def check_schema_name(name: str) -> str:
    """Return the name of a schema, or raise `ConfigurationError` when it cannot be one."""
    if not _SCHEMA.fullmatch(name) or name.lower().startswith("pg_"):
        raise ConfigurationError(
            f"The schema name {name!r} is not usable; use 1 to 56 letters, digits, _ or -, beginning with "
            "a letter or _ and not with pg_."
        )
    return name


def unreadable(shown: str, why: str = "") -> ConfigurationError:
    """The error for a URL that neither we nor libpq can read; `shown` is what may be seen of it, and `why` a
    sentence."""
    return ConfigurationError(
        " ".join(filter(None, [f"The storage URL {shown!r} cannot be read.", why, _FORM]))
    )


def _pooler(value: str) -> Pooler:
    try:
        return Pooler(value)
    except ValueError:
        raise ConfigurationError(
            f"The storage URL says pooler={value!r}, which may be transaction or session. Leave it out when "
            "there is no pooler (PgBouncer) before the server, or when its pool_mode is not known."
        ) from None


def _joined(base: str, parameters: list[str]) -> str:
    return f"{base}?{'&'.join(parameters)}" if parameters else base
