"""Both ends of the ended outcomes: what came of jobs that have ended, until it is written to storage.

A worker that runs short jobs writes their outcomes together. Until then they lie here, in memory that it
shares with its supervisor, so that a job that has ended does not run again because its worker died: the
supervisor writes them on its behalf. The worker alone appends and drops. One number says what counts: how
often something was dropped, and from which byte to which the records are whole; it is written after the
record, in one store. So there is nothing torn to read at any moment of the worker's death.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import timedelta
from types import MappingProxyType
from typing import Any

from qml_mp.core.job import KEY_BYTES, ClaimKey
from qml_mp.core.new_job import new_job_of, new_job_to_json
from qml_mp.core.outcome import (
    AttemptKind,
    Cancelled,
    Crash,
    ErrorInfo,
    Extras,
    Failure,
    Outcome,
    ProcessFacts,
    Release,
    Retry,
    Success,
    extras_of,
)
from qml_mp.core.progress import progress_of
from qml_mp.errors import InvalidJob
from qml_mp.ipc.pipe import unpacked_key

REGION_BYTES = 256 * 1024
_RECORDS_AT = 16  # behind two numbers
_HEAD, _WRITTEN = 0, 1
_PLACE_BITS = 20  # enough for `REGION_BYTES`
_PLACE_MASK = (1 << _PLACE_BITS) - 1
_TIMES_MASK = (1 << 64 - 2 * _PLACE_BITS) - 1
_RECORD = struct.Struct(f"<I?3x{KEY_BYTES}s")  # bytes of the body, whether it is a success's, key
_SUCCESS = struct.Struct("<q")  # microseconds; the result as JSON follows
_MICROSECOND = timedelta(microseconds=1)


class EndedTable:
    """The mapping with a region for each slot. Made before the first fork; freed with the last process. A
    page of it that nobody has ever written to takes no memory."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._memory = mmap.mmap(-1, capacity * REGION_BYTES)

    def region(self, index: int) -> EndedOutcomes:
        """The region of one slot, emptied for a new worker (supervisor, before the fork)."""
        region = EndedOutcomes(self._memory, index * REGION_BYTES)
        region.empty()
        return region

    def read(self, index: int) -> tuple[int, Mapping[ClaimKey, Outcome]]:
        """As `EndedOutcomes.read`, of the newest worker in this slot (guardian)."""
        return EndedOutcomes(self._memory, index * REGION_BYTES).read()


class EndedOutcomes:
    """One worker's region, as either side uses it."""

    def __init__(self, memory: mmap.mmap, at: int) -> None:
        self._memory = memory
        self._at = at
        self._before_newest: int | None = None
        """What the number was before the newest job ended; None: nothing is kept of that."""
        # An item of it is one store of 8 bytes. `Struct.pack_into` is not: it writes zeros first.
        self._numbers = memoryview(memory)[at : at + _RECORDS_AT].cast("Q")

    def append(self, key: ClaimKey, outcome: Outcome) -> bool:
        """Keep the outcome of this claim (worker); False when there is no room for it, and it is not kept."""
        is_fast = isinstance(outcome, Success) and outcome.not_stored is None and outcome.extras is None
        is_release = isinstance(outcome, Release)
        body = _encoded(outcome)
        if not is_release:
            self._before_newest = None
        if body is None:
            return False
        head = self._numbers[_HEAD]
        begin = _RECORDS_AT + (head & _PLACE_MASK)
        size = _RECORD.size + len(body)
        if begin + size > REGION_BYTES:
            return False
        at = self._at + begin
        _RECORD.pack_into(self._memory, at, len(body), is_fast, key.packed)
        self._memory[at + _RECORD.size : at + size] = body
        self._numbers[_HEAD] = head + size
        if not is_release:
            self._before_newest = head
        return True

    def take_back(self) -> None:
        """Do not keep what came of the newest job that has ended (worker), nor the releases since."""
        if self._before_newest is not None:
            self._numbers[_HEAD] = self._before_newest

    def empty(self) -> None:
        """All that was kept is written (worker), or was another worker's (supervisor, before the fork)."""
        self._drop(begin=0, end=0)

    @property
    def end(self) -> int:
        """Where the newest that is kept ends, for `drop_until` (worker)."""
        return self._numbers[_HEAD] & _PLACE_MASK

    def drop_until(self, end: int) -> None:
        """What was kept when `end` was this is written (worker), and the rest stays. It is moved to the front
        if that is free, or else the region would end some day."""
        _, begin, newest_end = _parts(self._numbers[_HEAD])
        size = newest_end - end
        if size <= begin:
            front, rest = self._at + _RECORDS_AT, self._at + _RECORDS_AT + end
            self._memory[front : front + size] = self._memory[rest : rest + size]
            self._drop(begin=0, end=size)
        else:
            self._drop(begin=end, end=newest_end)

    def read(self) -> tuple[int, Mapping[ClaimKey, Outcome]]:
        """What is kept, and the number to give to `note_written`; what cannot be read is left out."""
        head = self._numbers[_HEAD]
        times, begin, end = _parts(head)
        records = self._records(begin, end)
        if _parts(self._numbers[_HEAD])[0] != times:
            return head, {}  # the worker has dropped some meanwhile, and may have written over what was read
        return head, dict(_decoded(records))

    def note_written(self, head: int) -> None:
        """What `read` found when it returned this number is in storage (supervisor of a living worker)."""
        self._numbers[_WRITTEN] = head

    @property
    def has_unwritten(self) -> bool:
        """Whether something is kept that the supervisor has not written."""
        head = self._numbers[_HEAD]
        _, begin, end = _parts(head)
        return begin != end and head != self._numbers[_WRITTEN]

    def written_by_supervisor(self) -> frozenset[ClaimKey]:
        """Those that are kept of which the worker need not tell any more (worker)."""
        times, begin, _ = _parts(self._numbers[_HEAD])
        written_times, _, written_end = _parts(self._numbers[_WRITTEN])
        if written_times != times:
            return frozenset()
        return frozenset(key for key, _ in _decoded(self._records(begin, written_end)))

    def _drop(self, *, begin: int, end: int) -> None:
        self._before_newest = None
        times = _parts(self._numbers[_HEAD])[0] + 1 & _TIMES_MASK
        self._numbers[_HEAD] = (times << _PLACE_BITS | begin) << _PLACE_BITS | end

    def _records(self, begin: int, end: int) -> bytes:
        at = self._at + _RECORDS_AT
        return self._memory[at + begin : at + min(end, REGION_BYTES - _RECORDS_AT)]


def _parts(number: int) -> tuple[int, int, int]:
    """How often something was dropped, and from which byte to which records are kept."""
    return number >> 2 * _PLACE_BITS, number >> _PLACE_BITS & _PLACE_MASK, number & _PLACE_MASK


def _encoded(outcome: Outcome) -> bytes | None:
    """The body of a record; None: there is no text for it. A success comes first, in a form of its own,
    because every job that is worth the speed ends with one."""
    try:
        if isinstance(outcome, Success) and outcome.not_stored is None and outcome.extras is None:
            return _SUCCESS.pack(outcome.duration // _MICROSECOND) + outcome.result_text().encode()
        extras = extras_of(outcome)
        if extras is not None and isinstance(outcome, Success | Retry | Failure):
            fields = asdict(replace(outcome, extras=None)) | {"extras": _extras_to_json(extras)}
        else:
            fields = asdict(outcome)
        return json.dumps([type(outcome).__name__, fields], default=_plain).encode()
    except (InvalidJob, ValueError, TypeError, RecursionError, struct.error):
        return None


def _decoded(records: bytes) -> list[tuple[ClaimKey, Outcome]]:
    found = []
    at = 0
    while at + _RECORD.size <= len(records):
        size, is_fast, packed = _RECORD.unpack_from(records, at)
        body = records[at + _RECORD.size : at + _RECORD.size + size]
        at += _RECORD.size + size
        key = unpacked_key(packed)
        try:
            if key is not None:
                found.append((key, _success(body) if is_fast else _other(body)))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, struct.error):
            continue  # a job has written here
    return found


def _success(body: bytes) -> Success:
    (duration_us,) = _SUCCESS.unpack_from(body)
    text = body[_SUCCESS.size :].decode()
    return Success(result=json.loads(text), duration=_duration(duration_us), encoded=text)


def _other(body: bytes) -> Outcome:
    name, fields = json.loads(body)
    for field in _READ.keys() & fields.keys():
        if fields[field] is not None:
            fields[field] = _READ[field](fields[field])
    return _KINDS[name](**fields)


def _extras_to_json(extras: Extras) -> dict[str, Any]:
    return {
        "follow_ups": [new_job_to_json(job) for job in extras.follow_ups],
        "progress": extras.progress and extras.progress.to_json(),
    }


def _extras(fields: dict[str, Any]) -> Extras:
    return Extras(
        follow_ups=tuple(map(new_job_of, fields["follow_ups"])), progress=progress_of(fields["progress"])
    )


def _plain(value: object) -> object:
    if isinstance(value, timedelta):
        return value // _MICROSECOND
    raise TypeError(f"no outcome has a {type(value).__name__}")


def _duration(microseconds: int) -> timedelta:
    return timedelta(microseconds=microseconds)


_KINDS: Mapping[str, Callable[..., Outcome]] = MappingProxyType(
    {kind.__name__: kind for kind in (Success, Retry, Failure, Cancelled, Release, Crash)}
)
_READ: Mapping[str, Callable[[Any], Any]] = MappingProxyType(
    {
        "duration": _duration,
        "delay": _duration,
        "rerun_after": _duration,
        "kind": AttemptKind,
        "error": lambda fields: ErrorInfo(**fields),
        "process": lambda fields: ProcessFacts(**fields),
        "extras": _extras,
    }
)
"""How those fields of an outcome are read that JSON does not hold as they are; null is None."""
