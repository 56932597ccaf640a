"""The log on standard error: whatever a record holds, it is one line at the margin and marked lines below."""

from __future__ import annotations

import logging
import os
import tempfile

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


def logged(texts: list[str]) -> list[str]:
    """What the handler writes to descriptor 2 for one record per text; its lines."""
    handler = StderrHandler()
    handler.setFormatter(logging.Formatter("qml-mp: %(message)s"))
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            for text in texts:
                handler.emit(logging.LogRecord("name", logging.INFO, "path", 1, "%s", (text,), None))
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        file.seek(0)
        return file.read().decode().removesuffix("\n").split("\n")
