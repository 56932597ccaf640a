"""Worker: the event loop that plain jobs find, and by what loops hear of signals, as that child processes
have ended: the descriptor and the watcher, as the app has set them at import for a loop of its own, and a
handler that goes with the job that has set it.
"""

from __future__ import annotations

import signal
import sys
from typing import Any

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


class LoopOfThread:
    """What `asyncio.get_event_loop()` gives to plain jobs: the newest that the app or a job has set, while it
    is open, as clients keep it. `asyncio.run()` leaves none, and later jobs that ask for one would fail."""

    def __init__(self) -> None:
        self._newest: Any = None
        self.put_back()

    def put_back(self) -> None:
        """Have it set. Where there is none, one is made for who asks, as in a new process (until 3.14)."""
        events = sys.modules.get("asyncio.events")
        local: Any = getattr(getattr(events, "_event_loop_policy", None), "_local", None)
        if local is None:
            return
        loops = (getattr(local, "_loop", None), self._newest)
        self._newest = next((loop for loop in loops if loop is not None and not loop.is_closed()), None)
        # `set_event_loop` would also attach the child watcher to it.
        local._loop, local._set_called = self._newest, self._newest is not None


def close_watcher_of(handler: object) -> None:
    """To be called before this handler of a signal goes. asyncio's MultiLoopChildWatcher sets its own at its
    first use, and takes it for set until it is closed: the next job would wait for its child for ever."""
    watcher = getattr(handler, "__self__", None)
    kind = getattr(sys.modules.get("asyncio"), "MultiLoopChildWatcher", None)  # until Python 3.14
    if kind is not None and isinstance(watcher, kind):
        watcher.close()
