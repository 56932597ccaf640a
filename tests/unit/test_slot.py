"""Tests: what a slot tells of its worker, also when the worker was killed while it wrote."""

from __future__ import annotations

import struct
from datetime import timedelta

from qml_mp.core.job import ClaimKey, new_job_id
from qml_mp.ipc.slot import _BODY_AT, _VERSION_AT, Activity, SlotTable, SlotView, SlotWriter


def begin_a_job(writer: SlotWriter) -> ClaimKey:
    key = ClaimKey(job_id=new_job_id(), claim_seq=7)
    writer.show(
        SlotView(activity=Activity.RUNNING, key=key, method="resize", since_ns=5, limit=timedelta(seconds=1))
    )
    return key


def leave_in_mid_write(slots: SlotTable) -> None:
    """Make the version odd, as a worker does before it writes."""
    version = struct.Struct("<Q")
    (now,) = version.unpack_from(slots._memory, _VERSION_AT)
    version.pack_into(slots._memory, _VERSION_AT, now + 1)


def test_a_worker_that_was_killed_in_mid_write_has_been_ready_all_the_same() -> None:
    slots = SlotTable(1)
    writer = slots.writer(0)
    writer.show_ready()

    leave_in_mid_write(slots)

    assert slots.read(0) is None
    assert slots.was_ready(0)


def test_a_slot_into_which_a_job_has_written_says_nothing_until_the_worker_writes_again() -> None:
    slots = SlotTable(1)
    writer = slots.writer(0)
    key = begin_a_job(writer)

    slots._memory[_BODY_AT] = 77
    meanwhile = slots.read(0)
    writer.show_finishing()

    assert meanwhile is None
    view = slots.read(0)
    assert view is not None
    assert (view.activity, view.key) == (Activity.FINISHING, key)


def test_a_slot_that_is_given_to_a_new_worker_remembers_nothing() -> None:
    slots = SlotTable(1)
    slots.writer(0).show_ready()
    slots.set_process(0, pid=4711, started_ticks=1)

    slots.clear(0)

    assert not slots.was_ready(0)
    assert slots.process(0) == (0, 0)
