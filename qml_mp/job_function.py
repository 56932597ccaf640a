"""Client and worker: what `@app.job()` makes of a function."""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from typing import (
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    Protocol,
    SupportsIndex,
    TypeVar,
    Unpack,
    overload,
)
from uuid import UUID

from qml_mp.client import JobClient
from qml_mp.core.job import Job, check_is_job
from qml_mp.core.options import EnqueueOptions, documented, pop_conn, read_job_options
from qml_mp.core.payload import EncodedJson, JsonValue
from qml_mp.errors import InvalidJob, shown
from qml_mp.function_options import OF_THE_WORKER
from qml_mp.handle import JobHandle
from qml_mp.processing.by_name import name_of
from qml_mp.processing.context import WorkerContext, WorkerResult
from qml_mp.processing.registry import FunctionWorker
from qml_mp.settings import DEFAULT_QUEUE

P = ParamSpec("P")
"""The arguments of a job: the function's parameters without its `WorkerContext`."""
R = TypeVar("R", covariant=True)
"""What a job comes to."""
C = TypeVar("C", covariant=True)
"""What a direct call of the function gives: its result, or a coroutine of it."""


class ConfiguredJob(Generic[P, R]):
    """A job function with options; made by `JobFunction.using`.

    Arguments are bound to the signature and turned into JSON when the job is enqueued: what does
    not fit raises `InvalidJob`, and nothing is written.
    """

    def __init__(
        self,
        worker: FunctionWorker,
        *,
        options: Mapping[str, Any],
        client: JobClient,
        said: Mapping[str, Any] | None = None,
        conn: object | None = None,
    ) -> None:
        """`said`: what `using` was told, a part of the options."""
        self.worker = worker
        self._options = options
        self._client = client
        self._said = said or {}
        self._conn = conn

    @property
    def method_name(self) -> str:
        """The name its jobs are dispatched by."""
        return self.worker.method_name

    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> JobHandle[R]:
        """Commit a job with these arguments; with `conn`, it is committed with that transaction."""
        return self._client.enqueue(self.job(*args, **kwargs), rebuilt=self.worker.rebuilt, conn=self._conn)

    async def aenqueue(self, *args: P.args, **kwargs: P.kwargs) -> JobHandle[R]:
        """`enqueue` without blocking the event loop, save with `conn`. One that is cancelled writes nothing
        any more unless the storage was at it: then the job may be there."""
        job = self.job(*args, **kwargs)
        return await self._client.aenqueue(job, rebuilt=self.worker.rebuilt, conn=self._conn)

    def enqueue_many(self, jobs: Iterable[Job]) -> list[JobHandle[R]]:
        """Commit all of the jobs, which are this function's, in one transaction or, on any error, none:
        `f.enqueue_many(f.job(n) for n in range(9))`. Handles in order.

        Options are of each job, from when it is made; `conn` alone is of the call. With options, make the
        jobs with the same: `g = f.using(priority=5); g.enqueue_many(g.job(n) for n in range(9))`. A job that
        has not what `using` says here raises `InvalidJob`, and what is no job `TypeError`.
        """
        return self._client.enqueue_many(self._own(jobs), rebuilt=self.worker.rebuilt, conn=self._conn)

    async def aenqueue_many(self, jobs: Iterable[Job]) -> list[JobHandle[R]]:
        """`enqueue_many` without blocking the event loop, save with `conn`; cancelled as `aenqueue` is."""
        given = self._own(jobs)
        return await self._client.aenqueue_many(given, rebuilt=self.worker.rebuilt, conn=self._conn)

    def handle(self, job_id: str | UUID) -> JobHandle[R]:
        """The handle of a job of this function that was enqueued before, here or elsewhere."""
        return self._client.handle(job_id, rebuilt=self.worker.rebuilt, method=self.method_name)

    def job(self, *args: P.args, **kwargs: P.kwargs) -> Job:
        """The job, not enqueued: for `app.enqueue_many`. It is one row, however often it is enqueued. `conn`
        says nothing about it."""
        return Job.new(self.method_name, self.worker.binding.bind(args, kwargs), **self._options)

    def _own(self, jobs: Iterable[Job]) -> Iterator[Job]:
        for job in jobs:
            if check_is_job(job).method != self.method_name:
                raise InvalidJob(
                    f"The job {job.id} is one of {shown(job.method)}, not of {self.method_name!r}; jobs of "
                    "several functions are enqueued together by app.enqueue_many."
                )
            lacking = list(_lacking(job, self._said))
            if lacking:
                raise InvalidJob(
                    f"The job {job.id} has not {' and '.join(lacking)}, as using(...) says: options are of "
                    "each job. Make them with the same: g = f.using(...); g.enqueue_many(g.job(...) for ...)."
                )
            yield job


def _lacking(job: Job, said: Mapping[str, Any]) -> Iterator[str]:
    """Those of the options that the job has not."""
    for name, value in said.items():
        has: object
        match name:
            case "delay":
                has = (job.run_at or job.created_at) - job.created_at
            case "at":
                has = job.run_at
            case _:
                has = getattr(job, name)
        if has != value:
            yield f"{name} {shown(value)}"


class JobFunction(ConfiguredJob[P, R], Generic[P, R, C]):
    """A function that can be enqueued, and called directly as before."""

    __name__: str

    def __init__(
        self,
        function: Callable[..., C],
        *,
        method_name: str,
        options: Mapping[str, Any],
        client: JobClient,
    ) -> None:
        vars(self).update(_attributes_of(function))
        functools.update_wrapper(self, function, updated=())  # last: `__wrapped__` is the function itself
        self._function = function
        worker = FunctionWorker(
            function,
            method_name=method_name,
            retry_policy=options.get("retry"),
            timeout=options.get("timeout"),
            max_crashes=options.get("max_crashes"),
            max_running=options.get("max_running"),
            rate=options.get("rate"),
        )
        worker.max_retries = options.get("max_retries")
        worker.keeps_result = options.get("result", True)
        of_the_row = {name: value for name, value in options.items() if name not in OF_THE_WORKER}
        super().__init__(worker, options=of_the_row, client=client)
        _mark_if_coroutine_function(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> C:
        """Call the function here and now; no job is made."""
        return self._function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<job {self.method_name!r}>"

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        """By name like a function, as its own function is not found by that name any more."""
        return name_of(self) or super().__reduce_ex__(protocol)

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        _mark_if_coroutine_function(self, self._function)  # a mark is one object of its process

    @property
    def queue(self) -> str:
        """The queue of its jobs, unless they are given another."""
        return str(self._options.get("queue", DEFAULT_QUEUE))

    @property
    def priority(self) -> int:
        """That of its jobs, unless they are given another."""
        return int(self._options.get("priority", 0))

    @documented(EnqueueOptions)
    def using(self, **options: Unpack[EnqueueOptions]) -> ConfiguredJob[P, R]:
        """The function with options for the jobs enqueued through it. They win over the decorator's.

        A duration is a `timedelta`, a number of seconds or text like "5m".
        Raises `InvalidJob` or `ConfigurationError` naming the option for what no job can have.
        """
        conn = pop_conn(options)
        said = read_job_options(options)
        both = {**self._options, **said}
        return ConfiguredJob(self.worker, options=both, client=self._client, said=said, conn=conn)

    def make_job(self, payload: JsonValue, options: Mapping[str, Any]) -> Job:
        """The job of a payload by name; `options` are those that `read_job_options` gives. `InvalidJob` for a
        payload that does not fit the signature."""
        encoded = EncodedJson.of(payload, what="The payload")
        # A copy, as a worker will read it: classes of the user's are made of it, and may change it.
        self.worker.binding.check(json.loads(encoded.text))
        return Job.new(self.method_name, encoded, **{**self._options, **options})


def _attributes_of(function: Callable[..., Any]) -> dict[str, Any]:
    """What other code has hung on the function, such as a mark of its decorator's. What has the name of
    something that a job function has itself stays on the function alone: a `handle` would take away
    `f.handle(id)`."""
    hung = getattr(function, "__dict__", {})
    return {name: value for name, value in hung.items() if not hasattr(JobFunction, name)}


def _mark_if_coroutine_function(job: Any, function: Callable[..., Any]) -> None:
    """Starlette and others look for it before they call, to know whether they have to await."""
    if not any(map(inspect.iscoroutinefunction, (function, type(function).__call__))):
        return
    if sys.version_info >= (3, 12):
        inspect.markcoroutinefunction(job)
    else:
        from asyncio import coroutines  # asyncio's own `iscoroutinefunction` looks for it, inspect's for none

        job._is_coroutine = vars(coroutines)["_is_coroutine"]


class Decorator(Protocol):
    """Turns a function into a `JobFunction`; a leading `WorkerContext` is no argument of its jobs. The result
    of an `async` function is what it returns when it is awaited; that of a `WorkerResult` is any JSON."""

    # fmt: off
    @overload
    def __call__(  # type: ignore[overload-overlap]  # it can be called, too
        self, function: JobFunction[P, R, C], /
    ) -> JobFunction[P, R, C]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[WorkerContext, P], Coroutine[Any, Any, WorkerResult]], /
    ) -> JobFunction[P, JsonValue, Coroutine[Any, Any, WorkerResult]]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[WorkerContext, P], WorkerResult], /
    ) -> JobFunction[P, JsonValue, WorkerResult]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[WorkerContext, P], Coroutine[Any, Any, R]], /
    ) -> JobFunction[P, R, Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[WorkerContext, P], R], /
    ) -> JobFunction[P, R, R]: ...
    @overload
    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, WorkerResult]], /
    ) -> JobFunction[P, JsonValue, Coroutine[Any, Any, WorkerResult]]: ...
    @overload
    def __call__(self, function: Callable[P, WorkerResult], /) -> JobFunction[P, JsonValue, WorkerResult]: ...
    @overload
    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> JobFunction[P, R, Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> JobFunction[P, R, R]: ...
    # fmt: on


class DecoratorWithoutResult(Protocol):
    """The same where no result is kept."""

    # fmt: off
    @overload
    def __call__(
        self, function: JobFunction[P, R, C], /
    ) -> JobFunction[P, None, C]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[WorkerContext, P], C], /
    ) -> JobFunction[P, None, C]: ...
    @overload
    def __call__(self, function: Callable[P, C], /) -> JobFunction[P, None, C]: ...
    # fmt: on
