"""Web process: ends connections whose request does not come in time; uvicorn bounds only idle ones."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_WITHIN_S = 10
_LOOK_EVERY_S = 1.0
_SENTENCE = f"The head of the request did not come within {HEAD_WITHIN_S} s.\n".encode()
_ANSWER = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: text/plain; charset=utf-8\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(_SENTENCE), _SENTENCE)
)


class BoundedProtocol(H11Protocol):
    """Also the head of a request has its time."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._waits_since: float | None = None
        """For the rest of a head; None: for none."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]  # as uvicorn has it
        self._waits_since = self.loop.time()
        self._look()

    def data_received(self, data: bytes) -> None:
        if self._waits_since is None and not self._answers():
            self._waits_since = self.loop.time()
        super().data_received(data)

    def _look(self) -> None:
        if self.transport.is_closing():
            return
        if self._answers() or (self.cycle is not None and not self.conn.trailing_data[0]):
            self._waits_since = None
        elif self._waits_since is not None and self.loop.time() - self._waits_since >= HEAD_WITHIN_S:
            if self.conn.trailing_data[0]:  # a browser opens connections ahead, and sends nothing
                self.transport.write(_ANSWER)
            self.transport.close()
            return
        self.loop.call_later(_LOOK_EVERY_S, self._look)

    def _answers(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete
