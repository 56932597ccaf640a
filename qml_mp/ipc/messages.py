"""Both ends of the pipe: the fixed-size messages from a supervisor to one worker.

A message about a job names the claim it means, so that one that arrives late never hits the next job.
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass
from enum import IntEnum

from qml_mp.core.job import ClaimKey
from qml_mp.processing.cancel import CancelReason

_FORMAT = struct.Struct("<BB16sq6x")
MESSAGE_BYTES = _FORMAT.size
_REASONS = tuple(CancelReason)
NO_JOB = bytes(16)


class Kind(IntEnum):
    """What the supervisor wants."""

    WAKE = 1
    """There may be work: look now."""
    LEAVE = 2
    """Finish the job in hand, claim no other, exit."""
    CANCEL = 3
    """Set `ctx.cancel` of the named claim, with its reason."""
    INTERRUPT = 4
    """Raise inside the named claim's job. A SIGTERM follows, so that a blocking call returns."""
    PAUSE = 5
    """Claim nothing until WAKE."""
    DOUBT = 6
    """You hold a claim that you do not seem to know of: look before you claim another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message; `key` and `reason` are set for CANCEL and INTERRUPT."""

    kind: Kind
    key: ClaimKey | None = None
    reason: CancelReason | None = None

    def encode(self) -> bytes:
        """`MESSAGE_BYTES` bytes, few enough that the kernel writes them to a pipe whole or not at all."""
        job = NO_JOB if self.key is None else uuid.UUID(self.key.job_id).bytes
        reason = 0 if self.reason is None else 1 + _REASONS.index(self.reason)
        return _FORMAT.pack(self.kind, reason, job, 0 if self.key is None else self.key.claim_seq)


def decode(data: bytes) -> list[Message]:
    """The messages in the bytes read from the pipe (always a whole number of them)."""
    messages = []
    for kind, reason, job, claim_seq in _FORMAT.iter_unpack(data):
        key = None if job == NO_JOB else ClaimKey(job_id=str(uuid.UUID(bytes=job)), claim_seq=claim_seq)
        messages.append(Message(kind=Kind(kind), key=key, reason=_REASONS[reason - 1] if reason else None))
    return messages
