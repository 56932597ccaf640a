"""Client: waiting for many jobs together."""

from __future__ import annotations

import logging
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Collection,
    Generator,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import aclosing, closing
from datetime import timedelta
from functools import partial
from typing import Any, Literal, TypeVar, overload

from qml_mp.core.job import Job
from qml_mp.ends import JobEnds
from qml_mp.errors import ConfigurationError, QmlError, StorageError, WaitTimeout, shown
from qml_mp.handle import JobHandle, deadline_of, parsed_timeout
from qml_mp.units import Duration, format_duration

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Gathering:
    """A part of `QmlApp`, which needs nothing of it.

    One statement looks for all of the jobs, and who ends one of them says so: a thousand cost no more than
    one. What `JobHandle.wait` says of waiting inside of a job holds for all of this.
    """

    @overload
    def wait_all(
        self,
        handles: Iterable[JobHandle[T]],
        timeout: Duration | None = None,
        *,
        return_exceptions: Literal[False] = False,
    ) -> list[T]: ...
    @overload
    def wait_all(
        self, handles: Iterable[JobHandle[T]], timeout: Duration | None = None, *, return_exceptions: bool
    ) -> list[T | QmlError]: ...
    def wait_all(
        self,
        handles: Iterable[JobHandle[Any]],
        timeout: Duration | None = None,
        *,
        return_exceptions: bool = False,
    ) -> list[Any]:
        """Wait until all of the jobs have ended; their results in the order of the handles.

        The first job that ends without a result raises what `handle.wait()` would, at once; with
        `return_exceptions` that stands in its place in the list. Raises `WaitTimeout` when some have not
        ended after `timeout` (None: wait without a limit). All jobs go on in any case.
        """
        given, limit = list(handles), parsed_timeout(timeout)
        results: list[Any] = [None] * len(given)
        with closing(_ends(given, limit)) as ends:
            for place, job in ends:
                results[place] = _outcome(given[place], job, return_exceptions)
        return results

    @overload
    async def await_all(
        self,
        handles: Iterable[JobHandle[T]],
        timeout: Duration | None = None,
        *,
        return_exceptions: Literal[False] = False,
    ) -> list[T]: ...
    @overload
    async def await_all(
        self, handles: Iterable[JobHandle[T]], timeout: Duration | None = None, *, return_exceptions: bool
    ) -> list[T | QmlError]: ...
    async def await_all(
        self,
        handles: Iterable[JobHandle[Any]],
        timeout: Duration | None = None,
        *,
        return_exceptions: bool = False,
    ) -> list[Any]:
        """`wait_all` without blocking the event loop."""
        given, limit = list(handles), parsed_timeout(timeout)
        results: list[Any] = [None] * len(given)
        async with aclosing(_aends(given, limit)) as ends:
            async for place, job in ends:
                results[place] = _outcome(given[place], job, return_exceptions)
        return results

    def as_completed(
        self, handles: Iterable[JobHandle[T]], timeout: Duration | None = None
    ) -> Iterator[JobHandle[T]]:
        """The handles, each as soon as its job has ended, in whatever way or because it is gone; what came of
        it, `handle.wait()` says.

        Raises `WaitTimeout` when some have not ended after `timeout`, counted from the first `next`.
        """
        given, limit = list(handles), parsed_timeout(timeout)
        return (given[place] for place, _ in _ends(given, limit))

    def aas_completed(
        self, handles: Iterable[JobHandle[T]], timeout: Duration | None = None
    ) -> AsyncIterator[JobHandle[T]]:
        """`as_completed` for `async for`; `await handle.await_result()` says what came of each."""
        given, limit = list(handles), parsed_timeout(timeout)
        return (given[place] async for place, _ in _aends(given, limit))


def _ends(
    handles: Sequence[JobHandle[Any]], limit: timedelta | None
) -> Generator[tuple[int, Job | None], None, None]:
    """The place of each handle whose job has ended, and the job's row."""
    places, deadline = _places(handles), deadline_of(limit)
    if not places:
        return
    ends = _ends_of(handles)
    with ends.wait(places) as waiting:
        while places and (ended := waiting.next_ended(deadline=deadline)):
            yield from _taken(places, ended)
    if places:
        yield from _taken(places, _ended_at_last(ends, places))
    _check_that_all_ended(places, limit)


async def _aends(
    handles: Sequence[JobHandle[Any]], limit: timedelta | None
) -> AsyncGenerator[tuple[int, Job | None], None]:
    places, deadline = _places(handles), deadline_of(limit)
    if not places:
        return
    ends = _ends_of(handles)
    async with ends.awaiting.subscribe(places) as subscription:
        while places and (ended := await subscription.next_ended(deadline=deadline)):
            for each in _taken(places, ended):
                yield each
    if places:
        for each in _taken(places, await ends.threads.call(partial(_ended_at_last, ends, places))):
            yield each
    _check_that_all_ended(places, limit)


def _places(handles: Sequence[JobHandle[Any]]) -> dict[str, list[int]]:
    """By id: one job may have several handles."""
    places: dict[str, list[int]] = {}
    for place, handle in enumerate(handles):
        if not isinstance(handle, JobHandle):
            raise TypeError(f"Place {place} of the handles is {shown(handle)}, which is no JobHandle.")
        places.setdefault(handle.id, []).append(place)
    return places


def _ends_of(handles: Sequence[JobHandle[Any]]) -> JobEnds:
    """Of the one storage that all are of."""
    urls = {handle.ends.storage.url for handle in handles}
    if len(urls) > 1:
        shown_urls = sorted({handle.ends.storage.display_url for handle in handles})
        raise ConfigurationError(
            f"The handles are of several storages ({', '.join(shown_urls)}); wait for each one's by itself."
        )
    return handles[0].ends


def _taken(places: dict[str, list[int]], ended: dict[str, Job | None]) -> list[tuple[int, Job | None]]:
    """In the order of the handles."""
    return sorted(
        ((place, ended[job_id]) for job_id in ended for place in places.pop(job_id)), key=lambda each: each[0]
    )


def _ended_at_last(ends: JobEnds, job_ids: Collection[str]) -> dict[str, Job | None]:
    """The time is over: those that have ended since the last look, which may be a while ago."""
    ended: dict[str, Job | None] = {}
    try:
        while True:
            found = ends.storage.ended_jobs([job_id for job_id in job_ids if job_id not in ended])
            ended |= found.jobs
            if found.is_all:
                break
    except StorageError as problem:
        logger.warning("The last look for jobs that are waited for failed: %s", problem)
    return ended


def _check_that_all_ended(places: dict[str, list[int]], limit: timedelta | None) -> None:
    if places:
        raise WaitTimeout(
            f"{len(places)} of the jobs, such as {next(iter(places))}, were not seen to end within "
            f"{format_duration(limit or timedelta())}; they go on. Does a server serve their queues?"
        )


def _outcome(handle: JobHandle[Any], job: Job | None, return_exceptions: bool) -> Any:
    try:
        return handle.outcome(job)
    except QmlError as problem:
        if not return_exceptions:
            raise
        return problem
