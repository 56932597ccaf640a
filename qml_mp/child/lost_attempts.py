"""Worker: exports the spans of attempts whose worker died, between two jobs. A supervisor could not: it runs
no user code, and the tracer is the program's."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

from qml_mp.child.told_once import ToldOnce
from qml_mp.errors import StorageError
from qml_mp.processing.tracing import Tracing
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Fetch

_LOOK_EVERY_S = 1.0
_LEASE = timedelta(minutes=1)


class LostAttemptExport:
    """Those that this worker exports."""

    def __init__(
        self, storage: Storage, tracing: Tracing | None, *, fetch: Fetch, look: Callable[[], object]
    ) -> None:
        """`fetch` says who this worker is, and which methods it knows. `look` has it read its pipe: an
        exporter may take long for each span, and the worker must not be taken for one that hangs."""
        self._storage = storage
        self._tracing = tracing
        self._fetch = fetch
        self._look = look
        self._next_at = 0.0
        self._may_be_more = False
        self._log = ToldOnce("The spans of lost attempts")

    @property
    def wait_s(self) -> float:
        """How long an idle worker waits until it looks again, unless it is woken."""
        return max(0.0, self._next_at - time.monotonic()) if self._may_be_more else float("inf")

    @property
    def is_due(self) -> bool:
        """Whether to look for some now."""
        return self._tracing is not None and time.monotonic() >= self._next_at

    def export(self) -> None:
        """Export those that are due, if there are any, and forget these once that worked: they have the ids
        of the attempts, so that one which is exported twice is one. Where it fails they are due again later;
        what was handed over before a flush that failed, the SDK may have dropped. Where the exporter gives up
        in time, that counts as worked: the SDK does not say so. No job is in hand."""
        if self._tracing is None:
            return
        try:
            self._may_be_more = self._export(self._tracing)
        except StorageError as error:
            self._may_be_more = False
            self._log.refused(error)
        else:
            self._log.worked()
        self._next_at = time.monotonic() + _LOOK_EVERY_S

    def _export(self, tracing: Tracing) -> bool:
        worker_id = self._fetch.worker_id
        taken = self._storage.take_lost_attempts(worker_id, self._fetch.methods or (), lease=_LEASE)
        if not taken:
            return False
        for each in taken:
            tracing.lost(each)
            self._look()
        if tracing.flush():
            self._storage.end_lost_attempts(worker_id, [each.key for each in taken])
        return True
