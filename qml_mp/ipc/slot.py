"""Both ends of the slot: the shared-memory record in which a worker says what it is running.

One page per worker in an anonymous shared mapping, made by the supervisor before it forks. The
worker writes, the supervisor reads, nobody locks: a version number that is odd while the worker
writes tells a torn read (a sequence lock), also when the worker is killed in mid-write.
The head (`pid`, `started_ticks`) is written by the supervisor and read by its guardian.
That the worker has been ready is a byte of its own, outside of the version's guard: written once, it
is true also of a worker that was killed in the middle of a later write. So are that it has taken a claim to
begin it, the number of the reply that it has not read, and which claim is in its hands until then.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum

from qml_mp.core.job import KEY_BYTES, ClaimKey
from qml_mp.core.outcome import RetryWhenKilled
from qml_mp.ipc.pipe import packed_key, unpacked_key
from qml_mp.ipc.progress import PROGRESS_BYTES, ProgressCell

SLOT_BYTES = 4096
_HEAD = struct.Struct("<qq")  # pid, started_ticks
_VERSION_BYTES = 8
# activity, used_up, is_over, jobs_done, key, since
_NOW = struct.Struct(f"<B??xI{KEY_BYTES}sq")
# limit, retry (timeout, memory), max_crashes, method
_TERMS = struct.Struct("<qqqI64s")
_BODY_BYTES = _NOW.size + _TERMS.size
_TEXT_LENGTH = struct.Struct("<H")
_READY_AT = _HEAD.size
_TAKEN_AT = _READY_AT + 1
_VERSION_AT = _HEAD.size + 8  # aligned, so that it is written at once
_UNREAD_AT = _VERSION_AT + _VERSION_BYTES
_PATIENCE_AT = _UNREAD_AT + 8
_IN_HAND_AT = _PATIENCE_AT + 8
_BODY_AT = _IN_HAND_AT + 8
_TEXT_AT = _BODY_AT + _BODY_BYTES
_PROGRESS_AT = SLOT_BYTES - PROGRESS_BYTES
_MAX_TEXT_BYTES = _PROGRESS_AT - _TEXT_AT - _TEXT_LENGTH.size
_GIVE_UP = -1


class Activity(IntEnum):
    """What the worker is doing."""

    BOOTING = 0
    IDLE = 1
    FETCHING = 2
    """Asking the storage for a job."""
    RUNNING = 3
    """In the job named by `key`, user code included."""
    FINISHING = 4
    """Writing the outcome of the job named by `key`; never interrupted."""
    LEAVING = 5
    """On its way out in order, without a job."""
    CANNOT_BOOT = 6
    """On its way out before it was ready; `text` says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotView:
    """What a slot says: as the worker shows it, and as one consistent reading."""

    activity: Activity = Activity.BOOTING
    used_up: bool = False
    """Its number of jobs or its memory is spent: it asks to be replaced, and works on meanwhile. Or it cannot
    boot, because its memory is spent before its first job."""
    jobs_done: int = 0
    key: ClaimKey | None = None
    is_over: bool = False
    """The job in `key` has ended or never begins: what runs is a hook that is told of it, which has the limit
    to itself, and nobody's cancel is meant for it."""
    method: str = ""
    since_ns: int = 0
    """When the job in `key` started, on the monotonic clock that all processes of a machine share."""
    limit: timedelta = timedelta()
    """How long it may run."""
    retry: RetryWhenKilled = RetryWhenKilled()
    """What the retry policy says should a limit kill it."""
    max_crashes: int | None = None
    """The crash budget of the job or its function; None: the server's."""
    text: str = ""
    """Why the worker could not boot, or what it has to say of its end."""


class SlotTable:
    """The mapping with all slots. Made before the first fork; freed with the last process."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._memory = mmap.mmap(-1, capacity * SLOT_BYTES)
        self._numbers = _numbers(self._memory)

    def clear(self, index: int) -> None:
        """Make the slot ready for a new worker (supervisor, before the fork)."""
        self._memory[index * SLOT_BYTES : (index + 1) * SLOT_BYTES] = bytes(SLOT_BYTES)

    def set_process(self, index: int, *, pid: int, started_ticks: int) -> None:
        """Name the process that fills the slot (supervisor); pid 0: nobody."""
        _HEAD.pack_into(self._memory, index * SLOT_BYTES, pid, started_ticks)

    def process(self, index: int) -> tuple[int, int]:
        """(pid, started_ticks) of the process that fills the slot; (0, 0): nobody (guardian)."""
        pid, started_ticks = _HEAD.unpack_from(self._memory, index * SLOT_BYTES)
        return pid, started_ticks

    def was_ready(self, index: int) -> bool:
        """Whether the worker that fills the slot has ever been ready; it stays true."""
        return self._memory[index * SLOT_BYTES + _READY_AT] != 0

    def has_taken(self, index: int) -> bool:
        """Whether the worker has taken a claim whose job has not ended; it says so before it shows which."""
        return self._memory[index * SLOT_BYTES + _TAKEN_AT] != 0

    def read(self, index: int) -> SlotView | None:
        """What the worker says; None while it writes, for good if it died writing, and where a job has
        written over it."""
        at = index * SLOT_BYTES
        before = self.version(index)
        body = self._memory[at + _BODY_AT : at + _PROGRESS_AT]
        if before != self.version(index) or before % 2:
            return None
        try:
            return _view(body)
        except ValueError:  # of an activity that there is not
            return None

    def mark(self, index: int) -> tuple[int, int]:
        """Another one whenever the worker has said something, be it only that its job has ended."""
        return self.version(index), self._memory[index * SLOT_BYTES + _BODY_AT]

    def version(self, index: int) -> int:
        """Grows by 2 with each thing that the worker says."""
        return self._numbers[(index * SLOT_BYTES + _VERSION_AT) // _VERSION_BYTES]

    def progress(self, index: int) -> ProgressCell:
        """How far the job of the worker has come (supervisor)."""
        return ProgressCell(self._memory, self._numbers, index * SLOT_BYTES + _PROGRESS_AT)

    def unread(self, index: int) -> int:
        """Which reply of storage the worker has sent for and not taken in; 0: none."""
        return self._numbers[(index * SLOT_BYTES + _UNREAD_AT) // _VERSION_BYTES]

    def in_hand(self, index: int) -> int:
        """While a reply is on its way, `mark_of` the claim that is in hand."""
        return self._numbers[(index * SLOT_BYTES + _IN_HAND_AT) // _VERSION_BYTES]

    def patience_s(self, index: int) -> float:
        """How long the job that runs meanwhile may take before others get what the reply brings."""
        return self._numbers[(index * SLOT_BYTES + _PATIENCE_AT) // _VERSION_BYTES] / 1e9

    def writer(self, index: int) -> SlotWriter:
        """The worker's side of one slot."""
        return SlotWriter(self._memory, index * SLOT_BYTES)


class SlotWriter:
    """Written by the worker's main thread only."""

    def __init__(self, memory: mmap.mmap, at: int) -> None:
        self._memory = memory
        self._numbers = _numbers(memory)
        self._at = at
        self._version_at = (at + _VERSION_AT) // _VERSION_BYTES
        self._version = 0
        self.progress = ProgressCell(memory, self._numbers, at + _PROGRESS_AT)
        """Written by its jobs."""
        self.jobs_done = 0
        self.used_up = False
        """These two are shown with the next write."""

    def show_ready(self) -> None:
        """Say, once, that the worker has booted."""
        self._memory[self._at + _READY_AT] = 1
        self.show(SlotView(activity=Activity.IDLE))

    def show_cannot_boot(self, text: str) -> None:
        """Say that the worker leaves because it cannot boot, and why."""
        self._write(self._body(SlotView(activity=Activity.CANNOT_BOOT)) + _packed(text))

    def show(self, view: SlotView) -> None:
        """Say what this worker does, and its counts; a text that stands there stays."""
        self._write(self._body(view))

    def show_running(self, key: ClaimKey, *, since_ns: int, terms: bytes, is_over: bool = False) -> None:
        """Say, with its counts, that it runs this job, or what is told of it. `terms` are `packed_terms`, the
        same for many jobs."""
        self._write(self._now(Activity.RUNNING, key, since_ns, is_over=is_over) + terms)

    def show_taken(self) -> None:
        """Say that a claim is taken, whose job begins next."""
        self._memory[self._at + _TAKEN_AT] = 1

    def show_finishing(self) -> None:
        """Say that the job has ended, and nothing else: bytes, of which nobody can read a half."""
        self._memory[self._at + _BODY_AT] = Activity.FINISHING
        self._memory[self._at + _TAKEN_AT] = 0

    def show_unread(self, number: int, *, in_hand: ClaimKey, patience_s: float) -> None:
        """Say which reply is on its way, how long it may stay so, and which claim is in hand meanwhile: its
        number comes last, since whoever has seen it looks for the claim."""
        self._numbers[(self._at + _IN_HAND_AT) // _VERSION_BYTES] = mark_of(in_hand)
        self._numbers[(self._at + _PATIENCE_AT) // _VERSION_BYTES] = int(patience_s * 1e9)
        self._numbers[(self._at + _UNREAD_AT) // _VERSION_BYTES] = number

    def show_read(self) -> None:
        """Say that none is any more."""
        self._numbers[(self._at + _UNREAD_AT) // _VERSION_BYTES] = 0

    def say(self, text: str) -> None:
        """Leave a text (the end of it, when it is long) for the supervisor to show."""
        self._write(_packed(text), offset=_TEXT_AT)

    def _body(self, view: SlotView) -> bytes:
        terms = packed_terms(
            method=view.method, limit=view.limit, retry=view.retry, max_crashes=view.max_crashes
        )
        return self._now(view.activity, view.key, view.since_ns, is_over=view.is_over) + terms

    def _now(self, activity: Activity, key: ClaimKey | None, since_ns: int, *, is_over: bool) -> bytes:
        return _NOW.pack(activity, self.used_up, is_over, self.jobs_done, packed_key(key), since_ns)

    def _write(self, data: bytes, *, offset: int = _BODY_AT) -> None:
        at = self._at + offset
        self._numbers[self._version_at] = self._version + 1
        self._memory[at : at + len(data)] = data
        self._version += 2
        self._numbers[self._version_at] = self._version


def _numbers(memory: mmap.mmap) -> memoryview[int]:
    """The memory as words of 8 bytes, each of one store (`Struct.pack_into` writes zeros first)."""
    return memoryview(memory).cast("Q")


def mark_of(key: ClaimKey) -> int:
    """A claim in one word. Others may have the same, if somebody else has made their ids."""
    return int.from_bytes(key.packed[8:16])


def packed_terms(*, method: str, limit: timedelta, retry: RetryWhenKilled, max_crashes: int | None) -> bytes:
    """What a slot says of a job that is the same for many; the fields are those of `SlotView`."""
    return _TERMS.pack(
        _ns(limit), _delay_ns(retry.timeout), _delay_ns(retry.memory), max_crashes or 0, method.encode()[:64]
    )


def _packed(text: str) -> bytes:
    data = text.encode(errors="replace")[-_MAX_TEXT_BYTES:]
    return _TEXT_LENGTH.pack(len(data)) + data


def _view(body: bytes) -> SlotView:
    activity, used_up, is_over, jobs_done, key, since_ns = _NOW.unpack_from(body)
    limit_ns, timeout_ns, memory_ns, max_crashes, method = _TERMS.unpack_from(body, _NOW.size)
    (text_bytes,) = _TEXT_LENGTH.unpack_from(body, _BODY_BYTES)
    text_at = _BODY_BYTES + _TEXT_LENGTH.size
    return SlotView(
        activity=Activity(activity),
        used_up=used_up,
        jobs_done=jobs_done,
        key=unpacked_key(key),
        is_over=is_over,
        method=method.rstrip(b"\0").decode(errors="replace"),
        since_ns=since_ns,
        limit=timedelta(microseconds=limit_ns // 1000),
        retry=RetryWhenKilled(timeout=_delay(timeout_ns), memory=_delay(memory_ns)),
        max_crashes=max_crashes or None,
        text=body[text_at : text_at + text_bytes].decode(errors="replace"),
    )


def _delay_ns(delay: timedelta | None) -> int:
    return _GIVE_UP if delay is None else _ns(delay)


def _delay(delay_ns: int) -> timedelta | None:
    return None if delay_ns == _GIVE_UP else timedelta(microseconds=delay_ns // 1000)


def _ns(duration: timedelta) -> int:
    """A limit below zero, which only a row that nobody checked has, counts as zero."""
    return max(0, min(duration // timedelta(microseconds=1) * 1000, 2**63 - 1))
