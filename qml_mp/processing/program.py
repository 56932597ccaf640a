"""Worker: everything that user code contributes to a server, and how a claim is run by it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction, signature
from typing import Any

from qml_mp.core.job import Claim, Job
from qml_mp.core.outcome import RetryWhenKilled
from qml_mp.core.payload import EncodedJson
from qml_mp.core.recurring import RecurringJob
from qml_mp.errors import ConfigurationError, shown
from qml_mp.processing.errors_text import message_of
from qml_mp.processing.middleware import (
    CallNext,
    FailureHook,
    JobMiddleware,
    StateChangeHook,
    TracingMiddleware,
)
from qml_mp.processing.plain import plain_result
from qml_mp.processing.registry import FunctionWorker, WorkerRegistry, is_notebook
from qml_mp.processing.retry import RetryPolicy, check_policy
from qml_mp.processing.tracing import Tracing, check_tracing
from qml_mp.settings import DEFAULT_QUEUE, ServerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What a worker runs. Made by a `QmlApp`, or by hand at the reference's level.

    Lives in the processes that run user code: workers, and hosts that hand it over by forking.
    """

    registry: WorkerRegistry
    retry_policy: RetryPolicy = field(default_factory=RetryPolicy)
    middleware: Sequence[JobMiddleware] = field(default_factory=lambda: (TracingMiddleware(),))
    """The first is the outermost."""
    on_state_change: StateChangeHook | None = None
    on_failure: FailureHook | None = None
    tracing: Tracing | None = None
    """Follows its jobs, e.g. as spans; None: nothing does, and nothing asks."""
    recurring: tuple[RecurringJob, ...] = ()
    """Templates that the code declares; the supervisor stores them at start."""
    name: str | None = None
    """Tells its templates from those of other apps; None: the "module:attribute" and the folder that it was
    found by do, and where there are none, no template is deleted."""
    queues: tuple[str, ...] = (DEFAULT_QUEUE,)
    """The queues that its functions and templates put jobs into, unless a call says otherwise."""
    url: str | None = None
    """The storage that the code names, when it does."""
    config: ServerConfig | None = None
    """The settings that the code gives, when it does."""
    attach: Callable[[str], None] | None = None
    """Tells the app, once in each worker and before the first job, the URL of the storage that the
    worker takes jobs from, so that what jobs enqueue goes there too; its schema is there. None: there is no
    app."""
    newest: Callable[[], Program] | None = field(default=None, init=False, compare=False, repr=False)
    """What the app declares by now, which may be more than this. None: this is all that there is, as of one
    that `replace` has made: what somebody has changed is theirs."""

    def __post_init__(self) -> None:
        check_policy(self.retry_policy, what="retry_policy")
        object.__setattr__(self, "middleware", _as_list(self.middleware))
        for number, layer in enumerate(self.middleware):
            check_plain(layer, what=f"middleware[{number}]", takes="(job, context, call_next)")
        if self.on_state_change is not None:
            check_plain(self.on_state_change, what="on_state_change", takes="(change)")
        if self.tracing is not None:
            check_tracing(self.tracing)

    def of_app(self, newest: Callable[[], Program]) -> Program:
        """This very program, once it knows whom to ask for a newer one."""
        object.__setattr__(self, "newest", newest)
        return self

    def misfits(self) -> dict[str, str]:
        """Of the templates whose payload does not fit their function: id to why. Runs the user's classes, and
        wants an import that is over: annotations name what is defined further down."""
        found: dict[str, str] = {}
        for each in self.recurring:
            worker = self.registry.get(each.method)
            if isinstance(worker, FunctionWorker):
                try:
                    worker.binding.check(deepcopy(each.payload))  # what is made of it may change it
                except Exception as problem:  # that it does not fit, or whatever the classes raise
                    found[each.id] = message_of(problem)
        return found

    def with_failure_hook(self, hook: FailureHook) -> Program:
        """The program with this function for failed jobs. Raises `ConfigurationError` when there is one
        already, and for a coroutine function."""
        if self.on_failure is not None and not is_notebook():  # where a cell may run again
            raise ConfigurationError("There is a function for failures already; call both from one function.")
        check_plain(hook, what="on_failure", takes="(job, error)")
        return replace(self, on_failure=hook)


def _as_list(middleware: object) -> tuple[Any, ...]:
    if isinstance(middleware, str) or not isinstance(middleware, Iterable):
        raise ConfigurationError(
            f"middleware is {shown(middleware)}; it must be a list of functions (job, context, call_next), "
            "the first the outermost."
        )
    return tuple(middleware)


def check_plain(hook: object, *, what: str, takes: str) -> None:
    """Raise `ConfigurationError` for what runs nothing when it is called, or cannot be called with what it
    `takes`, such as "(job, error)": so many arguments, by their places."""
    function = hook
    while isinstance(function, partial):
        function = function.func
    called = (function, getattr(function, "__call__", None))  # noqa: B004  # that of an object is what runs
    kinds = (iscoroutinefunction, isgeneratorfunction, isasyncgenfunction)
    if not callable(hook) or any(is_kind(each) for is_kind in kinds for each in called):
        raise ConfigurationError(
            f"{what} is {shown(hook)}; it must be a plain function {takes}. Of a coroutine or generator "
            "function nothing would run."
        )
    try:
        # Not of what a decorator has wrapped, which may be given more by it.
        taken = signature(hook, follow_wrapped=False)
    except (TypeError, ValueError):  # a function in C may not tell
        return
    try:
        taken.bind(*takes.strip("()").split(", "))
    except TypeError as problem:
        raise ConfigurationError(
            f"{what} is {shown(hook)}; it is called with {takes}, which it does not take: {problem}."
        ) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How a job is run: what it says goes first, then what its worker says, then the program or the server.
    Jobs of one method share them, unless they ask for something else or have failed more often."""

    method: str
    call: CallNext | None
    """Its worker, wrapped in the middleware; None: the program has no worker for the method."""
    policy: RetryPolicy
    limit: timedelta
    """The time limit of one attempt."""
    max_crashes: int | None
    """The crash budget; None: the server's."""
    max_retries: int | None
    """The retry budget; None: the policy's."""
    max_attempts: int
    """Attempts that may fail before the job ends Failed, the first included."""
    when_killed: RetryWhenKilled
    """Whether and when the job runs again should a limit kill this attempt. Jobs can share the jitter in
    it, because no process is killed twice."""
    encoded: Callable[[object], EncodedJson] = plain_result
    """What it returns, as it is stored; `InvalidJob` when it cannot be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """A claim, with all that its run needs."""

    claim: Claim
    terms: Terms

    @property
    def job(self) -> Job:
        """The row as the claim left it."""
        return self.claim.job
