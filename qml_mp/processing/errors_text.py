"""Worker: an exception turned into bounded, storable text, whatever the exception does meanwhile."""

from __future__ import annotations

import traceback
from contextlib import nullcontext
from types import TracebackType
from typing import Any

from qml_mp.core.failure_kinds import TRACEBACK
from qml_mp.core.outcome import ErrorInfo
from qml_mp.processing.cancel import UserCode
from qml_mp.processing.retry import is_a, type_name
from qml_mp.storage.storable import MAX_MESSAGE_BYTES, MAX_TRACEBACK_BYTES

_MAX_FRAMES = 40
_MAX_CHAINED = 4
_MAX_IN_GROUP = 5
_OURS = ("qml_mp.processing.", "qml_mp.child.commands")
"""The code around the job, and the signal handler that interrupts it. Of no use to the job's author."""


def describe_anything(error: BaseException, *, user_code: UserCode = nullcontext) -> ErrorInfo:
    """`describe`, or `describe_type` when that raises. The exception's own `__str__` may raise anything, or
    never end: it runs within `user_code`, where it can be interrupted."""
    try:
        with user_code():
            return describe(error)
    except BaseException as problem:
        return describe_type(error, why=f"describing it raised {type_name(type(problem))}")


def describe(error: BaseException) -> ErrorInfo:
    """The exception as text.

    Raises only what comes from outside (`JobInterrupted`), or `MemoryError`.
    """
    return ErrorInfo(
        type=type_name(type(error)),
        message=message_of(error),
        traceback=clean(_traceback(error), MAX_TRACEBACK_BYTES),
    )


def describe_type(error: BaseException, *, why: str) -> ErrorInfo:
    """The exception as text, without running any code of its own. `why` says why that was needed."""
    return ErrorInfo(
        type=clean(type_name(type(error)), MAX_MESSAGE_BYTES),
        message=f"(no message: {why})",
        traceback=clean("".join(_frames(own_attribute(error, "__traceback__"))), MAX_TRACEBACK_BYTES) or None,
    )


def all_frames_of(error: BaseException) -> str:
    """Where it was raised, with the frames between the worker's loop and the user's code, which are left out
    elsewhere."""
    return clean("".join(_frames(own_attribute(error, "__traceback__"), with_ours=True)), MAX_TRACEBACK_BYTES)


def message_of(error: BaseException) -> str:
    """`str(error)`, bounded; a note instead when that raises."""
    try:
        return clean(str(error), MAX_MESSAGE_BYTES)
    except Exception as problem:
        return f"(no message: __str__ raised {type_name(type(problem))})"


def own_attribute(error: BaseException, name: str) -> Any:
    """An attribute that every exception has, also when its class hides it."""
    return BaseException.__dict__[name].__get__(error)


def clean(text: str, max_chars: int) -> str:
    """The text as every backend can store it: no NUL, no lone surrogate, the middle cut out when long."""
    text = _cut(str.__str__(text), max_chars)  # without whatever a subclass adds
    text = text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()
    return _cut(text, max_chars)  # what was escaped has grown


def _cut(text: str, max_chars: int) -> str:
    if len(text) <= max_chars:
        return text
    kept = max_chars // 2 - 30
    return f"{text[:kept]}\n... ({len(text) - 2 * kept:,} characters left out) ...\n{text[-kept:]}"


def _traceback(error: BaseException) -> str:
    """The exception and what led to it, cause first, as Python prints it but bounded in every direction."""
    chain: list[tuple[BaseException, str]] = []
    link = ""
    current: BaseException | None = error
    while current is not None and len(chain) < _MAX_CHAINED:
        chain.append((current, link))
        if own_attribute(current, "__cause__") is not None:
            link = "\nThe above exception was the direct cause of the following exception:\n\n"
            current = own_attribute(current, "__cause__")
        elif not own_attribute(current, "__suppress_context__"):
            link = "\nDuring handling of the above exception, another exception occurred:\n\n"
            current = own_attribute(current, "__context__")
        else:
            current = None
    # In reversed order, a link comes right before the exception that it was found on.
    return "".join(_one(part) + joint for part, joint in reversed(chain))


def _one(error: BaseException, depth: int = 0) -> str:
    text = "".join(_frames(own_attribute(error, "__traceback__")))
    text += f"{type_name(type(error))}: {message_of(error)}\n"
    text += "".join(f"{note}\n" for note in _notes(error)[:_MAX_IN_GROUP])
    if is_a(error, BaseExceptionGroup) and depth < _MAX_CHAINED:
        members = BaseExceptionGroup.__dict__["exceptions"].__get__(error)
        for number, member in enumerate(members[:_MAX_IN_GROUP], start=1):
            inner = _one(member, depth + 1)
            text += f"  [{number} of {len(members)}]\n" + "".join(
                f"  | {line}\n" for line in inner.splitlines()
            )
    return text


def _notes(error: BaseException) -> list[str]:
    try:
        notes = getattr(error, "__notes__", ())
    except Exception:
        return []
    return [str.__str__(note) for note in notes if is_a(note, str)] if is_a(notes, list) else []


def _frames(trace: TracebackType | None, *, with_ours: bool = False) -> list[str]:
    links = []
    while trace is not None:
        links.append(trace)
        trace = trace.tb_next
    theirs = [link for link in links if with_ours or not _is_ours(link)]
    kept = (theirs or links)[-_MAX_FRAMES:]
    return [f"{TRACEBACK}\n", *map(_frame, kept)] if kept else []


def _is_ours(link: TracebackType) -> bool:
    name = dict.get(link.tb_frame.f_globals, "__name__")
    return isinstance(name, str) and name.startswith(_OURS)


def _frame(link: TracebackType) -> str:
    try:
        return traceback.format_tb(link, limit=1)[0]
    except Exception:  # the module's own loader is asked for the source: user code
        code = link.tb_frame.f_code
        return f'  File "{code.co_filename}", line {link.tb_lineno}, in {code.co_name}\n'
