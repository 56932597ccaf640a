"""Tests: an exception as bounded, storable text."""

from __future__ import annotations

import asyncio

import pytest

from qml_mp.core.payload import check_text
from qml_mp.errors import JobFailed, JobTimeout
from qml_mp.processing.errors_text import (
    clean,
    describe,
    describe_type,
)
from qml_mp.storage.storable import MAX_MESSAGE_BYTES, MAX_TRACEBACK_BYTES


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def test_an_exception_is_told_by_type_message_and_traceback() -> None:
    info = describe(raised(ValueError("bad width")))

    assert (info.type, info.message) == ("ValueError", "bad width")
    assert info.traceback is not None
    assert info.traceback.startswith("Traceback (most recent call last):\n")
    assert "raise error" in info.traceback
    assert info.traceback.endswith("ValueError: bad width\n")


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (Unprintable(), f"{__name__}.Unprintable"),
        (JobTimeout(), "JobTimeout"),
        (JobFailed("x", job_id="i", state="failed"), "JobFailed"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (asyncio.CancelledError(), "asyncio.exceptions.CancelledError"),
    ],
)
def test_the_type_is_named_as_python_prints_it(error: BaseException, name: str) -> None:
    assert describe(error).type == name


@pytest.mark.fault(32)
def test_an_exception_that_cannot_be_printed_is_told_all_the_same() -> None:
    info = describe(raised(Unprintable()))

    assert info.message == "(no message: __str__ raised RuntimeError)"
    assert info.traceback is not None


@pytest.mark.fault(31)
def test_an_enormous_message_is_cut_in_the_middle() -> None:
    info = describe(raised(ValueError("a" * 5_000_000 + "z")))

    assert len(info.message) <= MAX_MESSAGE_BYTES
    assert info.message.startswith("aaa")
    assert info.message.endswith("z")
    assert "characters left out" in info.message
    assert len(info.traceback or "") <= MAX_TRACEBACK_BYTES


def test_a_deep_recursion_leaves_a_bounded_traceback() -> None:
    def down(n: int) -> int:
        return down(n + 1)

    with pytest.raises(RecursionError) as caught:
        down(0)

    assert (describe(caught.value).traceback or "").count("in down") <= 40


def test_a_long_chain_of_causes_is_told_by_its_last_few() -> None:
    error: BaseException = ValueError("0")
    for number in range(1, 10_000):
        following = ValueError(str(number))
        following.__cause__ = error
        error = following

    traceback = describe(error).traceback or ""

    assert traceback.count("direct cause of the following") == 3
    assert traceback.endswith("ValueError: 9999\n")


def test_causes_come_first_and_each_link_tells_its_kind() -> None:
    try:
        try:
            raise KeyError("first")
        except KeyError:
            raise ValueError("second")  # noqa: B904 - the implicit context is the point
    except ValueError as caught:
        traceback = describe(caught).traceback or ""

    assert (
        traceback.index("KeyError: 'first'") < traceback.index("During handling") < traceback.index("second")
    )


def test_a_group_tells_its_members_and_notes_are_kept() -> None:
    inner = KeyError("inside")
    inner.add_note("seen in row 7")

    traceback = describe(raised(ExceptionGroup("several", [inner, ValueError("other")]))).traceback or ""

    assert "[1 of 2]" in traceback
    assert "  | KeyError: 'inside'" in traceback
    assert "  | seen in row 7" in traceback
    assert "ValueError: other" in traceback


@pytest.mark.fault(28)
@pytest.mark.parametrize("text", ["a\0b", "lone \ud800", "x" * 100_000 + "\0"])
def test_cleaned_text_can_be_stored(text: str) -> None:
    assert check_text(clean(text, 1000), what="it")


def test_an_exception_can_be_told_without_asking_it_anything() -> None:
    info = describe_type(raised(Unprintable()), why="out of memory")

    assert info.message == "(no message: out of memory)"
    assert "raise error" in (info.traceback or "")
