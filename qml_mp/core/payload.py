"""Anywhere: JSON as qml-mp stores it: what may be written, and how a stored text is read back.

Rules: only JSON types, string keys, finite numbers, integers from -2**63 to 2**63-1, text that every
backend can store (no NUL, no lone surrogate), at most `MAX_DEPTH` levels and `MAX_PAYLOAD_BYTES` bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from json.encoder import c_make_encoder, encode_basestring  # type: ignore[attr-defined]

from qml_mp.errors import InvalidJob, shown

JsonValue = None | bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"]

MAX_PAYLOAD_BYTES = 1024 * 1024
MAX_DEPTH = 100
_INT64_MAX = 2**63 - 1
# `json.dumps` makes one anew for each call. It need not look for cycles: a depth is refused before.
_ENCODER = json.JSONEncoder(ensure_ascii=False, check_circular=False, allow_nan=False, separators=(",", ":"))
# What its `encode` makes anew for each value, which is half of the time that a small one takes.
_parts: Callable[[object, int], Iterable[str]] = (
    c_make_encoder(None, _ENCODER.default, encode_basestring, None, ":", ",", False, False, False)
    if c_make_encoder
    else lambda value, _: _ENCODER.iterencode(value)
)
# What `json.loads` comes down to, for a text without space around it: half of its time.
_scan: Callable[[str, int], tuple[JsonValue, int]] = json.JSONDecoder().scan_once  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class EncodedJson:
    """A value that can be stored, with its text: whoever is given it need not encode it again."""

    value: JsonValue
    text: str

    @classmethod
    def of(cls, value: JsonValue, *, what: str, argument: str | None = None) -> EncodedJson:
        """Encode the value as `encode_json` does."""
        return cls(value, encode_json(value, what=what, argument=argument))


def encode_json(value: object, *, what: str, argument: str | None = None) -> str:
    """Return the value as compact JSON text; raise `InvalidJob` naming `what` and the place in it.

    Of an object of arguments, `argument` is how one of them is named: "show: the argument".
    """
    _check(value, what=what, argument=argument)
    text = "".join(_parts(value, 0))
    # A character takes at most 4 bytes.
    if 4 * len(text) > MAX_PAYLOAD_BYTES and (size_bytes := len(text.encode())) > MAX_PAYLOAD_BYTES:
        raise InvalidJob(
            f"{what} is {size_bytes:,} bytes of JSON; the limit is {MAX_PAYLOAD_BYTES:,}. "
            "Store large data elsewhere (a file, an object store) and pass a reference to it."
        )
    return text


def decode_json(text: str | bytes) -> JsonValue:
    """Read stored JSON text back; raise `InvalidJob` for whatever did not come from `encode_json`.

    Rows can be written by other programs, so nothing about the text is trusted: size, encoding,
    syntax, depth and values are checked, and no input makes this raise anything else.
    """
    if text == "{}":  # the metadata of nearly every job: a tenth of what reading a claim takes
        return {}
    if type(text) is str and text.isascii() and len(text) <= MAX_PAYLOAD_BYTES:
        try:
            plain, end = _scan(text, 0)
        except (StopIteration, ValueError, RecursionError):
            end = -1
        if end == len(text):
            _check(plain, what="The stored JSON")
            return plain
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    if len(raw) > MAX_PAYLOAD_BYTES:
        raise InvalidJob(f"The stored JSON is {len(raw):,} bytes; the limit is {MAX_PAYLOAD_BYTES:,}.")
    try:
        value: JsonValue = json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise InvalidJob(f"The stored text is not readable JSON: {type(error).__name__}: {error}") from None
    _check(value, what="The stored JSON")
    return value


def not_json(value: object, *, pass_: str = "pass", otherwise: str) -> str:
    """ "an ndarray, which is not JSON; pass a list (.tolist()), or the path of a file": what the value is,
    and what helps. `pass_` is what its owner does with it, and `otherwise` what helps where its kind does not
    tell."""
    kind = type(value)
    instead = next((text for method, text in _INSTEAD.items() if callable(getattr(kind, method, None))), "")
    if isinstance(value, set | frozenset):
        instead = "a list (sorted(...))"
    if is_one_number(value):
        instead = "a number of Python (.item())"
    return f"{with_article(kind.__name__)}, which is not JSON; {pass_} {instead or otherwise}"


def is_one_number(value: object) -> bool:
    """Whether it is a single number of numpy or the like, by what it can do: a table has `item` too."""
    kind = type(value)
    return callable(getattr(kind, "item", None)) and not hasattr(kind, "__len__")


def with_article(name: str) -> str:
    """ "an ndarray", "a DataFrame"."""
    return f"an {name}" if _SOUNDS_LIKE_A_VOWEL.match(name) else f"a {name}"


def check_text(text: str, *, what: str) -> str:
    """Return the text if every backend can store it, else raise `InvalidJob` naming `what`."""
    problem = _problem_of_text(text)
    if problem:
        raise InvalidJob(f"{what} {problem}")
    return text


_Path = tuple[str | int, ...]
_OR_A_FILE = "or the path of a file that has it"
_INSTEAD: Mapping[str, str] = {
    "to_dicts": f"its rows (.to_dicts()), {_OR_A_FILE}",  # a DataFrame of Polars
    "to_pylist": f"a list (.to_pylist()), {_OR_A_FILE}",  # PyArrow
    "iterrows": f"its rows (.to_dict('records')), {_OR_A_FILE}",  # a DataFrame of pandas
    "tolist": f"a list (.tolist()), {_OR_A_FILE}",
    "to_list": f"a list (.to_list()), {_OR_A_FILE}",
}
"""By the method that a value has, what to pass in its stead. The first one counts."""
_SOUNDS_LIKE_A_VOWEL = re.compile(r"[aeio]|un(?!i)|nd", re.IGNORECASE)


def _check(value: object, *, what: str, argument: str | None = None) -> None:
    """Raise `InvalidJob` naming `what` (or the `argument` in it) and the place in it unless the value can be
    stored."""
    if _is_plain(value):
        return
    for path, part, depth in _walk(value):
        problem = _problem(part, depth, is_of_argument=argument is not None)
        if problem:
            if argument is not None and path:
                what, path = f"{argument} {path[0]!a}", path[1:]
            raise InvalidJob(f"{what}{_shown(path)} {problem}")


def _is_plain(value: object, depth: int = 0) -> bool:
    """Whether the value can be stored, seen at a glance; what this is not sure of, `_walk` decides.

    Plain tests of exact types: a third of the time that the walk takes, and every payload pays it.
    """
    if type(value) is str:
        return _is_plain_text(value)
    if type(value) is int:
        return -_INT64_MAX <= value <= _INT64_MAX
    if type(value) is float:
        return value - value == 0
    if type(value) is dict and depth < MAX_DEPTH:
        for key, item in value.items():
            if type(key) is not str or not _is_plain_text(key) or not _is_plain(item, depth + 1):
                return False
        return True
    if type(value) is list and depth < MAX_DEPTH:
        return all(_is_plain(item, depth + 1) for item in value)
    return value is None or type(value) is bool


def _is_plain_text(text: str) -> bool:
    return "\0" not in text and (text.isascii() or _problem_of_text(text) is None)


def _walk(value: object) -> Iterator[tuple[_Path, object, int]]:
    """Every part of the value with its path and depth; a stack of its own, so depth cannot overflow it."""
    stack: list[tuple[_Path, object, int]] = [((), value, 0)]
    while stack:
        path, part, depth = stack.pop()
        yield path, part, depth
        if isinstance(part, dict):
            stack.extend(((*path, key), item, depth + 1) for key, item in part.items())
        elif isinstance(part, list | tuple):
            stack.extend(((*path, index), item, depth + 1) for index, item in enumerate(part))


def _problem(part: object, depth: int, *, is_of_argument: bool) -> str | None:
    if depth > MAX_DEPTH:
        return f"is nested deeper than {MAX_DEPTH} levels; flatten it or pass a reference."
    match part:
        case None | bool():
            return None
        case str():
            return _problem_of_text(part)
        case int():
            # Compared, because `in range` counts one by one for an int of a class of its own (IntEnum).
            return (
                None
                if -_INT64_MAX - 1 <= part <= _INT64_MAX
                else "is an integer beyond -2**63 … 2**63-1; pass it as text."
            )
        case float():
            finite = part - part == 0
            return None if finite else f"is {part!r}, which JSON cannot hold; pass null or text."
        case dict():
            return next(filter(None, map(_problem_of_key, part)), None)
        case list() | tuple():
            return None
        case bytes() | bytearray() | memoryview():
            annotate = ", or annotate the parameter with bytes" if is_of_argument else ""
            return f"is bytes, which are not JSON; pass text (base64){annotate}."
        case _:
            otherwise = "text, numbers, lists or objects"
            otherwise += ", or annotate the parameter with its type" if is_of_argument else ""
            return f"is {not_json(part, otherwise=otherwise)}."


def _problem_of_key(key: object) -> str | None:
    if not isinstance(key, str):
        kind = with_article(type(key).__name__)
        return f"has the key {shown(key)}, which is {kind}; the keys of an object must be text."
    problem = _problem_of_text(key)
    return f"has a key that {problem}" if problem else None


def _problem_of_text(text: str) -> str | None:
    if "\0" in text:
        return "contains a NUL character, which cannot be stored; remove it or encode it (base64)."
    try:
        text.encode()
    except UnicodeEncodeError:
        return "contains a lone surrogate, which is not valid text; decode it properly or encode it (base64)."
    return None


def _shown(path: _Path) -> str:
    if not path:
        return ""
    shown = "".join(f"[{part!a}]" for part in path[:5])
    return f" at {shown}{'…' if len(path) > 5 else ''}"
