"""Every process: psycopg's exchanges with the server, waited for by a `StorageWait`.

psycopg writes every exchange as a generator that yields what it waits for. Its own loops know
nothing else to wait for than the socket; these ask the `StorageWait`.
"""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Callable, Generator, Mapping
from functools import partial
from ipaddress import ip_address
from typing import Any, TypeVar

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_attempts, make_conninfo, timeout_from_conninfo
from psycopg.generators import connect
from psycopg.waiting import Ready, Wait

from qml_mp.storage.postgres.errors import NoReply
from qml_mp.storage.postgres.target import NewestHost
from qml_mp.storage.waiting import StorageWait

_T = TypeVar("_T")
_WAIT_R, _WAIT_W = int(Wait.R), int(Wait.W)
_READY_R, _READY_W = int(Ready.R), int(Ready.W)


_NO_TIME = "there was no time left to wait for the server"
_LATE = "the server did not reply in time"
_LATE_AT_CONNECTING = f"{_LATE}: a connection has {{}} s, or as many as connect_timeout= in the URL says"
_LOOKING_UP_S = 60.0
"""The C library mostly gives up before. A look-up that takes many seconds may succeed: where a name server
that is gone stands before one that answers."""
_TAKES_WRITES = ("read-write", "primary")


class SocketWait:
    """`StorageWait` of a process that has nothing else to do meanwhile."""

    give_up_at = float("inf")

    def wait(self, fd: int, *, reading: bool, writing: bool, until: float) -> tuple[bool, bool]:
        poller = select.poll()
        poller.register(fd, (select.POLLIN if reading else 0) | (select.POLLOUT if writing else 0))
        came = sum(event for _, event in poller.poll(max(0.0, until - time.monotonic()) * 1000))
        failed = came & ~(select.POLLIN | select.POLLOUT)  # the caller's read or write raises it
        return reading and bool(came & select.POLLIN or failed), writing and bool(
            came & select.POLLOUT or failed
        )

    def call_blocking(self, call: Callable[[], str], *, until: float) -> str:  # noqa: ARG002
        return call()

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)


def drive(
    exchange: Generator[Any, Any, _T],
    waiting: StorageWait,
    *,
    deadline: float,
    fd: int | None = None,
    late: str = _LATE,
) -> _T:
    """Run the exchange to its end; its result. `fd` is the socket; an exchange that connects has
    several, and names each.

    Raises `NoReply` when the monotonic `deadline` passes, with the text `late`, or the `StorageWait` gives
    up; when it had given up before, nothing is sent.
    """
    _check(exchange, waiting, deadline, late)
    try:
        wanted = next(exchange)
        while True:
            socket, events = wanted if fd is None else (fd, wanted)
            readable, writable = waiting.wait(
                socket,
                reading=bool(events & _WAIT_R),
                writing=bool(events & _WAIT_W),
                until=deadline,
            )
            if not (readable or writable):
                _check(exchange, waiting, deadline, late)
            wanted = exchange.send((_READY_R if readable else 0) | (_READY_W if writable else 0))
    except StopIteration as ended:
        result: _T = ended.value
        return result


def connect_by_driving(
    parameters: dict[str, Any], waiting: StorageWait, *, newest: NewestHost
) -> pq.abc.PGconn:
    """Connect as `psycopg.connect` does: to each host and address in turn, each within `connect_timeout`.
    Where the one that takes writes is wanted, whichever did so last goes first: a host that is silent would
    cost every connection that time.

    What is not driven is a host's name that is in a service file alone: libpq looks it up by itself.
    """
    timeout_s = timeout_from_conninfo(parameters)
    late = _LATE_AT_CONNECTING.format(timeout_s)
    errors: list[psycopg.Error] = []
    attempts = _attempts(parameters, waiting)
    if parameters.get("target_session_attrs") in _TAKES_WRITES:  # else the first ones are to be preferred
        attempts.sort(key=lambda attempt: _place_of(attempt) != newest.place)
    for attempt in attempts:
        try:
            exchange: Generator[Any, Any, pq.abc.PGconn] = connect(make_conninfo("", **attempt))
            made = drive(exchange, waiting, deadline=time.monotonic() + timeout_s, late=late)
        except psycopg.Error as error:
            errors.append(error)
        else:
            newest.place = _place_of(attempt)
            return made
    texts = dict.fromkeys(str(error) for error in errors)  # each once, in order
    raise type(errors[-1])("; ".join(texts)) from None


def _attempts(parameters: dict[str, Any], waiting: StorageWait) -> list[dict[str, Any]]:
    """One for each host and address. The C library looks a name up in one call."""
    places = _given(parameters, "hostaddr") or _given(parameters, "host")
    if not places or all(map(_is_place, places.split(","))):  # none: libpq's own socket, or a service file's
        return conninfo_attempts(parameters)
    if time.monotonic() >= waiting.give_up_at:
        raise NoReply(_NO_TIME)
    said = waiting.call_blocking(partial(_look_up, parameters), until=time.monotonic() + _LOOKING_UP_S)
    try:
        found: list[dict[str, Any]] | str = json.loads(said)
    except ValueError:  # nothing was said, or not all of it
        raise NoReply("the look-up of its host's name had no answer") from None
    if isinstance(found, str):
        raise psycopg.OperationalError(found)
    return found


def _given(parameters: Mapping[str, Any], name: str) -> str:
    """In the URL, else in the environment, as psycopg takes it."""
    return str(parameters.get(name) or os.environ.get(f"PG{name.upper()}") or "")


def _is_place(host: str) -> bool:
    """Whether it is an address or a socket's folder, and no name."""
    try:
        return host.startswith("/") or bool(ip_address(host))
    except ValueError:
        return False


def _look_up(parameters: dict[str, Any]) -> str:
    """The attempts, or why there are none, as JSON."""
    try:
        return json.dumps(conninfo_attempts(parameters))
    except (psycopg.Error, UnicodeError) as error:  # the latter for what cannot be a name
        return json.dumps(str(error))


def _place_of(attempt: Mapping[str, Any]) -> tuple[object, ...]:
    return attempt.get("host"), attempt.get("hostaddr"), attempt.get("port")


def _check(exchange: Generator[Any, Any, Any], waiting: StorageWait, deadline: float, late: str) -> None:
    now = time.monotonic()
    if now >= waiting.give_up_at:
        exchange.close()
        raise NoReply(_NO_TIME)
    if now >= deadline:
        exchange.close()
        raise NoReply(late)
