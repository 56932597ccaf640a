"""Worker: whether a job has raised its error because it was ended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from qml_mp.errors import JobInterrupted, JobTimeout
from qml_mp.processing.cancel import CancelReason, CancelToken, UserCode
from qml_mp.processing.errors_text import own_attribute
from qml_mp.processing.retry import is_a, members_of, with_members

_MOST_BEHIND = 1000


def interruption_in(error: BaseException) -> BaseException | None:
    """The interruption that a job has let pass, in a group perhaps; None: it is another error."""
    return next((each for each in with_members(error) if is_a(each, JobInterrupted)), None)


def why_ended(error: BaseException, cancel: CancelToken) -> CancelReason | None:
    """What the job was ended for that has raised this; None: it is an ordinary failure.

    An interruption says so by itself. Another error does where one is behind it: the job's clean-up has
    raised it, or it was raised in the other's stead. So does a `SystemExit`, as a handler of SIGTERM that is
    the job's own raises it. All of them only if the job was asked to end: what another job was ended by may
    have been kept and be raised again, and still has behind it what it had.
    """
    found = interruption_in(error)
    if found is None:
        found = _end_behind(error)
    if found is None or cancel.reason is None:
        return None
    return CancelReason.TIMEOUT if is_a(found, JobTimeout) else cancel.reason


def drop_pending(user_code: UserCode) -> None:
    """The interruption that the job has forestalled is not raised in what runs of its code yet."""
    with suppress(JobInterrupted), user_code():
        pass


def _end_behind(error: BaseException) -> BaseException | None:
    """What ended the job, if it has raised the error amid that. An interruption that it has swallowed is
    behind nothing: `__context__` is what was being handled."""
    return next((each for each in all_behind(error) if is_a(each, (JobInterrupted, SystemExit))), None)


def all_behind(error: BaseException) -> Iterator[BaseException]:
    """The error, those in whose stead or because of which it was raised, and those that it groups."""
    found, known = [error], {id(error)}
    for each in found:  # which grows meanwhile
        yield each
        behind = (own_attribute(each, "__context__"), own_attribute(each, "__cause__"))
        for other in (*behind, *members_of(each)):
            if other is not None and id(other) not in known and len(found) < _MOST_BEHIND:
                known.add(id(other))
                found.append(other)
