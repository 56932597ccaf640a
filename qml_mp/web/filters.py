"""Web process: which jobs a screen is about, as its URL says it, and as people read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta

from qml_mp.core.state import StateName
from qml_mp.errors import ConfigurationError, QmlError, shown
from qml_mp.storage.values import JobFilter
from qml_mp.units import check_no_date, parse_duration

MULTIPLE = "state"
_SOME_DAY = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What the fields say; empty ones do not restrict."""

    state: tuple[str, ...] = ()
    queue: str = ""
    method: str = ""
    error: str = ""
    since: str = ""
    until: str = ""
    kind: str = ""

    @classmethod
    def of(cls, texts: Callable[[str], Sequence[str]]) -> Filters:
        """Of a function that gives all values of a field: of a query, or of a form.

        Raises `ConfigurationError` for what is no state, and for a time that is none, or may be seconds.
        """
        states = tuple(state for state in texts(MULTIPLE) if state)
        for state in states:
            if state not in set(StateName):
                raise ConfigurationError(f"{shown(state)} is no state; one of {', '.join(StateName)} is.")
        found = {
            field.name: next(iter(texts(field.name)), "") for field in fields(cls) if field.name != MULTIPLE
        }
        times = {name: found[name].strip() for name in ("since", "until")}
        for name, text in times.items():
            _instant(text, _SOME_DAY, what=name.capitalize())
        return cls(**(found | times), state=states)

    @property
    def values(self) -> dict[str, str | list[str]]:
        """For a URL or a form: those that restrict."""
        told: dict[str, str | list[str]] = {MULTIPLE: list(self.state)} if self.state else {}
        return told | {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name != MULTIPLE and getattr(self, field.name)
        }

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The same, as fields of a form."""
        return [
            (name, each)
            for name, value in self.values.items()
            for each in (value if isinstance(value, list) else [value])
        ]

    def job_filter(self, now: datetime) -> JobFilter:
        """A duration counts back from `now`, the storage's clock. Raises `ConfigurationError` for what is
        neither a duration nor an instant."""
        return JobFilter(
            states=[StateName(state) for state in self.state],
            queue=self.queue or None,
            method=self.method or None,
            error=self.error or None,
            since=_instant(self.since, now, what="Since"),
            until=_instant(self.until, now, what="Until"),
            kind=self.kind or None,
        )

    def in_words(self) -> str:
        """ "failed jobs of the queue images"; "all jobs". Of what `of` has read."""
        states = " or ".join(state.replace("_", " ") for state in self.state)
        return " ".join([f"{states} jobs" if states else "all jobs", *self._parts()])

    def _parts(self) -> Iterator[str]:
        if self.queue:
            yield f"of the queue {self.queue}"
        if self.method:
            yield f"of the method {self.method}"
        if self.error:
            yield f"whose error contains {shown(self.error)}"
        if self.kind:
            yield f"whose failure is of the kind {self.kind}"
        if self.since:
            yield f"since {_with_zone(self.since)}"
        if self.until:
            yield f"until {_with_zone(self.until)}"


def _instant(text: str, now: datetime, *, what: str) -> datetime | None:
    if not text:
        return None
    try:
        when = _read(text, what=what)
        if isinstance(when, timedelta):
            return now - when
        return (when if when.tzinfo is not None else when.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ConfigurationError(
            f"{what} is {shown(text)}; give a duration such as 90s, 2h or 1d, or a time such as "
            "2030-01-31T09:00 (UTC, unless it names another zone)."
        ) from None


def _with_zone(text: str) -> str:
    """As it was typed; a time that names no zone with the one in which it is meant."""
    when = _read(text, what="time")
    return text if isinstance(when, timedelta) or when.tzinfo is not None else f"{text} UTC"


def _read(text: str, *, what: str) -> timedelta | datetime:
    """A duration, or a time as it is written. Raises `ValueError` for what is neither, and
    `ConfigurationError` for what may be both."""
    check_no_date(text, what=what, as_date="a date as 2030-01-31")
    try:
        return parse_duration(text, what=what)
    except QmlError:
        return datetime.fromisoformat(text)
