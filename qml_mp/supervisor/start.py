"""Supervisor: `qml-mp start` in this process: what the code gives, settings, storage, then supervise."""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping
from datetime import timedelta

from qml_mp import host
from qml_mp.child.native_threads import cap_native_threads
from qml_mp.child.probe import AppFacts
from qml_mp.child.source import LoadedProgram, NamedProgram, ProgramSource
from qml_mp.errors import AppImportError, ConfigurationError
from qml_mp.settings import ServerConfig
from qml_mp.sources import load_config, load_url
from qml_mp.storage.open import open_storage
from qml_mp.storage.protocol import Storage
from qml_mp.supervisor.probe import probe_app
from qml_mp.supervisor.server import STORAGE_PATIENCE, Supervisor

logger = logging.getLogger(__name__)


def run_server(
    *, app_spec: str, url_flag: str | None, config_flags: Mapping[str, object], burst: bool
) -> int:
    """Run a server until it is told to stop; 0, or 6 when jobs were killed at the deadline.

    Flags win over what the app's code gives, that over the environment and the settings file.
    Raises `AppImportError`, `ConfigurationError`, `StorageError` or `WorkerBootError`.
    """
    source: ProgramSource = NamedProgram(spec=app_spec)
    facts = probe_app(source, timeout=_boot_timeout(config_flags))
    config = load_config(flags=config_flags, code=facts.config)
    if config.preload:
        source = _preload(source, workers=config.worker_count)
    storage = open_storage(
        load_url(url_flag or facts.url), application_name="qml-mp: supervisor", patience=STORAGE_PATIENCE
    )
    storage.list_servers()  # connects, and makes the schema when there is none
    _announce(config, storage, facts, app_spec)
    return Supervisor(config, storage, source, recurring=facts.recurring, burst=burst).run()


def _boot_timeout(config_flags: Mapping[str, object]) -> timedelta:
    """What is known of it before the app's own settings are."""
    try:
        return load_config(flags=config_flags, code=None).boot_timeout
    except ConfigurationError:
        return ServerConfig().boot_timeout  # told when the settings are complete, which may mend it


def _preload(source: ProgramSource, *, workers: int) -> LoadedProgram:
    """Import the app here, so that workers are cheap copies. Threads it started would not be copied."""
    cap_native_threads(workers)  # read by the libraries that the import loads
    try:
        program = source.load()
    except Exception as error:
        raise AppImportError(f"The app {source.label!r} cannot be imported: {error}") from error
    threads = host.thread_count()
    if threads is not None and threads > 1:
        raise ConfigurationError(
            f"With --preload, importing {source.label!r} started {threads - 1} threads, which would not "
            "exist in the workers. Start them in the jobs, or leave --preload off."
        )
    gc.collect()
    gc.freeze()  # so that the collector of a worker does not touch, and copy, what is shared
    return LoadedProgram(program=program, label=source.label)


def _announce(config: ServerConfig, storage: Storage, facts: AppFacts, app_spec: str) -> None:
    queues = ", ".join(config.queues) or "all"
    logger.info("Server %s of %s on %s", config.server_name, app_spec, storage.display_url)
    logger.info(
        "Queues: %s. Workers: %s. Methods: %s",
        queues,
        config.worker_count,
        ", ".join(facts.methods) or "none",
    )
