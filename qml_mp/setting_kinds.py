"""Anywhere, no I/O: how each kind of setting may be written, and its bounds."""

from __future__ import annotations

import abc
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar

from qml_mp.errors import ConfigurationError, shown
from qml_mp.units import format_duration, format_size, parse_duration, parse_size

_NAME = re.compile(r"[A-Za-z0-9_.:@-]{1,100}")
_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9._-]{1,253})):([0-9]{1,5})")
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}")
_ALL_QUEUES = "*"  # no queue can have this name
_MAX_QUEUES = 100
_SHORTEST_TOKEN = 16
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})

WEB_MODULES = ("jinja2", "python_multipart", "starlette", "uvicorn")
"""What the page is made of: all that the extra `web` brings."""


class Kind(abc.ABC):
    """How a setting may be written: in code, as text (the environment, a flag), in a settings file."""

    in_shell: ClassVar[str]
    """What the help of a flag calls the value."""

    @property
    def in_file(self) -> tuple[str, Sequence[type]]:
        """What a settings file may hold, for people and as types."""
        return "a number or text", (int, float, str)

    @abc.abstractmethod
    def check(self, value: Any, what: str) -> object:
        """The value as `ServerConfig` holds it. `ConfigurationError` names `what`, value and bound."""

    def from_text(self, text: str, what: str) -> object:  # noqa: ARG002
        """What `check` then takes or refuses."""
        return text


class Name(Kind):
    in_shell = "NAME"
    in_file = ("text", (str,))

    def check(self, value: Any, what: str) -> str:
        if not isinstance(value, str) or not _NAME.fullmatch(value):
            raise refusal(what, value, "1 to 100 letters, digits or any of _ . : @ -")
        return value


@dataclass(frozen=True, slots=True)
class Count(Kind):
    in_shell = "N"
    low: int
    high: int

    @property
    def in_file(self) -> tuple[str, Sequence[type]]:
        return self._bound, (int,)

    def check(self, value: Any, what: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not self.low <= value <= self.high:
            raise refusal(what, value, self._bound)
        return value

    def from_text(self, text: str, what: str) -> object:  # noqa: ARG002
        return int(text) if re.fullmatch(r"[+-]?\d{1,18}", text.strip()) else text

    @property
    def _bound(self) -> str:
        return f"a whole number from {self.low} to {self.high}"


@dataclass(frozen=True, slots=True)
class Time(Kind):
    in_shell = "DURATION"
    at_least: timedelta = timedelta(0)

    def check(self, value: Any, what: str) -> timedelta:
        duration = parse_duration(value, what=what)
        if duration < self.at_least:
            raise refusal(what, duration, f"at least {format_duration(self.at_least)}")
        return duration


@dataclass(frozen=True, slots=True)
class Size(Kind):
    in_shell = "SIZE"
    at_least: int = 0

    def check(self, value: Any, what: str) -> int:
        size_bytes = parse_size(value, what=what)
        if size_bytes < self.at_least:
            raise refusal(what, value, f"at least {format_size(self.at_least)} (no limit: leave it out)")
        return size_bytes


class Address(Kind):
    """Held as it was written; `host_and_port` takes it apart."""

    in_shell = "HOST:PORT"
    in_file = ('text such as "127.0.0.1:9464"', (str,))

    def check(self, value: Any, what: str) -> str:
        if not isinstance(value, str) or not (found := _ADDRESS.fullmatch(value)) or int(found[3]) > 65535:
            bound = 'HOST:PORT such as "127.0.0.1:9464" or "[::1]:9464" (port 0: a free one)'
            raise refusal(what, value, bound)
        return value


class Hosts(Kind):
    """Names of machines, without ports. A flag may be given once for each."""

    in_shell = "NAME"
    in_file = ('a list of names such as ["jobs.example.com"]', (list,))

    def check(self, value: Any, what: str) -> tuple[str, ...]:
        is_list = isinstance(value, Sequence) and not isinstance(value, str)
        if not is_list or not all(isinstance(name, str) and _HOST.fullmatch(name) for name in value):
            raise refusal(what, value, 'a list of names without ports, such as ["jobs.example.com"]')
        return tuple(value)

    def from_text(self, text: str, what: str) -> tuple[str, ...]:  # noqa: ARG002
        return tuple(name.strip() for name in text.split(","))


class Switch(Kind):
    in_shell = "BOOL"
    in_file = ("true or false", (bool,))

    def check(self, value: Any, what: str) -> bool:
        if not isinstance(value, bool):
            raise refusal(what, value, "True or False")
        return value

    def from_text(self, text: str, what: str) -> bool:
        folded = text.strip().lower()
        if folded not in _TRUE | _FALSE:
            raise refusal(what, text, "true or false")
        return folded in _TRUE


class Queues(Kind):
    """In code and in a file, no name at all is every queue; text says "*". A flag may be given for each."""

    in_shell = "A,B"
    in_file = ('a list of names such as ["default", "images"] (empty serves all)', (list,))

    def check(self, value: Any, what: str) -> tuple[str, ...]:
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise refusal(what, value, 'a list of names such as ["default", "images"] (empty serves all)')
        given = tuple(value)
        if _ALL_QUEUES in given:
            bound = 'names without "*": an empty list serves all, or "*" alone where it is text'
            raise refusal(what, list(given), bound)
        names = tuple(dict.fromkeys(map(check_queue_name, given)))
        if len(names) > _MAX_QUEUES:
            raise refusal(what, f"{len(names)} names", f"at most {_MAX_QUEUES} names (empty serves all)")
        return names

    def from_text(self, text: str, what: str) -> tuple[str, ...]:
        names = tuple(name.strip() for name in text.split(",") if name.strip())
        if not names:
            hint = 'give names such as "default,images", or "*" for all.'
            raise ConfigurationError(f"{what} names no queue; {hint}")
        return () if names == (_ALL_QUEUES,) else names


def host_and_port(address: str) -> tuple[str, int]:
    """The parts of an address that a setting holds. Raises `ConfigurationError` for anything else."""
    found = _ADDRESS.fullmatch(Address().check(address, "address"))
    assert found is not None
    return found[1] or found[2], int(found[3])


def check_web_token(token: str) -> None:
    """Raise `ConfigurationError` for a token of the page that can be guessed."""
    if len(token) < _SHORTEST_TOKEN:
        raise ConfigurationError(
            f"The token of the page has {len(token)} characters; it needs {_SHORTEST_TOKEN} at least. "
            'One can be made by: python -c "import secrets; print(secrets.token_urlsafe())"'
        )


def check_reach(host: str, *, has_auth: bool, ways: str) -> None:
    """Raise `ConfigurationError` when others than this machine could reach a page that asks nobody who he is.
    `ways`: what has it ask, for people."""
    if not has_auth and not _is_loopback(host):
        raise ConfigurationError(
            f"The page would be open to everybody who can reach {host}, with all that it can change. Set "
            f"{ways}, or bind to 127.0.0.1."
        )


def _is_loopback(host: str) -> bool:
    from ipaddress import ip_address  # of no use to a server without a page

    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def check_queue_name(queue: str) -> str:
    """Return the queue's name, or raise `ConfigurationError` when it cannot be one."""
    if not isinstance(queue, str) or not _NAME.fullmatch(queue):
        raise ConfigurationError(
            f"The queue name {shown(queue)} is not usable; use 1 to 100 letters, digits or any of _ . : @ -"
        )
    return queue


def refusal(what: str, value: object, bound: str) -> ConfigurationError:
    """To be raised: this value is not within the bound."""
    return ConfigurationError(f"{what} is {shown(value)}; it must be {bound}.")
