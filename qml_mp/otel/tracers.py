"""Client and worker: the tracer of this process, and the ids of attempts."""

from __future__ import annotations

import copy
import logging
import os
import threading
from collections.abc import Callable
from datetime import timedelta
from hashlib import blake2b
from importlib import import_module
from typing import Any

from opentelemetry import trace

from qml_mp.core.job import ClaimKey
from qml_mp.storage.connection import fork_guard

logger = logging.getLogger(__name__)

Provider = trace.TracerProvider | Callable[[], trace.TracerProvider] | None


class Tracers:
    """Those of one provider, which may be made anew in each process."""

    def __init__(self, provider: Provider) -> None:
        """None: the global one, whichever that is when a span begins."""
        self.given = provider
        self.begin_in_child()
        fork_guard().watch_other(self)
        self._made: tuple[int, trace.TracerProvider] | None = None
        """In which process, and what."""
        self._newest: tuple[trace.TracerProvider, trace.Tracer] | None = None

    def begin_in_child(self) -> None:
        """Another thread may have been making a provider when this process was forked."""
        self._making = threading.Lock()

    def provider(self) -> trace.TracerProvider:
        """The provider of this process. Raises what the function raises that makes it."""
        given = self.given
        if given is None:
            return trace.get_tracer_provider()
        if not callable(given):
            return given
        made, pid = self._made, os.getpid()
        if made is None or made[0] != pid:
            with self._making:
                if self._made is None or self._made[0] != pid:
                    self._made = pid, given()
                made = self._made
        return made[1]

    def tracer(self) -> trace.Tracer:
        """For spans with ids of their own."""
        provider, newest = self.provider(), self._newest
        if newest is None or newest[0] is not provider:
            package = import_module("qml_mp")  # which names what stands above this
            self._newest = newest = provider, provider.get_tracer("qml_mp", package.__version__)
        return newest[1]

    def tracer_of(self, key: ClaimKey) -> trace.Tracer:
        """For the span of one attempt, whose ids anybody can tell who knows its claim: so the process that
        exports it in place of a dead worker exports the very span that others have as their parent. Where the
        provider is not that of the SDK, ids are random, and attributes alone tell what belongs together."""
        tracer = self.tracer()
        if not hasattr(tracer, "id_generator"):
            return tracer
        alike: Any = copy.copy(tracer)
        alike.id_generator = _IdsOfClaim(key)
        return alike  # type: ignore[no-any-return]

    def flush(self, *, within: timedelta) -> bool:
        """Export what has ended; False when it took longer, or raised. What an exporter gives up, the SDK
        tells nobody. It waits as long as its exporter does, so it is done in a thread that nobody waits for
        any longer."""
        try:
            flush = getattr(self.provider(), "force_flush", None)
        except Exception:
            logger.exception("The tracer provider cannot be made")
            return False
        if flush is None:
            return True  # nothing is kept anywhere
        done: list[bool] = []
        milliseconds = round(within.total_seconds() * 1000)

        def run() -> None:
            try:
                done.append(flush(milliseconds) is not False)
            except Exception:
                logger.exception("Spans could not be exported")

        thread = threading.Thread(target=run, name="qml-mp: flush of spans", daemon=True)
        thread.start()
        thread.join(within.total_seconds())
        return done == [True]


class _IdsOfClaim:
    """In place of the SDK's generator of ids, which begins every span that it makes anew."""

    def __init__(self, key: ClaimKey) -> None:
        digest = blake2b(f"{key.job_id} {key.claim_seq}".encode(), digest_size=24).digest()
        self._trace_id = int.from_bytes(digest[:16]) or 1
        self._span_id = int.from_bytes(digest[16:]) or 1

    def generate_trace_id(self) -> int:
        return self._trace_id

    def generate_span_id(self) -> int:
        return self._span_id

    def is_trace_id_random(self) -> bool:
        """As good as random: the ids of jobs are, and this is a hash."""
        return True
