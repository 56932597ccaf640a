"""Worker and client: what runs under which method name. A name is looked up here, never imported."""

from __future__ import annotations

import abc
import sys
from collections.abc import Callable
from datetime import timedelta
from importlib import import_module
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction, signature
from types import FunctionType
from typing import Any

from qml_mp.core.job import MAX_METHOD_CHARS, Job
from qml_mp.core.limits import Limit, LimitKind, Rate, check_max_running
from qml_mp.core.options import check_max_crashes, check_max_retries, check_timeout
from qml_mp.core.payload import EncodedJson, JsonValue, check_text
from qml_mp.errors import ConfigurationError, InvalidJob, shown
from qml_mp.processing.binding import Binding
from qml_mp.processing.context import WorkerContext, WorkerResult
from qml_mp.processing.plain import NOTHING, plain_result
from qml_mp.processing.retry import RetryPolicy, check_policy
from qml_mp.processing.returned import Returned


class Worker(abc.ABC):
    """Runs the jobs of one method. One instance serves all of them, one after the other."""

    retry_policy: RetryPolicy | None = None
    """None: the program's."""
    timeout: timedelta | None = None
    """Limit of one attempt for jobs that set none; None: the server's `job_timeout`."""
    max_retries: int | None = None
    """Retries after the first attempt for jobs that set none, 0: none; None: the policy's."""
    max_crashes: int | None = None
    """Crash budget for jobs that set none; None: the server's `max_crashes`."""
    max_running: int | None = None
    """Jobs of the method that run at a time, on all machines together; None: any number."""
    rate: Rate | None = None
    """Jobs of the method that begin per period, on all machines together, as `Rate.parse("50/s")`; None: any
    number."""
    keeps_result = True
    """False: what it returns is not stored."""

    @property
    @abc.abstractmethod
    def method_name(self) -> str:
        """The method it serves. A plain class attribute will do."""

    @abc.abstractmethod
    def execute(self, job: Job, context: WorkerContext) -> WorkerResult | JsonValue:
        """Do the job. A plain value is its result; an exception is a failed attempt.

        May be a coroutine function; it is then run in an event loop of its own.
        """

    def encoded(self, result: object) -> EncodedJson:
        """What it returned, as it is stored. Raises `InvalidJob` when it cannot be, and whatever the value's
        own code raises."""
        return plain_result(result) if self.keeps_result else NOTHING


class WorkerRegistry:
    """The workers by method name. Filled while the app is imported, only read afterwards."""

    def __init__(self) -> None:
        self._workers: dict[str, Worker] = {}

    def register(self, worker: Worker) -> WorkerRegistry:
        """Add a worker and return the registry. `ConfigurationError` for a second one of a method, unless it
        is the same function of a notebook, whose cell has run again: it replaces the one before."""
        if not isinstance(worker, Worker):
            raise ConfigurationError(
                f"{type(worker).__name__} is no Worker; derive it from qml_mp.Worker, or use @app.job()."
            )
        method = worker.method_name
        if not isinstance(method, str) or not 1 <= len(method) <= MAX_METHOD_CHARS:
            raise ConfigurationError(
                f"The method name {shown(method)} is not text of 1 to {MAX_METHOD_CHARS} characters."
            )
        try:
            check_text(method, what="The method name")
        except InvalidJob as problem:
            raise ConfigurationError(str(problem)) from None
        _check_limits(worker, method)
        earlier = self._workers.get(method)
        if earlier is not None and not _redefines(worker, earlier):
            raise ConfigurationError(f"The method {method!r} is registered twice{_remedy(worker, earlier)}")
        self._workers[method] = worker
        return self

    def get(self, method: str) -> Worker | None:
        """The worker of the method, or None."""
        return self._workers.get(method)

    def methods(self) -> tuple[str, ...]:
        """The method names, in the order of registration."""
        return tuple(self._workers)

    def limits(self) -> dict[str, Limit]:
        """What the workers say of how many of their jobs run, by method; of a method that is not limited
        nothing."""
        return {
            method: Limit(
                kind=LimitKind.METHOD, name=method, max_running=worker.max_running, rate=worker.rate
            )
            for method, worker in self._workers.items()
            if worker.max_running is not None or worker.rate is not None
        }


def is_notebook() -> bool:
    """Whether this process's program is typed into it, in Jupyter or at a prompt, and stands in no file."""
    return not hasattr(sys.modules.get("__main__"), "__file__")


def _remedy(worker: Worker, earlier: Worker) -> str:
    """Of two with one name. A job function is a function too, and another one could be made of it."""
    if isinstance(worker, FunctionWorker) and getattr(worker.function, "worker", None) is earlier:
        return (
            ", by two decorators of one function; write @app.recurring(...) above @app.job(...), of whose "
            "method it makes jobs then, or by itself."
        )
    return "; name one of them otherwise: @app.job(name=...)."


def _redefines(worker: Worker, earlier: Worker) -> bool:
    if not (is_notebook() and isinstance(worker, FunctionWorker) and isinstance(earlier, FunctionWorker)):
        return False
    both = [(each.__module__, each.__qualname__) for each in (worker.function, earlier.function)]
    return both[0] == both[1] and both[0][0] == "__main__"


def _check_limits(worker: Worker, method: str) -> None:
    """Refuse now what would break every process that comes to run the method."""
    check_policy(worker.retry_policy, what=f"The retry_policy of the worker of {method!r}")
    try:
        check_timeout(worker.timeout)
        check_max_retries(worker.max_retries)
        check_max_crashes(worker.max_crashes)
        check_max_running(worker.max_running)
        if isinstance(worker.rate, Rate):
            Rate.parse(worker.rate)
        elif worker.rate is not None:
            raise ConfigurationError(
                f'rate is {shown(worker.rate)}; it must be a Rate, as qml_mp.Rate.parse("5/s"), or None.'
            )
    except (InvalidJob, ConfigurationError) as problem:
        raise ConfigurationError(f"The worker of {method!r}: {problem}") from None


class FunctionWorker(Worker):
    """A plain or async function as a worker; the payload becomes its arguments (see `Binding`)."""

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        method_name: str,
        retry_policy: RetryPolicy | None = None,
        timeout: timedelta | None = None,
        max_crashes: int | None = None,
        max_running: int | None = None,
        rate: Rate | None = None,
    ) -> None:
        if isgeneratorfunction(function) or isasyncgenfunction(function):
            raise ConfigurationError(
                f"The job {method_name!r} is a generator function: nothing of it runs before its values are "
                "taken. Have it return a list, or enqueue a job for each of them."
            )
        if isinstance(function, classmethod) or _is_method(function):
            raise ConfigurationError(
                f"The job {method_name!r} is a method, and a worker has no object, or class, to call it on. "
                "Declare a function, or a @staticmethod without self, and pass what it needs as arguments."
            )
        self.function = function
        self.binding = Binding(function, name=method_name)
        self._returned = Returned(function)
        if iscoroutinefunction(function):
            import_module("asyncio")  # not in the first job, whose time limit could interrupt the import
        self.retry_policy = retry_policy
        self.timeout = timeout
        self.max_crashes = max_crashes
        self.max_running = max_running
        self.rate = rate
        self._method_name = method_name

    @property
    def method_name(self) -> str:
        return self._method_name

    def execute(self, job: Job, context: WorkerContext) -> Any:
        """Call the function, or make its coroutine; `PayloadMismatch` for a payload that does not fit."""
        return self.binding.call(job.payload, context)

    def encoded(self, result: object) -> EncodedJson:
        """By its annotation too, where the value alone does not say how it travels."""
        return self._returned.encoded(result) if self.keeps_result else NOTHING

    def rebuilt(self, job: Job) -> Any:
        """What the stored result of a job stands for by the function's annotation; `InvalidJob` when it does
        not fit."""
        return self._returned.rebuilt(job.result) if self.keeps_result else job.result


def _is_method(function: Callable[..., Any]) -> bool:
    """Whether it is certain: written in a class, it takes first what everybody calls so there. Those of
    Python's own classes take any object: `str.upper` is a function of a text."""
    if not isinstance(function, FunctionType):
        return False
    within = function.__qualname__.rpartition(".")[0]
    if not within or within.endswith("<locals>"):
        return False
    first = next(iter(signature(function).parameters.values()), None)
    return first is not None and first.name in ("self", "cls") and first.annotation is first.empty
