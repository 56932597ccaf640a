"""Tests: a TCP proxy before a real PostgreSQL server, which loses what the server says when it is told to."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType
from urllib.parse import urlsplit

_CHUNK_BYTES = 65536


class FlakyProxy:
    """Forwards to a server.

    `lose_reply(n)`: when the server says something for the n-th time from now, the connection is
    cut instead of passing it on. `lose_question(n)`: it is cut once the client has said more than so many
    bytes from now. `go_silent`: answers are no longer passed on, and nothing is cut, until `speak`.
    `slow_down(s)`: each answer is passed on so much later. `lose_long_replies(n)`: from now on a connection
    is cut when the server says more than so many bytes before it is asked something else.
    `answered_bytes`: how much was passed on so far.
    """

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._replies_until_cut = (
            0  # set by the test between two calls, counted down by the thread that answers
        )
        self._bytes_until_cut: int | None = None  # likewise, counted down by the thread that asks
        self._longest_reply_bytes: int | None = None  # set by the test, read by the threads that answer
        self.replies_lost = 0  # how many so far
        self.refused = 0  # how many connections, as the server was down
        self.answered_bytes = 0  # counted by the threads that answer, read by the test between two calls
        self._silent = threading.Event()
        self._delay_s = 0.0  # set by the test, read by the threads that answer
        self._closed = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._closing = threading.Lock()
        """Held while a socket is cut or closed: its number may be another file's right after."""

    @classmethod
    def before(cls, url: str) -> FlakyProxy:
        """One before the server of a database's URL."""
        place = urlsplit(url)
        return cls(str(place.hostname), place.port or 5432)

    def through(self, url: str) -> str:
        """The URL, by the way of this proxy."""
        place = urlsplit(url)
        user = "" if place.username is None else f"{place.username}@"
        return place._replace(netloc=f"{user}127.0.0.1:{self.port}").geturl()

    def lose_reply(self, number: int) -> None:
        self._replies_until_cut = number

    def lose_question(self, after_bytes: int) -> None:
        self._bytes_until_cut = after_bytes

    def lose_long_replies(self, longer_than_bytes: int) -> None:
        self._longest_reply_bytes = longer_than_bytes

    def go_silent(self) -> None:
        self._silent.set()

    def speak(self, *, cut: bool = True) -> None:
        """No more silence; the connections from before are cut, since part of what was said is lost. Without
        `cut`, those that have lost something stay open and silent, as behind a proxy whose server is gone."""
        self._silent.clear()  # first, or a connection that is made after the cut would lose something, too
        if cut:
            self.cut()

    def cut(self) -> None:
        """Cut every connection that there is; others may be made."""
        for open_socket in list(self._sockets):
            self._cut(open_socket)

    def slow_down(self, delay_s: float) -> None:
        self._delay_s = delay_s

    def __enter__(self) -> FlakyProxy:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cut every connection and take no more. Can be repeated."""
        self._closed.set()
        self._cut(self._listener)
        self._threads[0].join(10)
        self.cut()
        for thread in self._threads:
            thread.join(10)
        self._close(self._listener)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._server)
            except OSError:  # it is down
                self.refused += 1
                client.close()
                continue
            self._sockets += [client, server]
            thread = threading.Thread(target=self._serve, args=(client, server))
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        reply = _Reply()
        answering = threading.Thread(target=self._answer, args=(server, client, reply))
        answering.start()
        self._ask(client, server, reply)
        answering.join()
        # Not before: who is about to read a socket that is closed reads another one that has got its number.
        self._close(client, server)

    def _ask(self, client: socket.socket, server: socket.socket, reply: _Reply) -> None:
        with suppress(OSError):
            while chunk := client.recv(_CHUNK_BYTES):
                reply.length_bytes = 0
                if self._bytes_until_cut is not None:
                    self._bytes_until_cut -= len(chunk)
                    if self._bytes_until_cut < 0:
                        self._bytes_until_cut = None
                        self._cut(client)
                        break
                server.sendall(chunk)
        self._cut(server)

    def _answer(self, server: socket.socket, client: socket.socket, reply: _Reply) -> None:
        is_silent = False  # for good: who has lost something must not go on in the middle
        with suppress(OSError):
            while chunk := server.recv(_CHUNK_BYTES):
                reply.length_bytes += len(chunk)
                if reply.length_bytes > (self._longest_reply_bytes or reply.length_bytes):
                    break
                if self._replies_until_cut:
                    self._replies_until_cut -= 1
                    if not self._replies_until_cut:
                        self.replies_lost += 1
                        break
                if self._delay_s:
                    self._closed.wait(self._delay_s)
                is_silent = is_silent or self._silent.is_set()
                if not is_silent:
                    self.answered_bytes += len(chunk)
                    client.sendall(chunk)
        self._cut(client)

    def _cut(self, open_socket: socket.socket) -> None:
        with self._closing, suppress(OSError):
            open_socket.shutdown(socket.SHUT_RDWR)

    def _close(self, *ended: socket.socket) -> None:
        with self._closing:
            for each in ended:
                each.close()


class _Reply:
    """What the server says to the newest question of a connection."""

    length_bytes = 0
    """So far; set by the thread that asks, counted by the one that answers."""
