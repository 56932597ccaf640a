"""Tests: that the journal keeps every whole line, whatever a killed process has left before it."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.processes.journal import JOURNAL, note, read_journal


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
