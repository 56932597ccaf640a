"""Supervisor: `qml-mp start` in this process: what the code gives, settings, storage, then supervise."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from qml_mp.child.source import AppFacts, NamedProgram
from qml_mp.embedding.extras import check_served
from qml_mp.embedding.supervise import check_forkable, open_for_supervisor, preloaded
from qml_mp.errors import ConfigurationError
from qml_mp.events.log import what_is_served
from qml_mp.settings import ServerConfig
from qml_mp.sources import (
    load_boot_timeout,
    load_config,
    load_url,
    replace_settings,
    settings_in_environment,
    take_notify_socket,
    unknown_variables,
)
from qml_mp.storage.memory_folder import MEMORY_URL
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from qml_mp.supervisor.parts.host_process import Host
from qml_mp.supervisor.parts.reload import NewCode
from qml_mp.supervisor.probe import probe_app
from qml_mp.supervisor.server import Supervisor

logger = logging.getLogger(__name__)


def run_server(
    *,
    app_spec: str,
    url_flag: str | None,
    config_flags: Mapping[str, object],
    burst: timedelta | None,
    watch: bool,
) -> int:
    """Run a server until it is told to stop; 0, or 6 when jobs were killed at the deadline.

    With `watch` it reloads when a source file changes. Flags win over the code, that over other settings.
    Raises `AppImportError`, `ConfigurationError`, `StorageError` or `WorkerBootError`.
    """
    notify = take_notify_socket()  # before anything is started that would inherit it
    begun_at = datetime.now(UTC)
    named = NamedProgram(spec=app_spec, settings=settings_in_environment())
    facts = probe_app(named, timeout=load_boot_timeout(flags=config_flags))
    replace_settings(facts.environment)  # once, for what is read later: after a reload only the queues change
    config = _settings(config_flags, named, facts)
    if watch:
        _check_takes_over_code(config)
    check_served(config)
    with load_url(flag=url_flag, code=facts.url).told() as url:
        storage = open_for_supervisor(url)
    source = preloaded(named, config)  # not before: the import may change the directory
    _connect_once(storage)
    check_forkable(storage)
    logger.info("Server %s of %s on %s", config.server_name, app_spec, storage.display_url)
    if url.startswith(MEMORY_URL):
        logger.warning(
            "The jobs are in memory and gone when this server stops. Until then other programs reach them by "
            "--url %s",
            storage.display_url,
        )
    if watch:
        logger.info("Source files that are watched for changes: %s", len(facts.files))
    logger.info("Workers: %s. %s", config.worker_count, what_is_served(config.queues, facts.methods))
    return Supervisor(
        config,
        storage,
        source,
        facts=facts,
        new_code=NewCode(
            queues_of=lambda new: _settings(config_flags, named, new).queues,
            watch_since=begun_at if watch else None,
            files=facts.files,
        ),
        burst=burst,
        host=Host(ends_process=True, notify=notify),
    ).run()


def _connect_once(storage: Storage) -> None:
    """See that storage can be used, and make the schema when there is none, with the patience of a client:
    another starter may be making it at this moment."""
    with closing(open_storage(storage.url, application_name="qml-mp: start")) as patient:
        patient.list_servers()
    storage.expect_schema()


def _check_takes_over_code(config: ServerConfig) -> None:
    """Raise `ConfigurationError` when the settings keep the program in memory, wherever that was set."""
    if config.preload:
        raise ConfigurationError(
            f"preload is on ({config.sources['preload']}), and with --reload it must be off: "
            "a program in memory takes over no new code."
        )


def _settings(flags: Mapping[str, object], source: NamedProgram, facts: AppFacts) -> ServerConfig:
    """The settings; of queues that nobody sets, those that the code declares. What its import has put into
    the environment counts, as it does for producers, who import the code themselves; what of that is written
    wrong is told."""
    for sentence in unknown_variables(facts.environment, besides=source.settings or ()):
        logger.warning(sentence)
    config = load_config(flags=flags, code=facts.config, environment=facts.environment)
    return config if "queues" in config.given else replace(config, queues=facts.queues)
