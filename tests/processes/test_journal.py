"""Tests: that the journal keeps every whole line, whatever a killed process has left before it."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qml_mp.errors import JobInterrupted
from tests.processes.journal import JOURNAL, RECORDED, note, note_recorded, read_journal, sole_run


def context(job_id: str) -> Any:
    """As much of a job's context as a note wants."""
    return cast(Any, SimpleNamespace(job=SimpleNamespace(id=job_id, claim_seq=3)))


def test_a_line_that_was_cut_off_anywhere_costs_no_other_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    monkeypatch.setenv(JOURNAL, str(path))
    note(context("cut"), "start")
    whole = path.read_bytes()
    assert [line.job_id for line in read_journal(path)] == ["cut"]

    for length in range(len(whole) - 1):  # without its line break alone, it is whole
        path.write_bytes(whole[:length])
        note(context("next"), "end")

        (line,) = read_journal(path)
        assert (line.job_id, line.claim_seq, line.pid, line.what) == ("next", 3, os.getpid(), "end")


def test_a_run_is_noted_as_recorded_once_it_has_come_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(JOURNAL, str(tmp_path / "journal"))
    ids = [str(uuid.uuid4()) for _ in range(3)]
    errors: list[type[BaseException] | None] = [None, ValueError, JobInterrupted]

    for job_id, error in zip(ids, errors, strict=True):
        with contextlib.suppress(ValueError, JobInterrupted), sole_run(context(job_id)):
            note_recorded()  # of nothing: this run has not ended
            if error is not None:
                raise error
        note_recorded()
        note_recorded()

    recorded = [line.job_id for line in read_journal(tmp_path / "journal") if line.what == RECORDED]
    assert recorded == ids[:2]
