"""Both ends of the counts: what came of one worker's claims, by method, queue and ending, in shared memory.

The worker counts, the supervisor adds up, and nobody locks. What a worker counts together becomes visible
together, by one store of 8 bytes, whenever it dies: each cell is there twice, the older copy is written and
marked with the number of the commit that is to come, and a reader takes the newest copy that is committed.
With the number stands which ended outcomes (`ipc/ended.py`) are in the counts. So the supervisor knows of
each that a dead worker has left whether it was counted.
"""

from __future__ import annotations

import mmap
import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from qml_mp.core.history import (
    BOUNDS_US,
    ENDINGS,
    MOST_NAMES,
    NUMBERS,
    OTHER,
    RAN_AT,
    WAITED_AT,
    Ending,
    SeriesKey,
    bucket_of,
)

_COMMITTED, _MARKS, _CELLS, _NAMES_END = 0, 1, 3, 4
"""Places of the words at the head: the number of the newest commit, the two marks that commits of even and of
odd number have made, how many cells there are, and how many bytes of names."""
_CELLS_AT = 8
_COPY = 1 + NUMBERS
"""Words of a copy: the number of its commit, and the numbers of a tally."""
_CELL = 1 + 2 * _COPY
"""Words of a cell: what it counts, and two copies."""
_MOST_CELLS = 512
_NAMES_AT = (_CELLS_AT + _MOST_CELLS * _CELL) * 8
_NAMES_BYTES = 32 * 1024
_REGION_BYTES = -(-(_NAMES_AT + _NAMES_BYTES) // mmap.PAGESIZE) * mmap.PAGESIZE
_NAME = struct.Struct("<HH")  # bytes of the method, of the queue
_ENDING_BITS = 3  # enough for `ENDINGS`
_OTHER_PAIR = 0
_TRIES = 8
_MOST = 2**64 - 1
"""What a word holds. Rows of other programs may have waited for thousands of years."""
_MOST_KNOWN = 10 * MOST_NAMES
"""Pairs that a worker remembers, those included for which there is no place."""


Times = tuple[int, int, int]
"""What is counted of a claim: the number of its method and queue (`EndCounts.pair`), for how many
microseconds it has waited, and how long it ran. Plain, because every job has them."""


class CountTable:
    """The mapping with a region for each slot. Made before the first fork; a page of it that nobody has ever
    written to takes no memory."""

    def __init__(self, capacity: int) -> None:
        self._memory = mmap.mmap(-1, capacity * _REGION_BYTES)

    def region(self, index: int) -> EndCounts:
        """That of one slot."""
        return EndCounts(self._memory, index * _REGION_BYTES)


class _Cell:
    """What the worker knows of one of its own."""

    __slots__ = ("copies", "numbers", "ran", "turn", "waited")

    def __init__(self, at: int) -> None:
        self.copies = (at + 1, at + 1 + _COPY)
        self.turn = 0
        """Which copy is written next."""
        self.numbers = array("Q", bytes(8 * NUMBERS))
        self.waited: list[int] = []
        self.ran: list[int] = []
        """The microseconds of each claim that is not in the numbers yet."""

    def add_up(self) -> None:
        """Have all claims in the numbers. Together, because it is quicker than one by one."""
        self.numbers[0] = min(self.numbers[0] + sum(self.waited), _MOST)
        self.numbers[1] = min(self.numbers[1] + sum(self.ran), _MOST)
        self._sort_into_buckets(self.waited, WAITED_AT)
        self._sort_into_buckets(self.ran, RAN_AT)
        self.waited, self.ran = [], []

    def _sort_into_buckets(self, durations_us: list[int], at: int) -> None:
        durations_us.sort()
        begin, last = 0, bucket_of(durations_us[-1])
        for bucket in range(bucket_of(durations_us[0]), last):
            end = bisect_right(durations_us, BOUNDS_US[bucket])
            self.numbers[at + bucket] += end - begin
            begin = end
        self.numbers[at + last] += len(durations_us) - begin


class EndCounts:
    """One worker's region, as either side uses it."""

    def __init__(self, memory: mmap.mmap, at: int) -> None:
        self._memory = memory
        self._names_at = at + _NAMES_AT
        self._words = memoryview(memory)[at : at + _NAMES_AT].cast("Q")
        self._pairs: dict[tuple[str, str], int] = {}
        self._cells: dict[int, _Cell] = {}
        self._changed: set[_Cell] = set()
        """Since the newest commit."""
        self._newest_pair = _OTHER_PAIR

    def begin(self) -> None:
        """Make it ready for a new worker (supervisor, before the fork)."""
        for place in (_COMMITTED, _MARKS, _MARKS + 1, _CELLS, _NAMES_END):
            self._words[place] = 0
        self._pairs, self._cells, self._changed, self._newest_pair = {}, {}, set(), _OTHER_PAIR

    # The worker's side.

    def pair(self, method: str, queue: str) -> int:
        """The number of this method with this queue; the same one for all for which there is no place."""
        number = self._pairs.get((method, queue))
        return self._new_pair(method, queue) if number is None else number

    def count(self, times: Iterable[Times], ending: Ending) -> None:
        """Count claims that have ended so; nobody sees them before `commit`."""
        before = None
        for pair, waited_us, ran_us in times:
            if pair != before:
                before, cell = pair, self._cell(pair << _ENDING_BITS | _NUMBER_OF[ending])
            cell.waited.append(waited_us)
            cell.ran.append(ran_us)

    def commit(self, mark: int) -> None:
        """Have all that was counted since the last time be seen, and this mark with it."""
        words = self._words
        number = words[_COMMITTED] + 1
        for cell in self._changed:
            cell.add_up()
            at = cell.copies[cell.turn]
            cell.turn ^= 1
            words[at] = number
            words[at + 1 : at + _COPY] = memoryview(cell.numbers)
        words[_MARKS + (number & 1)] = mark
        words[_COMMITTED] = number
        self._changed.clear()

    @property
    def has_uncommitted(self) -> bool:
        return bool(self._changed)

    # The supervisor's side.

    @property
    def mark(self) -> int:
        """That of the newest commit; 0: there was none."""
        number = self._words[_COMMITTED]
        return self._words[_MARKS + (number & 1)] if number else 0

    def names(self) -> Sequence[tuple[str, str]]:
        """Method and queue of each pair, by its number."""
        return [(OTHER, OTHER), *self._names()]

    def read(self, seen: CountsSeen) -> Iterator[tuple[SeriesKey, Sequence[int]]]:
        """What has come to it since the time before, as numbers of a tally; `seen` keeps what was."""
        words, names = self._words, None
        for cell in range(min(words[_CELLS], _MOST_CELLS)):
            at = _CELLS_AT + cell * _CELL
            before = seen.numbers.get(cell)
            number, now = self._newest(at, than=seen.commits.get(cell, 0))
            if now is None:
                continue
            seen.commits[cell], seen.numbers[cell] = number, now
            names = self.names() if names is None else names
            pair, ending = words[at] >> _ENDING_BITS, words[at] & (1 << _ENDING_BITS) - 1
            if pair < len(names) and ending < len(ENDINGS):  # else a job has written here
                method, queue = names[pair]
                more = now if before is None else [max(0, a - b) for a, b in zip(now, before, strict=True)]
                yield SeriesKey(method=method, queue=queue, ending=ENDINGS[ending]), more

    def _newest(self, at: int, *, than: int) -> tuple[int, tuple[int, ...] | None]:
        """The newest committed copy of a cell, with its number; None: it is no newer than that."""
        words = self._words
        for _ in range(_TRIES):
            committed = words[_COMMITTED]
            marked = [(words[copy], copy) for copy in (at + 1, at + 1 + _COPY)]  # once each: they may change
            found, copy = max(one for one in [*marked, (0, at)] if one[0] <= committed)
            if found <= than:
                return found, None
            numbers = tuple(words[copy + 1 : copy + _COPY])
            if words[copy] == found:  # the worker has not begun to write over it
                return found, numbers
        return than, None  # next time

    def _new_pair(self, method: str, queue: str) -> int:
        """Its names first, then that they are there."""
        method_bytes, queue_bytes = method.encode(errors="replace"), queue.encode(errors="replace")
        begin = self._words[_NAMES_END]
        end = begin + _NAME.size + len(method_bytes) + len(queue_bytes)
        number = _OTHER_PAIR
        if end <= _NAMES_BYTES and self._newest_pair < MOST_NAMES:  # else it may be too long for `_NAME`
            entry = _NAME.pack(len(method_bytes), len(queue_bytes)) + method_bytes + queue_bytes
            self._memory[self._names_at + begin : self._names_at + end] = entry
            self._words[_NAMES_END] = end
            number = self._newest_pair = self._newest_pair + 1
        if number or len(self._pairs) < _MOST_KNOWN:
            self._pairs[method, queue] = number
        return number

    def _names(self) -> Iterator[tuple[str, str]]:
        end = min(self._words[_NAMES_END], _NAMES_BYTES)
        data, at = self._memory[self._names_at : self._names_at + end], 0
        while at + _NAME.size <= end:
            method, queue = _NAME.unpack_from(data, at)
            begin = at + _NAME.size
            at = begin + method + queue
            yield (
                data[begin : begin + method].decode(errors="replace"),
                data[begin + method : at].decode(errors="replace"),
            )

    def _cell(self, kind: int) -> _Cell:
        """To count in."""
        cell = self._cells.get(kind) or self._new_cell(kind)
        self._changed.add(cell)
        return cell

    def _new_cell(self, kind: int) -> _Cell:
        """Its copies are empty before it counts as one. The last cells are for what finds no place."""
        used = self._words[_CELLS]
        if used >= _MOST_CELLS - len(ENDINGS) and kind >> _ENDING_BITS != _OTHER_PAIR:
            other = kind & (1 << _ENDING_BITS) - 1
            cell = self._cells[kind] = self._cells.get(other) or self._new_cell(other)
            return cell
        at = _CELLS_AT + used * _CELL
        cell = self._cells[kind] = _Cell(at)
        self._words[at] = kind
        for copy in cell.copies:
            self._words[copy] = 0
        self._words[_CELLS] = used + 1
        return cell


@dataclass(kw_only=True)
class CountsSeen:
    """What a supervisor has read of one worker's counts. Mutable; its own."""

    commits: dict[int, int]
    numbers: dict[int, tuple[int, ...]]

    @classmethod
    def nothing(cls) -> CountsSeen:
        return cls(commits={}, numbers={})


_NUMBER_OF = {ending: number for number, ending in enumerate(ENDINGS)}
assert len(ENDINGS) <= 1 << _ENDING_BITS
