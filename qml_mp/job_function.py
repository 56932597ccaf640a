"""Client and worker: what `@app.job()` makes of a function."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Generic, ParamSpec, TypeVar

from qml_mp.client import EnqueueOptions, JobClient, JobDefaults, build_job
from qml_mp.core.job import Job
from qml_mp.core.payload import JsonValue
from qml_mp.handle import JobHandle
from qml_mp.processing.registry import FunctionWorker
from qml_mp.units import Duration

P = ParamSpec("P")
"""The arguments of a job: the function's parameters without its `WorkerContext`."""
R = TypeVar("R", covariant=True)


class JobFunction(Generic[P, R]):
    """A function that can be enqueued, and called directly as before.

    Arguments are bound to the signature and turned into JSON when the job is enqueued: what does
    not fit raises `InvalidJob`, and nothing is written.
    """

    __name__: str

    def __init__(
        self, function: Callable[..., R], *, worker: FunctionWorker, defaults: JobDefaults, client: JobClient
    ) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._worker = worker
        self._defaults = defaults
        self._client = client

    def __call__(self, *args: Any, **kwargs: Any) -> R:
        """Call the function here and now; no job is made."""
        return self._function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<job {self.method_name!r}>"

    @property
    def method_name(self) -> str:
        """The name its jobs are dispatched by."""
        return self._worker.method_name

    @property
    def defaults(self) -> JobDefaults:
        """What the decorator said about all jobs of the function."""
        return self._defaults

    @property
    def worker(self) -> FunctionWorker:
        """What runs its jobs."""
        return self._worker

    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> JobHandle:
        """Commit a job with these arguments."""
        return self._client.enqueue(self.job(*args, **kwargs))

    async def aenqueue(self, *args: P.args, **kwargs: P.kwargs) -> JobHandle:
        """`enqueue` without blocking the event loop."""
        return await self._client.aenqueue(self.job(*args, **kwargs))

    def job(self, *args: P.args, **kwargs: P.kwargs) -> Job:
        """The job, not enqueued: for `app.enqueue_many`."""
        return self._build(EnqueueOptions(), args, kwargs)

    def using(
        self,
        *,
        delay: Duration | None = None,
        at: datetime | None = None,
        queue: str | None = None,
        priority: int | None = None,
        max_retries: int | None = None,
        max_crashes: int | None = None,
        timeout: Duration | None = None,
        unique_key: str | None = None,
        metadata: Mapping[str, JsonValue] | None = None,
        conn: object | None = None,
    ) -> ConfiguredJob[P]:
        """The function with options for the jobs enqueued through it (see `EnqueueOptions`)."""
        options = EnqueueOptions(
            delay=delay,
            at=at,
            queue=queue,
            priority=priority,
            max_retries=max_retries,
            max_crashes=max_crashes,
            timeout=timeout,
            unique_key=unique_key,
            metadata=metadata,
            conn=conn,
        )
        return ConfiguredJob(functools.partial(self._build, options), self._client, options.conn)

    def _build(self, options: EnqueueOptions, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Job:
        payload = self._worker.binding.bind(args, kwargs)
        return build_job(self.method_name, payload, options, self._defaults)


class ConfiguredJob(Generic[P]):
    """A job function with options; made by `JobFunction.using`."""

    def __init__(self, build: Callable[..., Job], client: JobClient, conn: object | None) -> None:
        self._build = build
        self._client = client
        self._conn = conn

    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> JobHandle:
        """Commit a job with these arguments; with `conn`, it is committed with that transaction."""
        return self._client.enqueue(self._build(args, kwargs), conn=self._conn)

    async def aenqueue(self, *args: P.args, **kwargs: P.kwargs) -> JobHandle:
        """`enqueue` without blocking the event loop, save with `conn`."""
        return await self._client.aenqueue(self._build(args, kwargs), conn=self._conn)

    def job(self, *args: P.args, **kwargs: P.kwargs) -> Job:
        """The job, not enqueued. `conn` says nothing about it."""
        return self._build(args, kwargs)
