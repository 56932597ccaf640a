"""Worker: by what event loops hear of signals, as that child processes have ended: the descriptor and the
watcher, as the app has set them at import for a loop of its own, and a handler that goes with the job that
has set it.
"""

from __future__ import annotations

import signal
import sys

from qml_mp.host import identity_of_file
from qml_mp.processing.coroutines import attach_watcher, child_watcher


class WakeUpDescriptor:
    """As it is when this is made, and looked at after jobs."""

    def __init__(self) -> None:
        self._watcher = child_watcher()
        self._watched_loop = getattr(self._watcher, "_loop", None)
        self._fd = signal.set_wakeup_fd(-1)
        self._file = identity_of_file(self._fd)
        self.put_back()

    def put_back(self) -> bool:
        """Have it as it was, or none where it was closed: its number may be that of another file, of storage
        too. Whether it was so; `ValueError` where a job has made it wait (`os.set_blocking`)."""
        was_watched = self._watch_again()
        if self._file is None or identity_of_file(self._fd) != self._file:
            self._fd, self._file = -1, None
        # Between jobs nobody reads what is written there: it may be full, and that is no matter.
        return signal.set_wakeup_fd(self._fd, warn_on_full_buffer=False) == self._fd and was_watched

    def _watch_again(self) -> bool:
        """Have the watcher serve the app's loop, from which `asyncio.run()` in a plain job has taken it.
        Whether it did so."""
        loop = self._watched_loop
        if loop is None or self._watcher._loop is loop or loop.is_closed():
            return True
        attach_watcher(self._watcher, loop)
        return False


def close_watcher_of(handler: object) -> None:
    """To be called before this handler of a signal goes. asyncio's MultiLoopChildWatcher sets its own at its
    first use, and takes it for set until it is closed: the next job would wait for its child for ever."""
    watcher = getattr(handler, "__self__", None)
    kind = getattr(sys.modules.get("asyncio"), "MultiLoopChildWatcher", None)  # until Python 3.14
    if kind is not None and isinstance(watcher, kind):
        watcher.close()
