"""Client: what an error is to the shell: an exit code and one paragraph."""

from __future__ import annotations

import click

from qml_mp.core.failure_kinds import TRACEBACK, place_of_error
from qml_mp.errors import (
    AppImportError,
    ConfigurationError,
    InvalidJob,
    JobFailed,
    QmlError,
    SchemaMismatch,
    StorageError,
    WorkerBootError,
)
from qml_mp.printable import printable
from qml_mp.storage.shown_url import without_passwords

_EXIT_CODES: tuple[tuple[type[BaseException], int], ...] = (  # the first that fits decides
    (click.UsageError, 2),
    (ConfigurationError, 2),
    (InvalidJob, 2),
    (AppImportError, 3),
    (WorkerBootError, 3),
    (SchemaMismatch, 5),
    (StorageError, 4),
    (JobFailed, 7),
)

_HINT = "(-v shows the traceback)"


def exit_code_of(error: BaseException) -> int:
    """The documented exit code of an error; 1 for every other one."""
    return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), 1)


def paragraph(error: BaseException, *, verbose: bool = False, more: str = "") -> str:
    """The error for a person: "qml-mp: error: …" in one paragraph, without a traceback. `verbose`: which has
    been shown. `more`: a sentence that follows."""
    return f"qml-mp: error: {in_words(error, verbose=verbose, more=more)}"


def in_words(error: BaseException, *, verbose: bool = False, more: str = "") -> str:
    """The same where something of ours stands before it."""
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx else "qml-mp"
        text = f"{sentence(without_passwords(error.format_message()))} See `{command} --help`."
    elif isinstance(error, click.ClickException):
        text = without_passwords(error.format_message())
    elif isinstance(error, AppImportError | InvalidJob):  # which quote what should have been something else
        text = without_passwords(_without_traceback(str(error)))
        if isinstance(error, AppImportError) and error.__cause__ is not None and _HINT not in text:
            text = f"{text} {_HINT}"
    elif isinstance(error, QmlError):
        text = _without_traceback(str(error))
    else:
        text = f"unexpected {type(error).__name__}: {error} {_HINT}"
    text = " ".join(text.split())
    text = text.removesuffix(f" {_HINT}") if verbose else text
    return printable(f"{sentence(text)} {more}" if more else text)


def sentence(text: str) -> str:
    """The text with a full stop, so that another sentence can follow."""
    return text if text.endswith((".", "?", "?)")) else f"{text}."


class NamedInErrors(click.Command):
    """A command that each of its usage errors names, so that they point to its own help: click's parser
    leaves it out, as where an option has no value."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise


def _without_traceback(text: str) -> str:
    """The text with a traceback in it, such as a worker's own, cut down to that traceback's last line and
    the user's line that it comes from."""
    before, found, traceback = text.partition(TRACEBACK)
    if not (found and traceback.strip()):
        return text
    place = place_of_error(traceback)
    told = f"{before} {traceback.strip().splitlines()[-1]}" + (f" ({place})" if place else "")
    return f"{told} {_HINT}"
