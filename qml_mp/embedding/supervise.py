"""Supervisor: a run in this process: what the program gives, the program imported before any fork if that is
wanted (`--preload`), then the supervisor."""

from __future__ import annotations

import gc
import logging
from collections import Counter
from collections.abc import Collection, Sequence

from qml_mp.child.prologue import open_channels
from qml_mp.child.source import LoadedProgram, ProgramSource, cap_native_threads, facts_of
from qml_mp.embedding.extras import check_served
from qml_mp.errors import AppImportError, ConfigurationError
from qml_mp.host import native_thread_names, other_python_threads
from qml_mp.settings import ServerConfig
from qml_mp.sources import keep_web_token, load_web_token
from qml_mp.storage.connection import fork_guard
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from qml_mp.supervisor.parts.host_process import Host
from qml_mp.supervisor.probe import probe_app
from qml_mp.supervisor.server import Supervisor
from qml_mp.supervisor.urgent import STORAGE_PATIENCE

logger = logging.getLogger(__name__)


def open_for_supervisor(url: str) -> Storage:
    """The storage as a supervisor has it: it waits for a lock of somebody else for a moment only, and
    PostgreSQL shows whose the connection is."""
    return open_storage(url, application_name="qml-mp: supervisor", patience=STORAGE_PATIENCE)


def supervise(config: ServerConfig, storage: Storage, source: ProgramSource, *, host: Host) -> int:
    """Run the program's server for this host; what `Supervisor.run` returns. Raises what that does, and
    `AppImportError`; `ConfigurationError` where a worker could not use the storage."""
    check_served(config)
    if isinstance(source, LoadedProgram):
        facts = facts_of(source.program)
    else:
        facts = probe_app(source, timeout=config.boot_timeout)
    source = preloaded(source, config)
    check_forkable(storage)
    return Supervisor(config, storage, source, facts=facts, host=host).run()


def check_forkable(storage: Storage) -> None:
    """Raise `ConfigurationError` where a process that this one forks could not use the storage."""
    if storage.has_other_handles():
        raise ConfigurationError(
            f"Cannot fork workers: this process has connections of its own to {storage.display_url} (of "
            "sqlite3, SQLAlchemy and the like), beside which SQLite takes no locks in a worker. Close them "
            "and their cursors (SQLAlchemy: engine.dispose()) before run(), or with preload at the end of "
            "the import, or leave preload off."
        )


def preloaded(source: ProgramSource, config: ServerConfig) -> ProgramSource:
    """The source with its program in memory when the settings want that: workers are cheap copies then. Else
    as it is. Warns of sockets, pipes and the like that the import has left open: workers do not have them.
    What it takes out of the environment stays out, so that no job of a later run sees it, for which nothing
    is imported; the page's token is kept beside it, also that which the program sets for a later run.

    Raises `AppImportError`, and `ConfigurationError` when the import has started threads of Python, which
    would not exist in the copies. The log names native threads once: libraries start theirs again.
    """
    token = load_web_token()
    if not config.preload or isinstance(source, LoadedProgram):
        keep_web_token(token)
        return source
    cap_native_threads(config.worker_count)  # read by the libraries that the import loads
    before = open_channels()
    try:
        program = source.load()
    except Exception as error:
        raise AppImportError(f"The app {source.label!r} cannot be imported: {error}") from error
    finally:
        keep_web_token(token)
    check_copyable(source, threads=other_python_threads())
    _log_native_threads(native_thread_names(), source)
    fork_guard().close_all()  # connections of ours: they are opened again where they are used
    _warn_of(open_channels() - before, source)
    gc.collect()
    gc.freeze()  # so that the collector of a worker does not touch, and copy, what is shared
    return LoadedProgram(program=program, label=source.label)


def check_copyable(source: ProgramSource, *, threads: Sequence[str]) -> None:
    """Raise `ConfigurationError` when the import has started these threads of Python."""
    if threads:
        counted = "1 thread" if len(threads) == 1 else f"{len(threads)} threads"
        raise ConfigurationError(
            f"With preload, importing {source.label!r} started {counted} of Python ({', '.join(threads)}), "
            "which would not exist in the workers. Start them in the jobs, or leave preload off."
        )


def _log_native_threads(names: Sequence[str], source: ProgramSource) -> None:
    if names:
        counted = (name if count == 1 else f"{count} of {name}" for name, count in Counter(names).items())
        logger.info(
            "With preload, importing %r started native threads, which the workers do not have: %s. Libraries "
            "that the import has loaded and not used start their own in the jobs",
            source.label,
            ", ".join(counted),
        )


def _warn_of(opened: Collection[str], source: ProgramSource) -> None:
    if opened:
        logger.warning(
            "With preload, importing %r has left open: %s. In the workers these are the null device: nothing "
            "is sent or received by them. Open them in the jobs, or leave preload off.",
            source.label,
            ", ".join(sorted(opened)),
        )
