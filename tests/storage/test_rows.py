"""Tests of the storage: texts made storable."""

from __future__ import annotations

import pytest

from qml_mp.core.outcome import ErrorInfo
from qml_mp.storage.storable import MAX_MESSAGE_BYTES, MAX_TRACEBACK_BYTES, storable_error, storable_text


@pytest.mark.parametrize("text", ["", "plain", "ä🎉\n", "x" * 100])
def test_a_text_that_fits_stays_as_it_is(text: str) -> None:
    assert storable_text(text, max_bytes=100) == text


@pytest.mark.parametrize("text", ["a\0b", "a\ud800b", "\udcff"])
def test_what_cannot_be_stored_is_replaced(text: str) -> None:
    stored = storable_text(text, max_bytes=100)

    assert "\0" not in stored
    stored.encode()
    assert len(stored) == len(text)


@pytest.mark.parametrize("letter", ["x", "ä", "🎉"])
def test_a_long_text_is_cut_between_characters_and_says_so(letter: str) -> None:
    text = f"start {letter * 1000} end"

    head = storable_text(text, max_bytes=101)
    tail = storable_text(text, max_bytes=101, keep_tail=True)

    assert head.startswith("start")
    assert tail.endswith("end")
    assert "cut" in head
    assert "cut" in tail
    assert max(len(head.encode()), len(tail.encode())) <= 101


def test_an_error_keeps_the_head_of_its_message_and_the_tail_of_its_traceback() -> None:
    error = ErrorInfo(type="E", message="first" + "x" * 10**6, traceback="x" * 10**6 + "last")

    stored = storable_error(error)

    assert stored is not None
    assert stored.traceback is not None
    assert stored.message.startswith("first")
    assert stored.traceback.endswith("last")
    assert len(stored.message) == MAX_MESSAGE_BYTES
    assert len(stored.traceback) == MAX_TRACEBACK_BYTES
    assert storable_error(None) is None
