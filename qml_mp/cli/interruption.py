"""Client: a command that has to clean up, however it is told to end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def interrupted_once() -> Iterator[None]:
    """In the block the first SIGINT, SIGTERM or SIGHUP raises `KeyboardInterrupt`. Later ones are ignored, so
    that nothing breaks off what cleans up. A signal that whoever started us has ignored stays ignored."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    heeded = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    is_interrupted = False  # written by the signal handler

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal is_interrupted
        is_interrupted = True
        for number in heeded:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in heeded:
        signal.signal(number, interrupt)
    try:
        yield
    except Exception as error:
        if is_interrupted:  # in the middle of a statement, which the driver then makes an error of
            raise KeyboardInterrupt from error
        raise
    finally:
        for number in heeded:
            signal.signal(number, before[number])
