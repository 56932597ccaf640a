"""Worker: why the app does not import, told by the user's own lines: those of the import system and of qml-mp
between them say nothing."""

from __future__ import annotations

import os
from traceback import StackSummary, TracebackException

_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_OF_IMPORTS = ("<frozen importlib", os.path.dirname(os.__file__) + "/importlib/")


def import_error_text(error: BaseException) -> str:
    """The traceback, with those of its causes, of several lines."""
    told = TracebackException.from_exception(error)
    _leave_out(told)
    return "".join(told.format())


def _leave_out(told: TracebackException) -> None:
    told.stack = StackSummary.from_list(
        frame for frame in told.stack if not frame.filename.startswith((_OURS, *_OF_IMPORTS))
    )
    for other in (told.__cause__, told.__context__):
        if other is not None:
            _leave_out(other)
