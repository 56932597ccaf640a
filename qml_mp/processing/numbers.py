"""Client and worker: arrays and numbers of other libraries as JSON, without importing any of them.

They say themselves what they are in Python: `tolist` of an array (numpy, pandas, torch, array.array), or
`to_list` (Polars), `item` of a single number. Only numpy's own types are built again, as an annotation with
one has imported numpy.
"""

from __future__ import annotations

import operator
import sys
import typing
from collections.abc import Callable
from functools import partial
from numbers import Real
from typing import Any

from qml_mp.core.payload import JsonValue, is_one_number, not_json
from qml_mp.errors import InvalidJob
from qml_mp.processing.scalars import Codec, Mistakable, mismatch


def in_python(value: Any) -> Any:
    """A foreign number, or the lists that an array is; raises `InvalidJob` for anything else."""
    if isinstance(value, bytes | bytearray | memoryview):
        raise InvalidJob(
            "The result holds bytes, which are not JSON; annotate the function with what it returns "
            "(-> bytes, -> dict[str, bytes], …) to have them stored as base64 and given back as bytes"
        )
    _check_carried(value, "The result")
    problem: Exception | None = None
    try:
        for name in ("tolist", "to_list", *(("item",) if is_one_number(value) else ())):
            if not isinstance(value, type) and callable(method := getattr(value, name, None)):
                return method()
        if hasattr(value, "__index__"):
            return operator.index(value)
        if isinstance(value, Real):
            return float(value)
    except Exception as error:
        problem = error
    otherwise = "text, numbers, lists or dicts, or annotate the function with what it returns"
    raise InvalidJob(f"The result holds {not_json(value, pass_='return', otherwise=otherwise)}") from problem


def numpy_codec(kind: type, args: tuple[Any, ...]) -> Codec | None:
    """Of `numpy.ndarray`, with or without its dtype, or of a number type such as `numpy.float32`; None of
    anything else."""
    if not is_numpy(kind):
        return None
    if is_numpy_array(kind):
        return _array_codec(kind, _dtype(args))
    return Codec(_lists_of(kind), lambda value, where: _built(kind, kind, value, where))


def is_numpy(kind: Any) -> bool:
    """Whether it is the type of an array or of a number of numpy."""
    numpy: Any = sys.modules.get("numpy")
    return numpy is not None and isinstance(kind, type) and issubclass(kind, numpy.ndarray | numpy.generic)


def is_numpy_array(kind: Any) -> bool:
    """Whether it is that of an array of numpy."""
    return is_numpy(kind) and issubclass(kind, sys.modules["numpy"].ndarray)


def _check_carried(value: object, where: str) -> None:
    """`Mistakable` for one of numpy of which lists and numbers would be something else."""
    if not is_numpy(type(value)):
        return
    dtype = value.dtype  # type: ignore[attr-defined]  # arrays and numbers have it
    if dtype.kind in "mM":  # whole numbers, instants or text by its unit
        lost, instead = f"{dtype}", "whole numbers (.astype('int64')) or text (.astype(str))"
    elif dtype.char in "gG":  # their `tolist` gives numbers of the same type
        lost, instead = f"{dtype}", "numbers of 64 bits (.astype('float64'))"
    elif hasattr(value, "mask"):
        lost, instead = "a masked array", "its data (.filled(0)) and its mask (.mask), each by itself"
    elif dtype.kind == "V":
        lost, instead = "a structured array", "an array of each field, or a list of dataclasses"
    else:
        return
    raise Mistakable(f"{where[:300]} is {lost}, which JSON cannot hold; pass {instead}.")


def _dtype(args: tuple[Any, ...]) -> Any:
    """That of `ndarray[shape, dtype[float32]]`; None where that is no type of single numbers."""
    named = typing.get_args(args[1]) if len(args) == 2 else ()
    is_one = bool(named) and isinstance(named[0], type) and "__new__" in vars(named[0])
    return named[0] if is_one else None


def _array_codec(kind: type, dtype: Any) -> Codec:
    make = partial(sys.modules["numpy"].asarray, dtype=dtype)
    lists_of = _lists_of(kind)

    def encode(value: Any, where: str) -> JsonValue:
        lists = lists_of(value, where)
        if dtype is not None and value.dtype != dtype:
            decode(lists, where)  # refuses what the dtype of the annotation does not hold
        return lists

    def decode(value: Any, where: str) -> Any:
        return _built(make, kind, value, where)

    return Codec(encode, decode)


def _lists_of(kind: type) -> Callable[[Any, str], JsonValue]:
    def encode(value: Any, where: str) -> JsonValue:
        if not isinstance(value, kind):
            raise mismatch(value, kind.__name__, where)
        _check_carried(value, where)
        if 0 in value.shape[:-1]:  # type: ignore[attr-defined]  # both have it
            raise Mistakable(
                f"{where[:300]} is an empty array of the shape {value.shape}, "  # type: ignore[attr-defined]
                "which lists cannot say; pass None in its place, or its shape beside it."
            )
        lists: JsonValue = value.tolist()  # type: ignore[attr-defined]  # both have it
        return lists

    return encode


def _built(make: Callable[[Any], Any], kind: type, value: Any, where: str) -> Any:
    try:
        made = make(value)
        # numpy cuts fractions off, and takes any text for true.
        if made.dtype.kind in "iub" and made.tolist() != value:
            raise ValueError(f"{made.dtype} does not hold what it was given; convert that before (.astype)")
    except Exception as problem:  # ValueError for ragged lists, TypeError, OverflowError
        raise InvalidJob(f"{where[:300]} is no {kind.__name__}: {problem}") from None
    return made
