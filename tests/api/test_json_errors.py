"""Tests: what is not JSON is refused by a sentence that says what helps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qml_mp import InvalidJob, QmlApp, ResultNotStored


class PolarsDataFrame:
    """As one of Polars: a table whose `item` is for a single cell, and raises for others."""

    def __init__(self, *, cells: int = 4) -> None:
        self.cells = cells

    def __len__(self) -> int:
        return self.cells

    def item(self) -> float:
        if self.cells > 1:
            raise ValueError('can only call `.item()` without "row" or "column" values')
        return 1.5

    def to_dicts(self) -> list[dict[str, float]]:
        return []


class PolarsSeries:
    """As one of Polars: a list by `to_list`."""

    def __len__(self) -> int:
        return 2

    def item(self) -> int:
        raise ValueError("a Series has no single item")

    def to_list(self) -> list[int]:
        return [1, 2]


class NoNumber:
    """As numbers of a library that cannot tell what they are."""

    def item(self) -> int:
        raise RuntimeError("is on another device")


app = QmlApp("memory://")
returned: dict[str, object] = {}


@app.job()
def show(a: Any, b: Any = None) -> None: ...


@app.job()
def give_back() -> Any:
    return returned["it"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (
            np.zeros(3),
            r"argument 'a' is an ndarray, which is not JSON; pass a list \(\.tolist\(\)\), or the path",
        ),
        ({"x": [np.zeros(3)]}, r"argument 'a' at \['x'\]\[0\] is an ndarray, which is not JSON; pass a list"),
        (np.int64(3), r"argument 'a' is an int64, which is not JSON; pass a number of Python \(\.item\(\)\)"),
        (
            PolarsDataFrame(),
            r"argument 'a' is a PolarsDataFrame, which is not JSON; pass its rows \(\.to_dicts",
        ),
        ({1, 2}, r"argument 'a' is a set, which is not JSON; pass a list"),
        (b"x", r"argument 'a' is bytes, which are not JSON; pass text \(base64\), or annotate the parameter"),
        (object(), r"argument 'a' is an object, which is not JSON; pass text, numbers, lists or objects"),
        ({(1, 2): 3}, r"argument 'a' has the key \(1, 2\), which is a tuple; the keys of an object must be"),
        (float("nan"), r"argument 'a' is nan, which JSON cannot hold; pass null or text"),
    ],
    ids=["array", "inside", "number", "table", "set", "bytes", "object", "key", "nan"],
)
def test_an_argument_that_is_no_json_is_named_with_what_to_pass_instead(value: object, said: str) -> None:
    with pytest.raises(InvalidJob, match=f"^show: the {said}"):
        show.enqueue(value)


@pytest.mark.parametrize("cells", [1, 4])
def test_a_table_as_a_result_is_no_json_however_many_cells_it_has(cells: int) -> None:
    returned["it"] = PolarsDataFrame(cells=cells)

    with app.inline(), pytest.raises(ResultNotStored) as refused:
        _ = give_back.enqueue().result

    assert "holds a PolarsDataFrame, which is not JSON; return its rows (.to_dicts())" in str(refused.value)


def test_a_result_that_cannot_say_what_number_it_is_is_no_json() -> None:
    returned["it"] = [NoNumber()]

    with app.inline(), pytest.raises(ResultNotStored) as refused:
        _ = give_back.enqueue().result

    assert "holds a NoNumber, which is not JSON" in str(refused.value)


def test_a_series_of_polars_is_a_list() -> None:
    returned["it"] = PolarsSeries()

    with app.inline():
        assert give_back.enqueue().result == [1, 2]
