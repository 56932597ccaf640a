"""Supervisor: the app imported here before any fork, so that workers are cheap copies (`--preload`)."""

from __future__ import annotations

import gc

from qml_mp import host
from qml_mp.child.source import LoadedProgram, ProgramSource, cap_native_threads
from qml_mp.errors import AppImportError, ConfigurationError
from qml_mp.settings import ServerConfig


def preloaded(source: ProgramSource, config: ServerConfig) -> ProgramSource:
    """The source with its program in memory when the settings want that; else as it is.

    Raises `AppImportError`, and `ConfigurationError` when the import has started threads, which
    would not exist in the copies.
    """
    if not config.preload or isinstance(source, LoadedProgram):
        return source
    cap_native_threads(config.worker_count)  # read by the libraries that the import loads
    try:
        program = source.load()
    except Exception as error:
        raise AppImportError(f"The app {source.label!r} cannot be imported: {error}") from error
    threads = host.thread_count()
    if threads is not None and threads > 1:
        raise ConfigurationError(
            f"With preload, importing {source.label!r} started {threads - 1} threads, which would not exist "
            "in the workers. Start them in the jobs (native libraries: set OMP_NUM_THREADS=1), or leave "
            "preload off."
        )
    gc.collect()
    gc.freeze()  # so that the collector of a worker does not touch, and copy, what is shared
    return LoadedProgram(program=program, label=source.label)
