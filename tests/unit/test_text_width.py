"""Tables with text of any script: as a terminal shows them."""

from __future__ import annotations

import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qml_mp.cli.fitting import fitted
from qml_mp.cli.output import print_table, short

METHODS = ["thumb", "画像を縮小する", "이미지", "send 🚀", "cafe\u0301", "한국"]


def test_columns_stand_under_their_headers_whatever_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("METHOD", "QUEUE"), [(method, "default") for method in METHODS])

    screen = pyte.Screen(40, len(METHODS) + 2)
    pyte.Stream(screen).feed(capsys.readouterr().out.replace("\n", "\r\n"))
    second = len("画像を縮小する") * 2 + 2
    rows = [screen.buffer[row] for row in range(len(METHODS) + 1)]
    assert [row[second].data for row in rows] == ["Q", *"d" * len(METHODS)]
    assert {row[second - 1].data for row in rows} == {" "}


@given(method=st.sampled_from(METHODS), width=st.integers(12, 40))
def test_a_row_that_is_fitted_stays_on_its_line(method: str, width: int) -> None:
    columns = {"METHOD": [method * 5], "ARGUMENTS": [method * 9]}

    _, rows = fitted(columns, width=width, shrink={"METHOD": 6})

    screen = pyte.Screen(width, 2)
    pyte.Stream(screen).feed(f"{rows[0][0]}  {rows[0][1]}")
    assert screen.cursor.y == 0


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
