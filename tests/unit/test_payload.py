"""Tests: what may be stored as JSON, and how a stored text is read back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qml_mp.core.payload import MAX_DEPTH, MAX_PAYLOAD_BYTES, JsonValue, check_text, decode_json, encode_json
from qml_mp.errors import InvalidJob

_storable_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _storable_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_storable_text, inner, max_size=4),
    max_leaves=20,
)


def nested(depth: int) -> JsonValue:
    value: JsonValue = 1
    for _ in range(depth):
        value = [value]
    return value


@given(_json)
def test_what_is_written_is_read_back_equal(value: JsonValue) -> None:
    assert decode_json(encode_json(value, what="payload")) == value


@pytest.mark.fault(26)
@pytest.mark.parametrize(
    ("value", "told"),
    [
        (float("nan"), "JSON cannot hold"),
        (float("inf"), "JSON cannot hold"),
        ({"a": [1, float("-inf")]}, r"at \['a'\]\[1\]"),
        (b"bytes", "is bytes, which are not JSON"),
        ({1: 2}, "keys of an object must be text"),
        (2**63, r"an integer beyond -2\*\*63 … 2\*\*63-1"),
        (-(2**63) - 1, r"an integer beyond -2\*\*63 … 2\*\*63-1"),
        ({1, 2}, "is a set, which is not JSON"),
        (object(), "is an object, which is not JSON"),
    ],
)
def test_what_json_cannot_hold_is_refused_with_its_place(value: object, told: str) -> None:
    with pytest.raises(InvalidJob, match=told):
        encode_json(value, what="The payload")


@pytest.mark.fault(28)
@pytest.mark.parametrize("text", ["a\0b", "lone \ud800 surrogate"])
def test_text_that_no_backend_can_store_is_refused_wherever_it_stands(text: str) -> None:
    for value in (text, [text], {"key": text}, {text: 1}):
        with pytest.raises(InvalidJob):
            encode_json(value, what="The payload")
    with pytest.raises(InvalidJob):
        check_text(text, what="The method name")


@pytest.mark.fault(27)
def test_a_payload_of_two_mebibytes_is_refused_with_the_limit() -> None:
    with pytest.raises(InvalidJob, match="1,048,576"):
        encode_json("x" * 2 * 1024 * 1024, what="The payload")


def test_a_payload_of_exactly_the_limit_is_stored() -> None:
    text = encode_json("x" * (MAX_PAYLOAD_BYTES - 2), what="The payload")

    assert len(text) == MAX_PAYLOAD_BYTES
    assert decode_json(text) == "x" * (MAX_PAYLOAD_BYTES - 2)


@pytest.mark.fault(29)
def test_nesting_a_hundred_thousand_deep_is_refused_in_both_directions() -> None:
    with pytest.raises(InvalidJob, match="nested deeper"):
        encode_json(nested(100_000), what="The payload")

    with pytest.raises(InvalidJob):
        decode_json("[" * 100_000 + "]" * 100_000)


def test_nesting_at_the_limit_is_stored() -> None:
    value = nested(MAX_DEPTH)

    assert decode_json(encode_json(value, what="The payload")) == value


def test_a_list_that_holds_itself_is_refused() -> None:
    cycle: list[object] = []
    cycle.append(cycle)

    with pytest.raises(InvalidJob, match="nested deeper"):
        encode_json(cycle, what="The payload")


@pytest.mark.fault(28)
@pytest.mark.parametrize(
    "stored",
    [
        b"\xff\xfe",
        "",
        "{",
        "nan",
        "NaN",
        "[Infinity]",
        '"a\\u0000b"',
        '"\\ud800"',
        "123456789012345678901234567890",
        "1e999",
        "[1] tail",
        "\udcff",
        "9" * 5000,
        '{"a":1}\0',
    ],
)
def test_a_stored_text_that_is_not_ours_raises_nothing_but_invalid_job(stored: str | bytes) -> None:
    with pytest.raises(InvalidJob):
        decode_json(stored)


@given(st.binary(max_size=200))
def test_no_stored_bytes_raise_anything_but_invalid_job(stored: bytes) -> None:
    try:
        value = decode_json(stored)
    except InvalidJob:
        return
    json.dumps(value, allow_nan=False)


def test_an_error_shows_the_place_but_not_the_value() -> None:
    with pytest.raises(InvalidJob) as caught:
        encode_json({"password": {"hunter2"}}, what="The payload")

    assert "password" in str(caught.value)
    assert "hunter2" not in str(caught.value)
