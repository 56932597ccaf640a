"""Tables with text of any script: as a terminal shows them."""

from __future__ import annotations

import io
import sys
import unicodedata

import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qml_mp.cli.fitting import fitted
from qml_mp.cli.output import print_table, short
from qml_mp.cli.text_width import in_lines, rows_of, width_of

METHODS = ["thumb", "画像を縮小する", "이미지", "send 🚀", "cafe\u0301", "한국"]


def test_columns_stand_under_their_headers_whatever_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("METHOD", "QUEUE"), [(method, "default") for method in METHODS])

    screen = pyte.Screen(40, len(METHODS) + 2)
    pyte.Stream(screen).feed(capsys.readouterr().out.replace("\n", "\r\n"))
    second = len("画像を縮小する") * 2 + 2
    rows = [screen.buffer[row] for row in range(len(METHODS) + 1)]
    assert [row[second].data for row in rows] == ["Q", *"d" * len(METHODS)]
    assert {row[second - 1].data for row in rows} == {" "}


def test_a_syllable_that_is_written_by_letters_is_as_wide_as_one() -> None:
    """Which pyte does not know."""
    assert width_of(unicodedata.normalize("NFD", "한국어")) == width_of("한국어") == 6


@pytest.mark.parametrize(
    ("text", "columns", "rows"),
    [("縮小するん", 5, 3), ("縮小する", 4, 2), ("a縮b小", 3, 2), ("abc", 2, 2), ("ab", 2, 1), ("", 9, 1)],
)
def test_a_line_takes_as_many_rows_as_a_terminal_makes_of_it(text: str, columns: int, rows: int) -> None:
    """A wide character that has no room goes to the next one whole, as in xterm; pyte lets it stick out."""
    assert rows_of(text, columns) == rows


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("go on with --after abc", ["go on with", "--after abc"]),
        ("a word_that_is_longer so", ["a", "word_that_is_longer", "so"]),
        ("縮小 する 縮小 する", ["縮小 する", "縮小 する"]),
        ("short", ["short"]),
        ("", [""]),
    ],
)
def test_prose_is_divided_between_words_and_an_option_stays_with_its_value(
    text: str, lines: list[str]
) -> None:
    assert in_lines(text, 12).splitlines() == [line for line in lines if line]


@given(method=st.sampled_from(METHODS), width=st.integers(12, 40))
def test_a_row_that_is_fitted_stays_on_its_line(method: str, width: int) -> None:
    columns = {"METHOD": [method * 5], "ARGUMENTS": [method * 9]}

    _, rows = fitted(columns, width=width, shrink={"METHOD": 6})

    screen = pyte.Screen(width, 2)
    pyte.Stream(screen).feed(f"{rows[0][0]}  {rows[0][1]}")
    assert screen.cursor.y == 0


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_a_row_that_is_fitted_stays_on_its_line_in_any_encoding(
    monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    """As the command prints: what the encoding has not is an escape, which takes six columns for one."""
    written = io.BytesIO()
    stdout = io.TextIOWrapper(written, encoding=encoding, errors="backslashreplace")
    monkeypatch.setattr(sys, "stdout", stdout)

    print_table(*fitted({"METHOD": ["m" * 20], "ARGUMENTS": ["a" * 40]}, width=30, shrink={"METHOD": 6}))

    stdout.flush()
    lines = written.getvalue().decode(encoding).splitlines()
    assert max(map(len, lines)) == 30


@pytest.mark.parametrize(
    ("text", "limit", "shown"),
    [
        ("縮小する", 8, "縮小する"),
        ("縮小する", 7, "縮小す…"),
        ("縮小する", 6, "縮小…"),
        ("cafe\u0301s", 5, "cafe\u0301s"),
    ],
)
def test_what_is_cut_takes_no_more_than_its_columns(text: str, limit: int, shown: str) -> None:
    assert short(text, limit) == shown
