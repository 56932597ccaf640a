"""Web process: templates, and how values are shown in them. All text is made printable, and escaped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from zlib import crc32

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from qml_mp.core.history import BEYOND_BOUNDS, BOUNDS_S, Histogram
from qml_mp.core.payload import JsonValue
from qml_mp.printable import printable, printable_json, printable_lines
from qml_mp.units import format_size

_MASK = "••••••"
_LINE_CHARS = 300
_NOTHING = "\N{EN DASH}"


def make_environment() -> Environment:
    """That of all templates."""
    environment = Environment(
        loader=PackageLoader("qml_mp.web"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters.update(
        duration=_duration, size=_size, number=_number, about=_about, utc=_utc, lines=_lines,
        raw_text=_raw_text, pretty=_pretty, in_words=_in_words, tojson_line=_in_a_line,
        quantile=_quantile, key=_key,
    )  # fmt: skip
    return environment


def masked(value: JsonValue, hide: Sequence[str]) -> JsonValue:
    """The value, with a mask in place of each whose key contains one of `hide`, whatever the case."""
    hidden = tuple(key.lower() for key in hide if key)

    def mask(each: JsonValue) -> JsonValue:
        if isinstance(each, dict):
            return {
                key: _MASK if any(word in key.lower() for word in hidden) else mask(inner)
                for key, inner in each.items()
            }
        return [mask(inner) for inner in each] if isinstance(each, list) else each

    return mask(value)


def printable_json_lines(encoded: str) -> str:
    """A JSON text in lines, each of them printable; the value that it stands for is the same."""
    return "\n".join(printable_json(line) for line in encoded.split("\n"))


def _shown(value: object) -> object:
    """What `{{ }}` gives: nothing for None, printable text for text."""
    if value is None:
        return ""
    return printable(str(value)) if isinstance(value, str) and not isinstance(value, Markup) else value


def _duration(value: timedelta | float | None) -> str:
    """Of the two largest units, as page.js goes on with it each second: "1 min 4 s"."""
    if value is None:
        return _NOTHING
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if abs(seconds) < 0.9995:  # what would round up to the next unit is shown in it
        return f"{round(seconds * 1000)} ms" if seconds else "0 s"
    if abs(seconds) < 9.95:
        return f"{seconds:.1f} s"
    sign, whole = "-" if seconds < 0 else "", round(abs(seconds))
    units = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    first = next(place for place, (size, _) in enumerate(units) if whole >= size)
    shown = []
    for size, name in units[first : first + 2]:
        if whole >= size:
            shown.append(f"{whole // size} {name}")
        whole %= size
    return sign + " ".join(shown)


def _quantile(histogram: Histogram, part: float) -> str:
    """The duration that this part of all did not exceed."""
    found = histogram.quantile(part)
    return f"over {_duration(BOUNDS_S[-1])}" if found == BEYOND_BOUNDS else _duration(found)


def _size(size_bytes: int | None) -> str:
    return _NOTHING if size_bytes is None else format_size(size_bytes)


def _number(value: float | None) -> str:
    """With narrow spaces between thousands, which is not to be made printable."""
    return _NOTHING if value is None else Markup(f"{value:,}".replace(",", "\u202f"))


def _about(value: int, most: int) -> str:
    """Of what was counted up to a number."""
    return f"over {_number(most)}" if value > most else _number(value)


def _utc(instant: datetime) -> str:
    return instant.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _key(name: str) -> str:
    """A short one for ids of elements, which outlives the coming and going of others."""
    return f"{crc32(name.encode()):08x}"


def _in_words(state: str) -> str:
    return state.replace("_", " ")


def _lines(text: str | None) -> Markup:
    """A text of several lines, such as a traceback, each printable."""
    return escape("\n".join(printable_lines(text or "")))


def _raw_text(text: str) -> Markup:
    """A text as it is, for what a person edits."""
    return escape(text)


def _in_a_line(value: Any) -> Markup:
    """A JSON value in one line, its characters printable, cut."""
    text = json.dumps(value, ensure_ascii=False)
    cut = text if len(text) <= _LINE_CHARS else f"{text[:_LINE_CHARS]}…"
    return escape(printable_json(cut))


def _pretty(value: Any) -> Markup:
    """A JSON value in lines, its characters printable."""
    text = json.dumps(value, ensure_ascii=False, indent=2)
    return escape(printable_json_lines(text))
