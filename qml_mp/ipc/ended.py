"""Both ends of the ended outcomes: what came of jobs that have ended, until it is written to storage.

A worker that runs short jobs writes their outcomes together. Until then they lie here, in memory that it
shares with its supervisor, so that a job that has ended does not run again because its worker died: the
supervisor writes them on its behalf. The worker alone appends and drops. One number says what counts: how
often something was dropped, and from which byte to which the records are whole; it is written after the
record, in one store. So there is nothing torn to read at any moment of the worker's death.

What is dropped was written to storage, and is counted in the same moment (`ipc/counts.py`): the counts say
until where they have what lies here. No job begins while there is no room for the largest result. An outcome
that cannot be kept all the same, as one with large follow-up jobs, leaves its key and its times.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b

from qml_mp.core.history import Ending, microseconds_of
from qml_mp.core.job import KEY_BYTES, ClaimKey
from qml_mp.core.outcome import Outcome, Release, Success
from qml_mp.core.payload import MAX_PAYLOAD_BYTES
from qml_mp.ipc.counts import CountTable, EndCounts, Times
from qml_mp.ipc.outcome_bytes import is_plain_success, outcome_bytes, outcome_of
from qml_mp.ipc.pipe import unpacked_key

REGION_BYTES = 2 * 1024 * 1024 - 64 * 1024
"""Room for the largest result behind others. Nearly all of it is never written to."""
_LARGEST_BYTES = MAX_PAYLOAD_BYTES + 64 * 1024  # a result, and what comes with it
_FULL_BYTES = REGION_BYTES - _LARGEST_BYTES
_RECORDS_AT = 32  # behind four numbers
_HEAD, _WRITTEN, _TAKEN_BACK, _OWNER = range(4)
_PLACE_BITS = 21  # enough for `_SIZE`
_PLACE_MASK = (1 << _PLACE_BITS) - 1
_TIMES_MASK = (1 << 64 - 2 * _PLACE_BITS) - 1
_RECORD = struct.Struct(f"<IBxH{KEY_BYTES}sQQ")  # bytes of the body, form of it, pair, key, waited, ran
_OTHER_FORM, _PLAIN_SUCCESS, _NOT_KEPT = range(3)
_SIZE = REGION_BYTES + 4096
"""The last page is for those that there is no room for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Uncounted:
    """A claim that has ended in a worker that died before it had counted it."""

    method: str
    queue: str
    waited_us: int
    ran_us: int
    outcome: Outcome | None
    """None: it was not kept."""


class EndedTable:
    """The mapping with a region for each slot. Made before the first fork; freed with the last process. A
    page of it that nobody has ever written to takes no memory."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._memory = mmap.mmap(-1, capacity * _SIZE)
        self._counts = CountTable(capacity)

    def region(self, index: int, *, worker_id: str = "") -> EndedOutcomes:
        """The region of one slot, emptied for a new worker (supervisor, before the fork)."""
        region = self._at(index)
        region.counts.begin()
        region.begin(worker_id)
        return region

    def read(self, index: int) -> tuple[int, int, Mapping[ClaimKey, Outcome]]:
        """As `EndedOutcomes.read`, of the newest worker in this slot, whose `mark_of_worker` is the second of
        these (guardian)."""
        region = self._at(index)
        number, outcomes = region.read()
        return number, region.owner, outcomes

    def _at(self, index: int) -> EndedOutcomes:
        return EndedOutcomes(self._memory, index * _SIZE, counts=self._counts.region(index))


class EndedOutcomes:
    """One worker's region, as either side uses it."""

    def __init__(self, memory: mmap.mmap, at: int, *, counts: EndCounts) -> None:
        self.counts = counts
        """A claim of which something lies here is counted once it is written, and that is seen when what lies
        here is dropped."""
        self._memory = memory
        self._at = at
        # An item of it is one store of 8 bytes. `Struct.pack_into` is not: it writes zeros first.
        self._numbers = memoryview(memory)[at : at + _RECORDS_AT].cast("Q")

    def append(self, key: ClaimKey, outcome: Outcome, times: Times | None = None) -> bool:
        """Keep the outcome of this claim (worker); False when there is no room for it, and it is not kept.
        In `times` a success ran for its duration, which is not kept twice; None: nothing else is known."""
        is_plain = is_plain_success(outcome)
        body = outcome_bytes(outcome, is_plain=is_plain)
        if times is None:
            times = 0, 0, microseconds_of(outcome.duration) if isinstance(outcome, Success) else 0
        form = _PLAIN_SUCCESS if is_plain else _OTHER_FORM
        if body is None or not self._append(form, key, times, body, until=REGION_BYTES):
            if _has_run(outcome):
                self._append(_NOT_KEPT, key, times, b"", until=_SIZE)
            return False
        return True

    def _append(self, form: int, key: ClaimKey, times: Times, body: bytes, *, until: int) -> bool:
        head = self._numbers[_HEAD]
        begin = _RECORDS_AT + (head & _PLACE_MASK)
        size = _RECORD.size + len(body)
        if begin + size > until:
            return False
        at = self._at + begin
        pair, waited_us, ran_us = times
        _RECORD.pack_into(self._memory, at, len(body), form, pair, key.packed, waited_us, ran_us)
        self._memory[at + _RECORD.size : at + size] = body
        self._numbers[_HEAD] = head + size
        return True

    def take_back(self) -> None:
        """Do not keep what came of the jobs that have run (worker): their keys and times stay. Of all of them
        in one store, since a worker that dies between two would leave one job alone in it. It holds until the
        next is kept or dropped."""
        self._numbers[_TAKEN_BACK] = self._numbers[_HEAD]

    @property
    def taken_back(self) -> int:
        """Another number once the worker has taken something back (supervisor)."""
        return self._numbers[_TAKEN_BACK]

    def begin(self, worker_id: str) -> None:
        """Have nothing of the worker before (supervisor, before the fork)."""
        self.empty()
        self._numbers[_TAKEN_BACK] = 0
        self._numbers[_OWNER] = mark_of_worker(worker_id)

    @property
    def owner(self) -> int:
        """`mark_of_worker` of the worker that has this region (guardian)."""
        return self._numbers[_OWNER]

    def count(self, times: Times, ending: Ending) -> None:
        """Have a claim counted, and that be seen, whose outcome never was here (worker, while nothing is)."""
        self.counts.count((times,), ending)
        self._commit_counts(until=self.end)

    def empty(self) -> None:
        """All that was kept is written (worker), or was another worker's."""
        self._commit_counts(until=self.end)
        self._drop(begin=0, end=0)

    @property
    def end(self) -> int:
        """Where the newest that is kept ends, for `drop_until` (worker)."""
        return self._numbers[_HEAD] & _PLACE_MASK

    @property
    def has_room(self) -> bool:
        """Whether the largest result can be kept behind what lies here (worker)."""
        return self.end <= _FULL_BYTES

    def drop_until(self, end: int) -> None:
        """What was kept when `end` was this is written (worker), and the rest stays. It is moved to the front
        if that is free, or else the region would end some day."""
        self._commit_counts(until=end)
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
        head, records = self._whole_records()
        return head, {key: outcome for key, outcome in _decoded(records) if self._is_kept(head, outcome)}

    def keys(self) -> frozenset[ClaimKey]:
        """The claims that have ended and of which something lies here, kept or not (supervisor). It makes no
        outcomes, which `read` takes the longer for the larger their results are."""
        _, records = self._whole_records()
        return frozenset(key for _, _, key, *_ in _entries(records))

    def _whole_records(self) -> tuple[int, bytes]:
        """With the number that says where they are; none, when the worker has dropped some meanwhile, and may
        have written over what was read."""
        head = self._numbers[_HEAD]
        times, begin, end = _parts(head)
        records = self._records(begin, end)
        return head, records if _parts(self._numbers[_HEAD])[0] == times else b""

    def uncounted(self) -> Mapping[ClaimKey, Uncounted]:
        """What is kept and not counted (supervisor of a dead worker); whether it is written is not known."""
        head = self._numbers[_HEAD]
        times, begin, end = _parts(head)
        mark_times, mark = divmod(self.counts.mark, _PLACE_MASK + 1)
        if mark_times == times + 1:  # marks begin with 1
            begin = max(begin, mark)
        names = self.counts.names()
        found = {}
        for form, pair, key, waited_us, ran_us, body in _entries(self._records(begin, end)):
            method, queue = names[pair] if pair < len(names) else names[0]
            outcome = _outcome(form, body, ran_us)
            found[key] = Uncounted(
                method=method,
                queue=queue,
                waited_us=waited_us,
                ran_us=ran_us,
                outcome=outcome if outcome is not None and self._is_kept(head, outcome) else None,
            )
        return found

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

    def _is_kept(self, head: int, outcome: Outcome) -> bool:
        return self._numbers[_TAKEN_BACK] != head or not _has_run(outcome)

    def _commit_counts(self, *, until: int) -> None:
        """In the counts is then what lies here until there. A mark is never 0, which stands for none."""
        if self.counts.has_uncommitted:
            times = _parts(self._numbers[_HEAD])[0]
            self.counts.commit((times + 1) << _PLACE_BITS | until)

    def _drop(self, *, begin: int, end: int) -> None:
        times = _parts(self._numbers[_HEAD])[0] + 1 & _TIMES_MASK
        self._numbers[_HEAD] = (times << _PLACE_BITS | begin) << _PLACE_BITS | end

    def _records(self, begin: int, end: int) -> bytes:
        at = self._at + _RECORDS_AT
        return self._memory[at + begin : at + min(end, _SIZE - _RECORDS_AT)]


def mark_of_worker(worker_id: str) -> int:
    """Its id in one word."""
    return int.from_bytes(blake2b(worker_id.encode(errors="surrogatepass"), digest_size=8).digest())


def _has_run(outcome: Outcome) -> bool:
    return not (isinstance(outcome, Release) and outcome.not_begun)


def _parts(number: int) -> tuple[int, int, int]:
    """How often something was dropped, and from which byte to which records are kept."""
    return number >> 2 * _PLACE_BITS, number >> _PLACE_BITS & _PLACE_MASK, number & _PLACE_MASK


def _decoded(records: bytes) -> list[tuple[ClaimKey, Outcome]]:
    found = []
    for form, _, key, _, ran_us, body in _entries(records):
        outcome = _outcome(form, body, ran_us)
        if outcome is not None:
            found.append((key, outcome))
    return found


def _entries(records: bytes) -> Iterator[tuple[int, int, ClaimKey, int, int, bytes]]:
    """Form, pair, key, waited, ran and body of each."""
    at = 0
    while at + _RECORD.size <= len(records):
        size, form, pair, packed, waited_us, ran_us = _RECORD.unpack_from(records, at)
        body = records[at + _RECORD.size : at + _RECORD.size + size]
        at += _RECORD.size + size
        key = unpacked_key(packed)
        if key is not None:
            yield form, pair, key, waited_us, ran_us, body


def _outcome(form: int, body: bytes, ran_us: int) -> Outcome | None:
    """None: it was not kept, or a job has written here."""
    return None if form == _NOT_KEPT else outcome_of(body, is_plain=form == _PLAIN_SUCCESS, ran_us=ran_us)
