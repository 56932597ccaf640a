"""The log on standard error: whatever a record holds, it is one line at the margin and marked lines below."""

from __future__ import annotations

import logging
import os
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qml_mp.embedding.log import StderrHandler


@pytest.mark.fault(86)
@given(texts=st.lists(st.text(), min_size=1, max_size=5))
def test_each_record_has_one_line_at_the_margin_and_no_raw_control_character(texts: list[str]) -> None:
    lines = logged(texts)

    assert sum(line.startswith("qml-mp: ") for line in lines) == len(texts)
    assert all(line.startswith(("qml-mp: ", "  | ")) for line in lines)
    assert all(line.isprintable() for line in lines)


def test_what_is_printable_and_the_shape_of_a_traceback_stay_as_they_are() -> None:
    text = 'Grüße 🎉 "quoted" \\ it failed:\nTraceback:\n  File "x.py"\n\tindented by a tab\n'

    assert logged([text]) == [
        'qml-mp: Grüße 🎉 "quoted" \\ it failed:',
        "  | Traceback:",
        '  |   File "x.py"',
        "  |     indented by a tab",
    ]


def test_lines_that_a_full_file_does_not_take_whole_are_counted_and_it_is_said_why() -> None:
    handler = StderrHandler()
    handler.setFormatter(logging.Formatter("qml-mp: %(message)s"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    with standard_error() as file:
        try:
            for size in (0, 5):
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
                handler.emit(record("lost"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        handler.emit(record("kept"))

        file.seek(0)
        assert file.read().decode() == (
            "qml-m\n"  # all that there was room for
            "qml-mp: (2 lines were dropped here, because they could not be written (File too large))\n"
            "qml-mp: kept\n"
        )


def logged(texts: list[str]) -> list[str]:
    """What the handler writes to descriptor 2 for one record per text; its lines."""
    handler = StderrHandler()
    handler.setFormatter(logging.Formatter("qml-mp: %(message)s"))
    with standard_error() as file:
        for text in texts:
            handler.emit(record(text))
        file.seek(0)
        return file.read().decode().removesuffix("\n").split("\n")


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("name", logging.INFO, "path", 1, "%s", (text,), None)


@contextmanager
def standard_error() -> Iterator[IO[bytes]]:
    """A file that is descriptor 2 within the block."""
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield file
        finally:
            os.dup2(kept, 2)
            os.close(kept)
