"""Client: the same work by the standard library's pool of processes, which stores and recovers nothing."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from qml_mp.cli.demo import tasks
from qml_mp.cli.demo.progress import Progress

_WARM_UP_S = 0.1


def run_in_pool(paths: Sequence[str], *, processes: int, progress: Progress) -> float:
    """Seconds from the first submit to the last result, in processes that are up before."""
    pool = ProcessPoolExecutor(processes, initializer=_leave_signals_to_the_parent)
    try:
        list(pool.map(time.sleep, [_WARM_UP_S] * processes))
        began = time.monotonic()
        for number, _ in enumerate(pool.map(tasks.digest, paths), start=1):
            progress.show(f"{number}/{len(paths)} done by ProcessPoolExecutor")
        took_s = time.monotonic() - began
    finally:
        pool.shutdown(cancel_futures=True)
    progress.clear()
    return took_s


def _leave_signals_to_the_parent() -> None:
    """In the pool's processes: Ctrl-C goes to all processes of a terminal."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
