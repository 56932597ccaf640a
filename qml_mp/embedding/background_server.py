"""Host: `BackgroundJobServer`, the server as an existing program starts and stops it.

`run()` supervises from the calling process. `start()` gives the supervisor a process of its own:
forked when the host has a single thread, else a fresh interpreter like the host's (its options, its path and
its qml-mp) that imports the app by name, or gets it by value from a notebook, whose cells have no name.
The host's threads, signal handlers, children and event loop are never touched; between the two
there are two pipes: the end of the first tells the supervisor that the host is gone (or wants it
to stop), the second tells the host that the server is ready, or why it is not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import replace
from types import TracebackType
from typing import Self

from qml_mp.child.importing import is_importing
from qml_mp.child.source import LoadedProgram, NamedProgram, ProgramSource
from qml_mp.core.payload import JsonValue
from qml_mp.core.recurring import RecurringJob
from qml_mp.embedding.by_value import by_value
from qml_mp.embedding.remote import RemoteSupervisor, fork_supervisor, spawn_supervisor
from qml_mp.embedding.supervise import open_for_supervisor, supervise
from qml_mp.errors import ConfigurationError, ServerAlreadyRunning
from qml_mp.host import lasting_thread_count
from qml_mp.processing.middleware import JobMiddleware, StateChangeHook, TracingMiddleware
from qml_mp.processing.program import Program
from qml_mp.processing.registry import WorkerRegistry, is_notebook
from qml_mp.processing.retry import RetryPolicy
from qml_mp.settings import DEFAULT_QUEUE, ServerConfig
from qml_mp.storage.store import Storage
from qml_mp.supervisor.parts.host_process import Host
from qml_mp.units import Duration


class BackgroundJobServer:
    """A server with its settings, its storage and what it runs.

    The settings are taken as they are; so are their queues, whatever the program declares. Of the storage,
    supervisor and workers open connections of their own, by its URL; that of the program is closed while they
    are started, and opened again by whoever uses it next, a job too.
    `program` is a `WorkerRegistry`, a `Program` (`app.program`: at each start, what is declared by then), or
    the name "module:attribute" of a `QmlApp`, which is imported in the workers only; a module that the
    program has imported itself is in memory, though, unless the server is a fresh interpreter, and a reload
    takes over no new code of it. A name is needed to `start()` from a host with threads, or with an open
    connection of its own to the SQLite file, because such a process cannot be forked safely; a host that was
    frozen into one program has no interpreter to start then, and is refused. The keyword arguments go with a
    `WorkerRegistry` (an app has its own); `middleware` replaces the default `TracingMiddleware`.
    Raises `ConfigurationError` when they come with anything else, and for any other `config`, `storage` or
    `program`.
    """

    def __init__(
        self,
        config: ServerConfig,
        storage: Storage,
        program: WorkerRegistry | Program | str,
        *,
        retry_policy: RetryPolicy | None = None,
        middleware: tuple[JobMiddleware, ...] | None = None,
        on_state_change: StateChangeHook | None = None,
    ) -> None:
        _check_kinds(config, storage)
        self._config = config
        self._storage = storage
        self._given = _source(program, retry_policy, middleware, on_state_change)
        self._running: RemoteSupervisor | None = None
        self._starting = threading.Lock()
        """Of several threads that start it one does, and the others are refused."""
        self._is_stop_wanted = False
        """Since the newest `start` began. Written by `stop`, which may run in a signal handler in the middle
        of it, before there is a process to be stopped."""
        self.exit_code: int | None = None
        """What the newest run returned: 0, or 6 when jobs were killed at the deadline."""

    @property
    def config(self) -> ServerConfig:
        """The settings."""
        return self._config

    def run(self) -> int:
        """Supervise from this process until SIGTERM or SIGINT; 0, or 6 when jobs had to be killed.

        Needs a process without other threads of Python, or connections of its own to the SQLite file.
        Libraries with native threads may be imported before, but not used. Its sockets and pipes are the null
        device in the workers: open those in the jobs. Handlers are set for the time of the call only; where
        this is process 1 of a container, without an init, the kernel drops a SIGTERM that comes before.
        Raises `ConfigurationError`, also in a worker that imports its app, `StorageError`, or
        `WorkerBootError` when no worker can boot.
        """
        self._refuse_one_too_many()
        self._connect_once()
        self.exit_code = self._supervise()
        return self.exit_code

    def start(self) -> None:
        """Start the server in a process of its own; returns when the first worker is ready.

        A host with a single thread is forked: its sockets and pipes are the null device in the workers, as
        with `run`. Raises `ServerAlreadyRunning` on a running server, and what `run` raises. Blocks while the
        app is imported: inside an event loop, call it with `asyncio.to_thread`. When a signal handler or
        another thread calls `stop` meanwhile, it returns with the server stopped.
        """
        with self._starting:
            self._refuse_one_too_many()
            self._connect_once()
            running = self._running = self._supervisor_process()
            if self._is_stop_wanted:  # it may have come before there was something to stop
                self.stop()
                return
        # The app is imported twice: to learn what it declares, and in the first worker.
        running.wait_until_ready(2 * self._config.boot_timeout.total_seconds())

    def stop(self) -> None:
        """Stop gracefully: running jobs have `shutdown_timeout`. Harmless on a stopped server.

        A signal handler may call it. When `start` is at work and has not made the process yet, this returns
        at once, and `start` does the rest.
        """
        self._is_stop_wanted = True  # before it looks: `start` looks for it after it has made one
        running = self._running
        if running is not None:
            self.exit_code = running.stop(timeout_s=self._config.shutdown_timeout.total_seconds())
            if self._running is running:  # or another thread has started the next one
                self._running = None

    def is_running(self) -> bool:
        """Whether a server started with `start` runs."""
        running = self._running
        return running is not None and running.is_running()

    def schedule_recurring(
        self,
        id: str,
        cron: str,
        method: str,
        payload: JsonValue = None,
        queue: str = DEFAULT_QUEUE,
        *,
        priority: int = 0,
        tz: str = "UTC",
        misfire: str = "fire_once",
        overlap: str = "allow",
        jitter: Duration = 0,
    ) -> None:
        """Insert or replace a recurring template; it survives restarts, and needs no running server.
        `RecurringJob` says what its fields mean.

        Raises `ConfigurationError` for what no template can have and for one that an app's code declares,
        `InvalidJob` for payload and priority.
        """
        template = RecurringJob.new(
            id, cron, method, payload, queue, priority=priority, tz=tz, misfire=misfire, overlap=overlap,
            jitter=jitter,
        )  # fmt: skip
        self._storage.upsert_recurring_job(template.from_now_on(self._storage.now()))

    def remove_recurring(self, id: str) -> bool:
        """Remove a recurring template; whether it existed."""
        return self._storage.remove_recurring_job(id)

    def __enter__(self) -> Self:
        """Start the server, unless `ServerConfig.auto_start` is off."""
        if self._config.auto_start:
            self.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()

    @property
    def _source(self) -> ProgramSource:
        """What is to run."""
        if not isinstance(self._given, LoadedProgram) or self._given.program.newest is None:
            return self._given
        newest = self._given.program.newest()
        return LoadedProgram(program=replace(newest))  # without the app itself, which need not be sent along

    def _refuse_one_too_many(self) -> None:
        if is_importing():
            raise ConfigurationError(
                "A worker imports this module, which starts a server: each worker would start another one. "
                'Start it under `if __name__ == "__main__":`, or in a function that the program calls.'
            )
        self._is_stop_wanted = False
        if self.is_running():
            raise ServerAlreadyRunning(
                f"The server {self._config.server_name!r} is already running; stop() it first."
            )
        self._running = None

    def _connect_once(self) -> None:
        """See that storage can be used, and make the schema when there is none, with the patience of a
        client: another starter may be making it at this moment. Then it is closed, as this process forks."""
        self._storage.list_servers()
        self._storage.close()

    def _supervisor_process(self) -> RemoteSupervisor:
        threads = lasting_thread_count()
        has_one_thread = threads in (1, None)
        if has_one_thread and not self._storage.has_other_handles():
            return fork_supervisor(self._supervise)
        source = self._source
        if isinstance(source, NamedProgram) and not source.is_of_main:
            return spawn_supervisor(self._config, self._storage.url, source)
        if isinstance(source, LoadedProgram) and is_notebook():
            return spawn_supervisor(self._config, self._storage.url, by_value(source.program))
        if has_one_thread:
            why = "this process has connections of its own (of sqlite3, SQLAlchemy and the like) to the file"
            remedy = "Close them and their cursors first (SQLAlchemy: engine.dispose()), or pass"
        else:
            why, remedy = f"this process has {threads} threads", "Pass"
        raise ConfigurationError(
            f"Cannot start the server: {why}, so forking it is not safe. {remedy} the app by name, from a "
            'module that can be imported (not "__main__"): '
            'BackgroundJobServer(config, storage, "module:attribute").'
        )

    def _supervise(self, host_fds: Collection[int] = (), on_ready: Callable[[], None] | None = None) -> int:
        # Of its own: the program's is the jobs' too, in the workers, and must not wait as a supervisor does.
        storage = open_for_supervisor(self._storage.url)
        storage.expect_schema()
        host = Host(fds=host_fds, on_ready=on_ready)
        return supervise(self._config, storage, self._source, host=host)


def _check_kinds(config: object, storage: object) -> None:
    """A storage's URL is not shown, as it may have a password; so no value is."""
    if not isinstance(config, ServerConfig):
        raise ConfigurationError(
            f"BackgroundJobServer got a {type(config).__name__} as its config; it takes a ServerConfig first."
        )
    if not isinstance(storage, Storage):
        raise ConfigurationError(
            f"BackgroundJobServer got a {type(storage).__name__} as its storage; it takes, second, the "
            "Storage that open_storage(url) gives, or app.storage."
        )


def _source(
    program: WorkerRegistry | Program | str,
    retry_policy: RetryPolicy | None,
    middleware: tuple[JobMiddleware, ...] | None,
    on_state_change: StateChangeHook | None,
) -> ProgramSource:
    source: ProgramSource
    match program:
        case WorkerRegistry():
            return LoadedProgram(
                program=Program(
                    registry=program,
                    retry_policy=retry_policy or RetryPolicy(),
                    middleware=(TracingMiddleware(),) if middleware is None else middleware,
                    on_state_change=on_state_change,
                )
            )
        case Program():
            source = LoadedProgram(program=program)
        case str():
            source = NamedProgram(spec=program)
        case _:
            raise ConfigurationError(
                f"BackgroundJobServer got a {type(program).__name__} to run; it takes a WorkerRegistry, "
                '`app.program` of a QmlApp, or the name "module:attribute" of one.'
            )
    given = {"retry_policy": retry_policy, "middleware": middleware, "on_state_change": on_state_change}
    names = ", ".join(name for name, value in given.items() if value is not None)
    if names:
        raise ConfigurationError(
            f"BackgroundJobServer got {names} beside an app, whose own would win. Give it to QmlApp(...)."
        )
    return source
