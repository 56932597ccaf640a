"""What a server answers to signals: as text, and back."""

from __future__ import annotations

import pytest

from qml_mp.core.answers import (
    NO_ANSWERS,
    Answers,
    ReloadAnswer,
    ReloadedCode,
    ReloadState,
    StacksAnswer,
    WorkerStack,
    read_answers,
)

STACK = WorkerStack(number=1, pid=12, method="work", stack="File x\n")
IDLE = WorkerStack(number=2, pid=13, method=None, stack=None)
ANSWERS = Answers(
    reload=ReloadAnswer(
        began_at=1.5,
        state=ReloadState.FAILED,
        workers=3,
        replaced=1,
        why="no\x00 such\nmodule ü",
        code=ReloadedCode.OF_START,
    ),
    stacks=StacksAnswer(began_at=2.25, workers=(STACK, IDLE)),
    stops=True,
)


def test_answers_come_back_as_they_were() -> None:
    assert read_answers(ANSWERS.to_text()) == ANSWERS


def test_no_answers_are_no_text() -> None:
    assert NO_ANSWERS.to_text() is None
    assert read_answers(None) == NO_ANSWERS


def test_text_is_bounded_and_plain() -> None:
    why = "a" * 100_000 + "the last line"
    answers = Answers(reload=ReloadAnswer(began_at=1.0, state=ReloadState.REFUSED, why=why))

    text = answers.to_text()

    assert text is not None
    assert len(text) < 10_000
    assert text.isascii()
    reload = read_answers(text).reload
    assert reload is not None
    assert (reload.why or "").endswith("the last line")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '"x"', '{"reload": {"state": "odd"}}', '{"reload": {"state": "done", "new": 1}}',
     '{"reload": 3}', '{"stacks": {"began_at": 1}}', '{"stacks": {"began_at": 1, "workers": [3]}}'],
)  # fmt: skip
def test_what_another_version_wrote_is_no_answer(text: str) -> None:
    assert read_answers(text) == NO_ANSWERS


def test_that_a_stop_has_begun_is_known_whatever_else_another_version_wrote() -> None:
    assert read_answers('{"stops": true, "reload": {"state": "done"}}') == Answers(stops=True)
