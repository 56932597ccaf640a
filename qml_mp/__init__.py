"""qml-mp: CPU-bound background jobs, one supervisor, N worker processes, no job lost.

Every public name is found here. Each is imported when it is first asked for, so that
`import qml_mp` costs nothing and loads no database driver.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from qml_mp.app import QmlApp
    from qml_mp.core.job import Job
    from qml_mp.core.limits import Rate
    from qml_mp.core.outcome import ErrorInfo
    from qml_mp.core.progress import Progress
    from qml_mp.core.recurring import RecurringJob
    from qml_mp.core.state import StateName
    from qml_mp.embedding.background_server import BackgroundJobServer
    from qml_mp.errors import (
        AppImportError,
        ConfigurationError,
        InvalidJob,
        InvalidTransition,
        JobFailed,
        JobInterrupted,
        JobNotFound,
        JobTimeout,
        LockLost,
        LockNotAcquired,
        OutcomeRefused,
        QmlError,
        RecurringNotFound,
        ResultMismatch,
        ResultNotStored,
        SchemaMismatch,
        ServerAlreadyRunning,
        StorageError,
        StorageUnavailable,
        StorageUnreachable,
        UnknownMethod,
        WaitTimeout,
        WorkerBootError,
    )
    from qml_mp.handle import JobHandle
    from qml_mp.job_function import JobFunction
    from qml_mp.named_lock import NamedLock
    from qml_mp.processing.cancel import CancelReason, CancelToken
    from qml_mp.processing.context import WorkerContext, WorkerResult
    from qml_mp.processing.middleware import JobMiddleware, StateChange, TracingMiddleware
    from qml_mp.processing.program import Program
    from qml_mp.processing.registry import Worker, WorkerRegistry
    from qml_mp.processing.retry import RetryPolicy
    from qml_mp.settings import ServerConfig
    from qml_mp.storage.open import open_storage
    from qml_mp.storage.store import Storage
    from qml_mp.storage.values import CancelResult
else:
    from types import MappingProxyType

    _PLACES = MappingProxyType({
        "app": ("QmlApp",),
        "core.job": ("Job",),
        "core.limits": ("Rate",),
        "core.outcome": ("ErrorInfo",),
        "core.progress": ("Progress",),
        "core.recurring": ("RecurringJob",),
        "core.state": ("StateName",),
        "errors": (
            "AppImportError", "ConfigurationError", "InvalidJob", "InvalidTransition", "JobFailed",
            "JobInterrupted", "JobNotFound", "JobTimeout", "LockLost", "LockNotAcquired", "OutcomeRefused",
            "QmlError", "RecurringNotFound", "ResultMismatch", "ResultNotStored", "SchemaMismatch",
            "ServerAlreadyRunning", "StorageError", "StorageUnavailable", "StorageUnreachable",
            "UnknownMethod", "WaitTimeout", "WorkerBootError",
        ),
        "handle": ("JobHandle",),
        "job_function": ("JobFunction",),
        "named_lock": ("NamedLock",),
        "processing.cancel": ("CancelReason", "CancelToken"),
        "processing.context": ("WorkerContext", "WorkerResult"),
        "processing.middleware": ("JobMiddleware", "StateChange", "TracingMiddleware"),
        "processing.program": ("Program",),
        "processing.registry": ("Worker", "WorkerRegistry"),
        "processing.retry": ("RetryPolicy",),
        "settings": ("ServerConfig",),
        "storage.open": ("open_storage",),
        "storage.store": ("Storage",),
        "storage.values": ("CancelResult",),
        "embedding.background_server": ("BackgroundJobServer",),
    })  # fmt: skip

    def __getattr__(name: str) -> object:
        from importlib import import_module

        for place, names in _PLACES.items():
            if name in names:
                return getattr(import_module(f"{__name__}.{place}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted(__all__)


__all__ = [
    "AppImportError", "BackgroundJobServer", "CancelReason", "CancelResult", "CancelToken",
    "ConfigurationError", "ErrorInfo", "InvalidJob", "InvalidTransition", "Job", "JobFailed", "JobFunction",
    "JobHandle", "JobInterrupted", "JobMiddleware", "JobNotFound", "JobTimeout", "LockLost",
    "LockNotAcquired", "NamedLock", "OutcomeRefused", "Program", "Progress", "QmlApp", "QmlError",
    "Rate", "RecurringJob", "RecurringNotFound", "ResultMismatch", "ResultNotStored", "RetryPolicy",
    "SchemaMismatch", "ServerAlreadyRunning",
    "ServerConfig", "StateChange", "StateName", "Storage", "StorageError", "StorageUnavailable",
    "StorageUnreachable", "TracingMiddleware", "UnknownMethod", "WaitTimeout", "Worker", "WorkerBootError",
    "WorkerContext", "WorkerRegistry", "WorkerResult", "__version__", "open_storage",
]  # fmt: skip
