"""Worker: the descriptor by which an event loop hears of signals, as the app has set it at import.

It is kept for a loop of the app's own, which hears by it that child processes have ended.
"""

from __future__ import annotations

import signal

from qml_mp.host import identity_of_file


class WakeUpDescriptor:
    """As it is when this is made, and looked at after jobs."""

    def __init__(self) -> None:
        self._fd = signal.set_wakeup_fd(-1)
        self._file = identity_of_file(self._fd)
        self.put_back()

    def put_back(self) -> bool:
        """Have it as it was, or none where it was closed: its number may be that of another file, of storage
        too. Whether it was so; `ValueError` where a job has made it wait (`os.set_blocking`)."""
        if self._file is None or identity_of_file(self._fd) != self._file:
            self._fd, self._file = -1, None
        # Between jobs nobody reads what is written there: it may be full, and that is no matter.
        return signal.set_wakeup_fd(self._fd, warn_on_full_buffer=False) == self._fd
