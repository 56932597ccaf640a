"""Both ends of a worker's progress: how far its job has come, in shared memory at the end of its slot.

The job writes as often as it likes, the supervisor reads when it likes, and nobody locks: a version that is
odd while the job writes tells a torn read, as in the slot, of whose own version this one is independent. It
costs no system call and a microsecond. The claim stands with it: what a job left here is not taken for the
progress of the next one. A process that the job has forked writes here too; where two write in the same
moment, their numbers may be mixed until the next one.
"""

from __future__ import annotations

import mmap
import struct

from qml_mp.core.job import KEY_BYTES, ClaimKey, Job
from qml_mp.core.progress import MAX_NOTE_BYTES, MOST, Progress
from qml_mp.ipc.pipe import unpacked_key

_VERSION_BYTES = 8
_BODY = struct.Struct(f"<{KEY_BYTES}sddH")  # key, done, total (not a number: unknown), bytes of the note
PROGRESS_BYTES = 384
_UNKNOWN = float("nan")
assert _VERSION_BYTES + _BODY.size + MAX_NOTE_BYTES <= PROGRESS_BYTES


class ProgressCell:
    """One worker's, as either side uses it."""

    def __init__(self, memory: mmap.mmap, numbers: memoryview[int], at: int) -> None:
        """`numbers` is the memory as words of 8 bytes, each of one store; `at` is a multiple of that."""
        self._memory = memory
        self._numbers = numbers
        self._at = at
        self._version_at = at // _VERSION_BYTES
        self._version = 0
        self.newest_job: Job | None = None
        """The one that has said something last (worker), and how it stands here."""
        self._key = b""
        self._note = ""
        self._note_data = b""

    def show(self, job: Job, done: float, total: float | None, note: str) -> None:
        """How far this job has come (worker): amounts from 0 to `progress.MOST`."""
        if job is not self.newest_job:
            self._key = job.claim_key.packed
            self.newest_job = job
        if note is not self._note:
            self._note, self._note_data = note, note.encode(errors="replace")[:MAX_NOTE_BYTES]
        data = self._note_data
        body = _BODY.pack(self._key, done, _UNKNOWN if total is None else total, len(data)) + data
        begin = self._at + _VERSION_BYTES
        end, version = begin + len(body), self._version + 2
        # No call in these three lines: an interruption of the job is raised where one returns, and what was
        # being written then would stay so.
        self._numbers[self._version_at] = version - 1
        self._memory[begin:end] = body
        self._numbers[self._version_at] = self._version = version

    def newest_of(self, job: Job) -> Progress | None:
        """What this job has said last (worker); None: nothing."""
        if self.newest_job is None:  # as in most workers, always
            return None
        found = self.read()
        return found[1] if found is not None and found[0] == job.claim_key else None

    @property
    def version(self) -> int:
        """Another one whenever something is said."""
        return self._numbers[self._version_at]

    def read(self) -> tuple[ClaimKey, Progress] | None:
        """What was said last, and of which claim; None: nothing yet, or it is just being written."""
        before = self.version
        body = self._memory[self._at + _VERSION_BYTES : self._at + PROGRESS_BYTES]
        if before == 0 or before % 2 or before != self.version:
            return None
        packed, done, total, note_bytes = _BODY.unpack_from(body)
        key = unpacked_key(packed)
        if key is None or not 0 <= done <= MOST:
            return None  # a job has written here by other means
        note = body[_BODY.size : _BODY.size + note_bytes].decode(errors="ignore")
        return key, Progress(done=done, total=total if 0 <= total <= MOST else None, note=note)
