"""Worker: keeps the thread pools of native libraries from multiplying with the workers.

Eight workers whose BLAS starts a thread per core run 64 threads on eight cores, and slower than
eight. The libraries read these variables when they are loaded, so they are set before the app is.
"""

from __future__ import annotations

import os

VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


def cap_native_threads(workers: int) -> None:
    """Give each worker its share of the cores; a variable that the user has set stays as it is."""
    share = max(1, _cores() // max(1, workers))
    for name in VARIABLES:
        os.environ.setdefault(name, str(share))


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
