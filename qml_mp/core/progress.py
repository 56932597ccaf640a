"""Anywhere: how far a job says that it has come."""

from __future__ import annotations

from dataclasses import dataclass

from qml_mp.core.payload import JsonValue

MOST = 2**53
"""Up to here whole numbers are exact as floats, which is what shared memory holds."""
MAX_NOTE_BYTES = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a job has said last with `ctx.progress`."""

    done: float
    total: float | None = None
    """None: nobody knows."""
    note: str = ""

    @property
    def fraction(self) -> float | None:
        """From 0 to 1; None when the total is not known."""
        if self.total is None:
            return None
        return min(self.done / self.total, 1.0) if self.total else 1.0

    def to_json(self) -> dict[str, JsonValue]:
        """As `--json` prints it."""
        return {"done": _plain(self.done), "total": _plain(self.total), "note": self.note}

    def __str__(self) -> str:
        """ "412 of 1000 (41 %), crops"."""
        parts = [f"{_plain(self.done)}"]
        if self.total is not None:
            parts = [f"{_plain(self.done)} of {_plain(self.total)} ({int(100 * (self.fraction or 0))} %)"]
        return ", ".join([*parts, *([self.note] if self.note else [])])


def progress_of(value: object) -> Progress | None:
    """Read `Progress.to_json` back, whatever another program has made of it."""
    if not isinstance(value, dict):
        return None
    done, total, note = _amount(value.get("done")), value.get("total"), value.get("note")
    if done is None or (total is not None and _amount(total) is None):
        return None
    return Progress(done=done, total=_amount(total), note=note if isinstance(note, str) else "")


def _amount(value: object) -> float | None:
    return value if isinstance(value, int | float) and 0 <= value <= MOST else None


def _plain(amount: float | None) -> int | float | None:
    """A whole number without a fraction."""
    if amount is None:
        return None
    return int(amount) if amount == int(amount) else amount
