"""Worker: how much of a job's time was its own.

Where more processes are ready to run than there are processors, a job of a moment can take long by the clock,
and would be taken for one that nobody should wait behind.
"""

from __future__ import annotations

import resource

_WHO: int | None = getattr(resource, "RUSAGE_THREAD", None)  # Linux
_SHORT_S = 0.005  # so long that a look is worth its price


class OwnTime:
    """Of the main thread, on which jobs run."""

    def __init__(self) -> None:
        self._before = _usage()

    def begin(self) -> None:
        """Jobs follow, and nothing else, until this is called again."""
        self._before = _usage()

    def of(self, took_s: float) -> float:
        """What a job that took so long by the clock has had for itself, at most. All of it when it has waited
        for anything but a processor, or where the system does not tell."""
        if took_s < _SHORT_S or self._before is None:
            return took_s
        before, self._before = self._before, _usage()
        if self._before is None or self._before.ru_nvcsw != before.ru_nvcsw:
            return took_s
        return min(took_s, _cpu_s(self._before) - _cpu_s(before))


def _usage() -> resource.struct_rusage | None:
    return None if _WHO is None else resource.getrusage(_WHO)


def _cpu_s(usage: resource.struct_rusage) -> float:
    return usage.ru_utime + usage.ru_stime
