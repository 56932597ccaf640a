"""Client, supervisor: the command `qml-mp`: its list of commands, and how it ends."""

from __future__ import annotations

import atexit
import gc
import io
import os
import sys
import threading
import traceback
from contextlib import suppress
from types import ModuleType
from typing import NoReturn

import click
from click.shell_completion import shell_complete

from qml_mp import __version__, host
from qml_mp.cli.failure import exit_code_of, paragraph
from qml_mp.cli.lazy_group import LazyGroup
from qml_mp.cli.output import discard, unheard
from qml_mp.cli.session import Session
from qml_mp.errors import AppImportError
from qml_mp.printable import printable_lines
from qml_mp.sources import colour_wanted
from qml_mp.standard_streams import occupy_standard_streams

_COMMANDS = {
    "start": ("commands.start", "Start a supervisor with its workers."),
    "reload": ("commands.signals", "Have a server take over new code."),
    "stop": ("commands.signals", "Stop a server."),
    "stacks": ("commands.signals", "Print what the workers of a server are doing."),
    "check": ("commands.check", "Say whether a server of this app could start here."),
    "health": ("commands.health", "Say whether the server of this machine can do its work."),
    "enqueue": ("commands.enqueue", "Enqueue one job."),
    "jobs": ("commands.jobs", "List, show, retry, cancel or delete jobs."),
    "recurring": ("commands.recurring", "Manage the templates of recurring jobs."),
    "queues": ("commands.queues", "List, pause, resume and limit queues."),
    "servers": ("commands.monitor", "List servers; pause, resume and drain them."),
    "workers": ("commands.monitor", "List workers, replace one."),
    "status": ("commands.status", "Show jobs, queues, servers and workers at a glance."),
    "top": ("commands.top", "Show workers, queues and failures live, with keys to change them."),
    "web": ("commands.web", "Show all of it on a page, in a browser."),
    "audit": ("commands.audit", "List what people have asked of servers and changed."),
    "migrate": ("commands.migrate", "Bring the storage's schema up to this version."),
    "bench": ("commands.bench", "Measure the storage and a server on it, in a minute."),
    "demo": ("demo.command", "Run a CPU-bound job over the standard library, with a worker killed."),
}
_INTERRUPTED = 130
_ON_WINDOWS = (
    "qml-mp: error: workers are forked, which Windows cannot: nothing of qml-mp is supported there. "
    "Under WSL, which is Linux, all of it works."
)
_COMPLETE = "_QML_MP_COMPLETE"
_FAILING = ("strict", "surrogateescape")  # Python's defaults for stdout; the second is that of the C locale


@click.command(
    cls=LazyGroup,
    lazy=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="qml-mp")
def cli() -> None:
    """CPU-bound background jobs: one supervisor, N worker processes, no job lost.

    Exit codes: 0 fine, 1 failed, 2 usage or configuration, 3 app or worker cannot boot,
    4 storage unreachable, 5 schema mismatch, 6 jobs killed at the shutdown deadline,
    7 an awaited job failed, 130 interrupted.
    """


def main() -> None:
    """Run the command on this process's arguments and exit with its code, whatever threads still run.

    A shell that completes a line calls it with `_QML_MP_COMPLETE` set, and gets its answer instead.
    """
    if sys.platform == "win32":
        sys.exit(_ON_WINDOWS)
    occupy_standard_streams()
    _make_streams_usable()
    _make_current_directory_importable()
    instruction = os.environ.get(_COMPLETE)
    if instruction:
        sys.exit(shell_complete(cli, {}, "qml-mp", _COMPLETE, instruction))
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        discard(sys.stdout)
    except OSError as error:
        code = code or _say_unprinted(error)
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        _leave(code)
    gc.freeze()  # the interpreter's last collection would look at all that was imported, for 30 ms
    sys.exit(code)


def _make_streams_usable() -> None:
    """Have all three, also where the program was started without one, and write what an encoding has not as
    an escape: an ellipsis is no reason to fail. Who has asked for another way (PYTHONIOENCODING) gets it."""
    # Not closed here: they are for the life of the process.
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in _FAILING:
            stream.reconfigure(errors="backslashreplace")


def run(arguments: list[str]) -> int:
    """Run the command; the exit code. Every error ends here as one paragraph on stderr."""
    session = Session()
    try:
        # Not cli.main(), which answers a broken pipe by an exit of its own.
        with cli.make_context("qml-mp", arguments, obj=session, color=colour_wanted()) as context:
            code = cli.invoke(context)
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as left:  # --help and --version
        return left.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("qml-mp: interrupted", err=True)
        return _INTERRUPTED
    except BrokenPipeError:  # the reader has seen enough, as in `qml-mp jobs list | head -1`
        discard(sys.stdout)
        return 0
    except Exception as error:
        if isinstance(error, OSError) and _is_of_stdout(error):
            return _say_unprinted(error)
        error = _hides_a_module(error) or error
        with unheard():
            if session.verbose:
                for line in printable_lines(traceback.format_exc()):
                    click.echo(line, err=True)
            more = session.more_about(error)
            click.echo(paragraph(error, verbose=session.verbose, more=more), err=True)
        return exit_code_of(error)


def _make_current_directory_importable() -> None:
    here = host.current_directory()
    if here is None:
        return
    if not sys.path or sys.path[0] not in ("", here):
        sys.path.insert(0, here)


def _hides_a_module(error: Exception) -> AppImportError | None:
    """What to say instead where a file of the current directory, or a package there, was imported in place of
    a module of the standard library that is called so, by ours or by others."""
    match error:
        case ImportError():
            frames = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
            asked = sys.modules.get((error.name or "").partition(".")[0])  # `email.py` has no `email.parser`
            files = [*frames, error.path, getattr(asked, "__file__", None)]
        case AttributeError(obj=ModuleType() as asked):
            files = [getattr(asked, "__file__", None)]  # what is built in has none
        case _:
            return None
    for file in filter(None, files):
        path = os.path.abspath(file).removesuffix(f"{os.sep}__init__.py")
        folder, name = os.path.split(path)
        module = name.removesuffix(".py")
        if folder == host.current_directory() and module in sys.stdlib_module_names:
            what = "file" if name != module else "folder"
            told = AppImportError(
                f"The {what} {path} hides Python's own module {module!r}: give it another name."
            )
            told.__cause__ = error
            return told
    return None


def _is_of_stdout(error: OSError) -> bool:
    """Whether a write to standard output has raised it: all that is ours goes there through click."""
    frame = list(traceback.walk_tb(error.__traceback__))[-1][0]
    file = frame.f_locals.get("file")
    return frame.f_globals.get("__name__") == "click.utils" and file is not None and file.fileno() == 1


def _say_unprinted(error: OSError) -> int:
    """On stderr; the exit code."""
    discard(sys.stdout)
    why = error.strerror or error
    click.echo(f"qml-mp: error: What was to be printed cannot be written to stdout: {why}.", err=True)
    return 1


def _leave(code: int) -> NoReturn:
    """Exit as the interpreter does, save that it would wait for the threads that the app has started when it
    was imported: for ever, where they never end."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # who listened is gone, or it was closed
            stream.flush()
    os._exit(code)
