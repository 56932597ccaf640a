"""Anywhere: identifiers of jobs (UUID version 7, RFC 9562) and of server runs."""

from __future__ import annotations

import os
import time
import uuid

from qml_mp.errors import InvalidJob, shown


def new_job_id() -> str:
    """A fresh UUIDv7: sorts by creation time to the millisecond, random otherwise."""
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds & (1 << 48) - 1) << 80 | int.from_bytes(os.urandom(10))
    value = value & ~(0xF << 76) | 0x7 << 76  # version 7
    value = value & ~(0x3 << 62) | 0x2 << 62  # variant of RFC 9562
    return str(uuid.UUID(int=value))


def new_server_id(server_name: str) -> str:
    """The id of one run of a supervisor: `name#uuid`."""
    return f"{server_name}#{uuid.uuid4()}"


def check_job_id(text: str) -> str:
    """Return the id in its canonical form, or raise `InvalidJob` when it is no UUID."""
    try:
        return str(uuid.UUID(text))
    except (ValueError, AttributeError, TypeError):
        raise InvalidJob(
            f"{shown(text)} is not a job id; a job id is a UUID, as `qml-mp jobs list` prints it."
        ) from None
