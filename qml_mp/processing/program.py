"""Worker: everything that user code contributes to a server, as one value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from qml_mp.core.recurring import RecurringJob
from qml_mp.processing.middleware import JobMiddleware, StateChangeHook, TracingMiddleware
from qml_mp.processing.registry import WorkerRegistry
from qml_mp.processing.retry import RetryPolicy, check_policy
from qml_mp.settings import DEFAULT_QUEUE, ServerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What a worker runs. Made by a `QmlApp`, or by hand at the reference's level.

    Lives in the processes that run user code: workers, and hosts that hand it over by forking.
    """

    registry: WorkerRegistry
    retry_policy: RetryPolicy = field(default_factory=RetryPolicy)
    middleware: tuple[JobMiddleware, ...] = field(default_factory=lambda: (TracingMiddleware(),))
    on_state_change: StateChangeHook | None = None
    recurring: tuple[RecurringJob, ...] = ()
    """Templates that the code declares; the supervisor stores them at start."""
    queues: tuple[str, ...] = (DEFAULT_QUEUE,)
    """The queues that its functions and templates put jobs into, unless a call says otherwise."""
    url: str | None = None
    """The storage that the code names, when it does."""
    config: ServerConfig | None = None
    """The settings that the code gives, when it does."""
    attach: Callable[[str], None] | None = None
    """Tells the app, once in each worker and before the first job, the URL of the storage that the
    worker takes jobs from, so that what jobs enqueue goes there too. None: there is no app."""

    def __post_init__(self) -> None:
        check_policy(self.retry_policy, what="retry_policy")
