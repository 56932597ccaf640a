"""Client and worker: `QmlApp`, where a program declares its jobs and enqueues them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any, Unpack, overload
from uuid import UUID

from qml_mp.client import JobClient, as_stored
from qml_mp.core.job import Job, check_is_job
from qml_mp.core.limits import Limit, LimitKind, Rate, check_max_running
from qml_mp.core.options import EnqueueOptions, JobOptions, documented, pop_conn, read_job_options
from qml_mp.core.payload import JsonValue
from qml_mp.core.recurring import RecurringJob
from qml_mp.errors import ConfigurationError, InvalidJob, UnknownMethod, shown
from qml_mp.function_options import FunctionOptions, FunctionOptionsWithoutResult, read_function_options
from qml_mp.gathering import Gathering
from qml_mp.handle import JobHandle
from qml_mp.job_function import Decorator, DecoratorWithoutResult, JobFunction
from qml_mp.job_selection import ChosenJobs, JobSelection, chosen_jobs
from qml_mp.named_lock import LeftOwners, NamedLock
from qml_mp.processing.by_name import OnePerProcess, method_name_of
from qml_mp.processing.middleware import FailureHook, JobMiddleware, StateChangeHook, TracingMiddleware
from qml_mp.processing.program import Program
from qml_mp.processing.registry import Worker, WorkerRegistry, is_notebook
from qml_mp.processing.retry import RetryPolicy
from qml_mp.processing.tracing import Tracing
from qml_mp.setting_kinds import Name, check_queue_name
from qml_mp.settings import DEFAULT_QUEUE, ServerConfig
from qml_mp.storage.store import Storage
from qml_mp.storage.values import BY_DEFAULT, Retention
from qml_mp.units import Duration

# Made once, before workers are forked: to check all fields again costs each of them memory that it shares.
_BY_DEFAULT, _RETRY = ServerConfig(), RetryPolicy()


class QmlApp(Gathering, OnePerProcess):
    """The jobs of a program, how they are run, and where they are stored.

    `url` names the storage; when it is None, `$QML_MP_URL` does, then the settings file, then
    `sqlite:///qml.db`. Nothing is opened before it is needed. `middleware=None` means tracing alone; a
    sequence replaces it, first = outermost. `tracing` follows its jobs as spans: `qml_mp.otel.OpenTelemetry`.
    `name` tells the recurring templates of this app from those of others on the same storage; without one,
    "module:attribute" does, and apps of which it is the same take each other's, whatever their folders.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        config: ServerConfig | None = None,
        retry_policy: RetryPolicy | None = None,
        middleware: Sequence[JobMiddleware] | None = None,
        on_state_change: StateChangeHook | None = None,
        tracing: Tracing | None = None,
        name: str | None = None,
    ) -> None:
        if config is not None and not isinstance(config, ServerConfig):
            raise ConfigurationError(f"config is {shown(config)}; it must be a ServerConfig.")
        self.config = config
        self.registry = WorkerRegistry()
        self._client = JobClient(
            retention=BY_DEFAULT if config is None else Retention.of(config),
            polling=(config or _BY_DEFAULT).polling_interval,
            tracing=tracing,
        )
        self._client.connect(url)
        self._program = Program(
            registry=self.registry,
            retry_policy=_RETRY if retry_policy is None else retry_policy,
            middleware=(TracingMiddleware(),) if middleware is None else middleware,
            on_state_change=on_state_change,
            tracing=tracing,
            config=config,
            name=None if name is None else Name().check(name, "The name of the app"),
            attach=partial(self._client.connect, expects_schema=True),
        )
        self._functions: dict[str, JobFunction[..., object, object]] = {}
        self._recurring: dict[str, RecurringJob] = {}
        self._left_owners = LeftOwners()

    @property
    def storage(self) -> Storage:
        """The storage, opened at the first use."""
        return self._client.storage

    @property
    def program(self) -> Program:
        """What a server runs of this app, as it is when the server starts."""
        declared = [function.queue for function in self._functions.values()]
        of_templates = [template.queue for template in self._recurring.values()]
        return replace(
            self._program,
            registry=self.registry,  # both may have been assigned since
            config=self.config,
            recurring=tuple(self._recurring.values()),
            queues=tuple(dict.fromkeys([DEFAULT_QUEUE, *declared, *of_templates])),
            url=self._client.url,
        ).of_app(lambda: self.program)

    def on_failure(self, hook: FailureHook) -> FailureHook:
        """Decorator: a worker calls `hook(job, error)` for each job of the app that failed for good, also
        when its process died (see `FailureHook`). Raises `ConfigurationError` for a second one."""
        self._program = self._program.with_failure_hook(hook)
        return hook

    def attach(self, url: str) -> None:
        """Use this storage from now on, whatever the code or the environment names. A worker's app uses that
        from which the worker takes jobs: what they enqueue belongs there."""
        self._client.connect(url)

    def attached(self, url: str) -> AbstractContextManager[None]:
        """For tests: use this storage within the block, and afterwards that from before."""
        return self._client.attached(url)

    def close(self) -> None:
        """Close the connection to the storage; harmless when closed. The next use opens another."""
        self._client.close()

    @overload
    def job(  # type: ignore[overload-overlap]  # False says more than any bool
        self, name: str | None = None, **options: Unpack[FunctionOptionsWithoutResult]
    ) -> DecoratorWithoutResult: ...
    @overload
    def job(self, name: str | None = None, **options: Unpack[FunctionOptions]) -> Decorator: ...
    @documented(FunctionOptions)
    def job(self, name: str | None = None, **options: Any) -> Any:
        """Declare a job function; its method name is `name`, else the function's own.

        A duration is a `timedelta`, a number of seconds or text like "5m".
        Raises `ConfigurationError` for a name that is taken and for what no job can have.
        """
        if name is not None and not isinstance(name, str):
            raise ConfigurationError("Write @app.job() with parentheses; its argument is the method's name.")
        read = read_function_options(options)

        def declare(function: Callable[..., Any]) -> JobFunction[..., Any, Any]:
            declared: JobFunction[..., Any, Any] = JobFunction(
                function,
                method_name=method_name_of(function) if name is None else name,
                options=read,
                client=self._client,
            )
            self.registry.register(declared.worker)
            self._functions[declared.method_name] = declared
            return declared

        return declare

    def recurring(
        self,
        cron: str,
        *,
        tz: str = "UTC",
        id: str | None = None,
        queue: str | None = None,
        payload: JsonValue = None,
        misfire: str = "fire_once",
        overlap: str = "allow",
        jitter: Duration = 0,
    ) -> Decorator:
        """Declare a function that is enqueued at every firing of `cron` (5 fields, or 6 or 7 with
        seconds first, or "@daily" and the like) in the wall time of `tz`; a plain function becomes a job
        function too. `misfire` ("fire_once", "skip", "catch_up(N)"), `overlap` ("allow", "skip", "queue")
        and `jitter` are explained by `RecurringJob`, the expression by the README.

        `id` defaults to the method's name. A server stores the template when it starts; `check`, and one that
        imports the app by name, warn of types in `payload` that do not fit. Warns of a zone that is not known
        here. Raises `ConfigurationError` for the schedule, `InvalidJob` for a payload without the arguments.
        """
        if callable(cron):
            raise ConfigurationError('Write @app.recurring("0 9 * * *"), with the cron expression.')

        def declare(function: Callable[..., Any]) -> JobFunction[..., Any, Any]:
            declared: JobFunction[..., Any, Any] = (
                function
                if isinstance(function, JobFunction)
                else self.job(queue=DEFAULT_QUEUE if queue is None else queue)(function)
            )
            method = declared.method_name
            own_id = method if id is None else id
            earlier = self._recurring.get(own_id)
            if earlier is not None and not (is_notebook() and earlier.method == method):
                raise ConfigurationError(f"The recurring id {own_id!r} is declared twice; pass another id=.")
            declared.worker.binding.check_names(payload)
            self._recurring[own_id] = RecurringJob.new(
                own_id, cron, method, payload, declared.queue if queue is None else queue, tz=tz,
                priority=declared.priority, misfire=misfire, overlap=overlap, jitter=jitter, from_code=True,
            )  # fmt: skip
            return declared

        return declare  # type: ignore[return-value]  # one body for all overloads

    def register(self, worker: Worker) -> QmlApp:
        """Add a worker of the reference's level, and return the app."""
        self.registry.register(worker)
        return self

    @documented(JobOptions)
    def make_job(self, method: str, payload: JsonValue = None, **options: Unpack[JobOptions]) -> Job:
        """A job by name, checked but not enqueued. The payload is an object of arguments, or a list.

        A job is one row, however often it is enqueued. When this app has methods, an unknown one raises
        `UnknownMethod`, and the payload of a function must fit its signature (`InvalidJob`). An app without
        any is a producer without the code, and nothing of the kind can be checked.
        """
        return self._make_job(method, payload, options)

    @documented(EnqueueOptions)
    def enqueue(
        self, method: str, payload: JsonValue = None, **options: Unpack[EnqueueOptions]
    ) -> JobHandle[JsonValue]:
        """Commit a job by name; the errors are those of `make_job`."""
        conn = pop_conn(options)
        job = self._make_job(method, payload, options)
        return self._client.enqueue(job, rebuilt=as_stored, conn=conn)

    @documented(EnqueueOptions)
    async def aenqueue(
        self, method: str, payload: JsonValue = None, **options: Unpack[EnqueueOptions]
    ) -> JobHandle[JsonValue]:
        """`enqueue` without blocking the event loop, save with `conn`. One that is cancelled writes nothing
        any more unless the storage was at it: then the job may be there."""
        conn = pop_conn(options)
        job = self._make_job(method, payload, options)
        return await self._client.aenqueue(job, rebuilt=as_stored, conn=conn)

    def enqueue_many(self, jobs: Iterable[Job], *, conn: object | None = None) -> list[JobHandle[JsonValue]]:
        """Commit all of the jobs in one transaction or, on any error, none. Handles in order. `TypeError` for
        what is no job, `InvalidJob` for one that is there twice."""
        return self._client.enqueue_many(self._checked(jobs), rebuilt=as_stored, conn=conn)

    async def aenqueue_many(
        self, jobs: Iterable[Job], *, conn: object | None = None
    ) -> list[JobHandle[JsonValue]]:
        """`enqueue_many` without blocking the event loop, save with `conn`; cancelled as `aenqueue` is."""
        return await self._client.aenqueue_many(self._checked(jobs), rebuilt=as_stored, conn=conn)

    def pause_queue(self, name: str) -> None:
        """Have no server claim jobs of the queue, until it is resumed. What runs goes on, and so does what a
        worker holds already (at most 50 ms of work)."""
        self.storage.set_paused(check_queue_name(name), True)

    def resume_queue(self, name: str) -> None:
        """End the pause of the queue; harmless when it is not paused."""
        self.storage.set_paused(check_queue_name(name), False)

    def limit_queue(
        self, name: str, *, max_running: int | None = None, rate: Rate | str | None = None
    ) -> None:
        """Let at most so many jobs of the queue run at a time, and so many begin per period ("50/s"), on all
        machines together; None: any number. Replaces what was said before."""
        read_rate = None if rate is None else Rate.parse(rate)
        self.storage.limit(
            Limit(
                kind=LimitKind.QUEUE,
                name=check_queue_name(name),
                max_running=check_max_running(max_running),
                rate=read_rate,
            )
        )

    def lock(self, name: str, ttl: Duration, *, timeout: Duration | None = None) -> NamedLock:
        """A lock that one process holds of all that share the storage: `with app.lock("report", ttl="10m"):`,
        or `async with`. See `NamedLock` for what the ttl means. Raises `LockNotAcquired` in the `with` when
        another held it for all of `timeout` (None: wait without a limit)."""
        return NamedLock(name, storage=lambda: self.storage, left=self._left_owners, ttl=ttl, timeout=timeout)

    def inline(self, *, raise_failures: bool = False) -> AbstractContextManager[None]:
        """For tests: within the block, what is enqueued runs at once in this process, also with `conn`, and
        its handle has ended when `enqueue` returns. See `qml_mp.inline` for what is as in production.

        A job that fails is stored as failed, and `handle.wait()` raises `JobFailed`; with `raise_failures`,
        `enqueue` raises what its last attempt raised.
        """
        from qml_mp.inline import running_inline  # declaring an app must not cost what running it does

        return running_inline(self._client, self.program, raise_failures=raise_failures)

    def enqueued(self, method: str | JobFunction[..., Any, Any] | None = None) -> list[Job]:
        """For tests: all jobs of the method (None: of any) in the storage, oldest first, whatever has become
        of them."""
        return self._client.enqueued(method.method_name if isinstance(method, JobFunction) else method)

    def handle(self, job_id: str | UUID) -> JobHandle[JsonValue]:
        """The handle of a job that was enqueued before, here or elsewhere; its result is the JSON as stored.
        `f.handle(job_id)` of the job function gives one whose result is rebuilt. Whether there is such a job
        is seen when it is asked."""
        return self._client.handle(job_id, rebuilt=as_stored)

    def jobs(self, **chosen: Unpack[ChosenJobs]) -> JobSelection:
        """The jobs that are chosen so, and are there now, to count, retry, cancel or delete together:
        `app.jobs(method="thumb", state="failed", error="timeout", since="2h").retry()`. By `ChosenJobs`."""
        return chosen_jobs(self.storage, retention=self._client.retention, **chosen)

    def _make_job(self, method: str, payload: JsonValue, options: JobOptions) -> Job:
        self._check_method(method)
        declared = self._functions.get(method)
        if declared is None:
            return Job.new(method, payload, **read_job_options(options))
        return declared.make_job(payload, read_job_options(options))

    def _checked(self, jobs: Iterable[Job]) -> Iterable[Job]:
        for job in jobs:
            self._check_method(check_is_job(job).method)
            yield job

    def _check_method(self, method: str) -> None:
        if not isinstance(method, str):
            raise InvalidJob(f"The method name is {shown(method)}; it must be text.")
        known = self.registry.methods()
        if known and method not in known:
            raise UnknownMethod(
                f"No worker registered for method: {method!s:.200}. This app has {', '.join(known[:10])}"
                f"{', …' if len(known) > 10 else ''}."
            )
