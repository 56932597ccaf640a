"""Host: the program of a notebook, made ready to be sent to a server: by value, since no name finds it.

Functions and classes of cells go along whole, with the globals that they use; what was imported from a module
goes by its name, and the server imports it. It goes through the pipe to the server's own process and nowhere
else: nothing of it enters the storage, where a job is a name and JSON as always.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from qml_mp.child.source import PickledProgram
from qml_mp.errors import ConfigurationError
from qml_mp.processing.program import Program
from qml_mp.processing.registry import FunctionWorker, Worker


def by_value(program: Program) -> PickledProgram:
    """Raises `ConfigurationError` where cloudpickle is not installed, and for a job function that takes along
    what cannot be sent; it is named."""
    try:
        import cloudpickle
    except ImportError:
        raise ConfigurationError(
            "The functions of a notebook are sent to the server by cloudpickle, which is not installed here: "
            "pip install 'qml-mp[notebook]'. Or put them into a module, and pass the app by name: "
            'BackgroundJobServer(config, storage, "module:attribute").'
        ) from None
    workers = list(_workers(program))
    for worker in workers:
        if isinstance(worker, FunctionWorker):
            worker.binding.resolve()  # the names in annotations are those of this process
    try:
        return PickledProgram(data=cloudpickle.dumps(program))
    except Exception as error:  # whatever an object of the user's raises when it is pickled
        method = next((each.method_name for each in workers if not _can_go_alone(each, workers)), None)
        what = "The app" if method is None else f"The job function {method!r}"
        raise ConfigurationError(
            f"{what} cannot be sent to the server: {type(error).__name__}: {error}. It takes along the "
            "globals that it uses; open connections, files and locks inside of the function."
        ) from error


def _workers(program: Program) -> Iterator[Worker]:
    for method in program.registry.methods():
        worker = program.registry.get(method)
        if worker is not None:
            yield worker


def _can_go_alone(worker: Worker, workers: list[Worker]) -> bool:
    """Whether it can be pickled without the others, which an app that it enqueues with takes along."""
    import cloudpickle

    others = {
        id(part) for each in workers if each is not worker for part in (each, vars(each).get("function"))
    }

    class Alone(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle is not typed
        def persistent_id(self, part: Any) -> str | None:
            return "another" if part is not None and id(part) in others else None

    try:
        Alone(io.BytesIO()).dump(worker)
    except Exception:
        return False
    return True
