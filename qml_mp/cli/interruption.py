"""Client: commands that must not be broken off anywhere, however they are told to end."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def interrupted_once() -> Iterator[None]:
    """In the block the first SIGINT, SIGTERM or SIGHUP raises `KeyboardInterrupt`. Later ones are ignored, so
    that nothing breaks off what cleans up. A signal that whoever started us has ignored stays ignored."""
    is_interrupted = False  # written by the signal handler

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal is_interrupted
        is_interrupted = True
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    with _handled_by(interrupt):
        try:
            yield
        except Exception as error:
            if is_interrupted:  # in the middle of a statement, which the driver then makes an error of
                raise KeyboardInterrupt from error
            raise


@contextmanager
def stopped_between() -> Iterator[Callable[[], bool]]:
    """Gives whether to stop: in the block the first SIGINT, SIGTERM or SIGHUP breaks nothing off and is only
    told so; the next one raises `KeyboardInterrupt`. An ignored signal stays ignored."""
    is_told = False  # written by the signal handler

    def tell(_number: int, _frame: FrameType | None) -> None:
        nonlocal is_told
        if is_told:
            raise KeyboardInterrupt
        is_told = True

    with _handled_by(tell):
        yield lambda: is_told


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    heeded = [number for number, was in before.items() if was is not signal.SIG_IGN]
    for number in heeded:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in heeded:
            signal.signal(number, before[number])
