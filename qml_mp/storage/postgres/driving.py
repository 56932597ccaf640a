"""Every process: psycopg's exchanges with the server, waited for by a `StorageWait`.

psycopg writes every exchange as a generator that yields what it waits for. Its own loops know
nothing else to wait for than the socket; these ask the `StorageWait`.
"""

from __future__ import annotations

import select
import time
from collections.abc import Generator, Mapping
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


_LATE = "the server did not reply in time"
_LATE_AT_CONNECTING = f"{_LATE}: a connection has {{}} s, or as many as connect_timeout= in the URL says"
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

    The look-up of a host's name alone is not driven: the C library does it in one call.
    """
    timeout_s = timeout_from_conninfo(parameters)
    late = _LATE_AT_CONNECTING.format(timeout_s)
    errors: list[psycopg.Error] = []
    attempts = conninfo_attempts(parameters)
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


def _place_of(attempt: Mapping[str, Any]) -> tuple[object, ...]:
    return attempt.get("host"), attempt.get("hostaddr"), attempt.get("port")


def _check(exchange: Generator[Any, Any, Any], waiting: StorageWait, deadline: float, late: str) -> None:
    now = time.monotonic()
    if now >= waiting.give_up_at:
        exchange.close()
        raise NoReply("there was no time left to wait for the server")
    if now >= deadline:
        exchange.close()
        raise NoReply(late)
