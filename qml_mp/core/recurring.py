"""Anywhere: the template of a recurring job."""

from __future__ import annotations

import re
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from qml_mp.clock import iso
from qml_mp.core.cron import CronSchedule, UnknownZone, zone_trouble
from qml_mp.core.cron_fields import LAST_YEAR
from qml_mp.core.job import check_method
from qml_mp.core.options import check_priority
from qml_mp.core.payload import JsonValue, check_text, decode_json, encode_json
from qml_mp.core.state import StateName
from qml_mp.errors import ConfigurationError, shown
from qml_mp.setting_kinds import check_queue_name
from qml_mp.settings import DEFAULT_QUEUE
from qml_mp.units import Duration, parse_duration

UNKNOWN_APP = "?"
OVERLAPS = ("allow", "skip", "queue")
ON_TIME = timedelta(minutes=1)
"""A firing that gets its job so late is not missed yet."""

_MAX_ID_CHARS = 200
_LONGEST_JITTER = timedelta(days=1)
_MOST_CAUGHT_UP = 1000
_CATCH_UP = re.compile(r"catch_up\((\d{1,4})\)", re.ASCII)
_MOST_REPEATS = 10
_BEFORE_ALL = datetime(1969, 12, 30, tzinfo=UTC)  # no year field names an earlier one than 1970
_NEXT_LABEL = timedelta(microseconds=1)  # what storage tells apart; a cron has whole seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurringJob:
    """A template from which one job is enqueued per firing time of `cron`.

    Built with `RecurringJob.new`; kept in the storage, so it survives restarts.
    """

    id: str
    cron: str
    """5 fields (minute hour day month weekday), or 6 or 7 with seconds first (and a year last)."""
    method: str
    payload: JsonValue = None
    queue: str = DEFAULT_QUEUE
    priority: int = 0
    """Of its jobs: the higher, the sooner."""
    tz: str = "UTC"
    """IANA name of the zone in whose wall time `cron` is meant."""
    misfire: str = "fire_once"
    """What becomes of firings of which several are due when a server looks, as after a time without one.
    "fire_once": one job for all of them, by the time of the first; "skip": a job for the newest if it is at
    most a minute late, none for the others; "catch_up(N)": a job for each of the newest N."""
    overlap: str = "allow"
    """What becomes of a firing while a job of this template has not ended: "allow": a job as ever; "skip":
    none; "queue": it waits, further ones are dropped meanwhile, and it gets its job once no other is left."""
    jitter: timedelta = timedelta()
    """Each job begins so much later at most, by a part that its id and firing time decide."""
    app: str | None = None
    """Whose code declares the template ("": that of an app without a name); None: a person or a call made it;
    "?": not known, as of what was stored before this was."""
    enabled: bool = True
    next_run_at: datetime | None = None
    """None while it is disabled; when its last firing has passed; and of what code declares in a zone that
    this machine does not know."""
    waiting_for: datetime | None = None
    """The firing that waits for the end of a job (`overlap` is "queue"); None: none does."""
    last_run_at: datetime | None = None
    """When its newest job was made."""
    last_job_id: str | None = None
    last_job_state: StateName | None = None
    """None when that job is no longer stored."""
    created_at: datetime
    disabled_reason: str | None = None
    """Why qml-mp itself disabled the template: what of it cannot be read."""

    @classmethod
    def new(
        cls,
        id: str,
        cron: str,
        method: str,
        payload: JsonValue = None,
        queue: str = DEFAULT_QUEUE,
        *,
        priority: int = 0,
        tz: str = "UTC",
        misfire: str = "fire_once",
        overlap: str = "allow",
        jitter: Duration = 0,
        now: datetime | None = None,
        from_code: bool = False,
    ) -> RecurringJob:
        """A validated template whose first firing is the next one after `now`.

        `from_code`: as code declares it at its import, which must not stop because of the day or of the
        machine. Its last firing may have passed, and a zone that is not known here is a warning alone.

        Raises `ConfigurationError` for what no template can have and for one that never fires (again),
        `InvalidJob` for method, payload and priority.
        """
        if not isinstance(id, str) or not 1 <= len(id) <= _MAX_ID_CHARS:
            raise ConfigurationError(
                f"The recurring id {str(id)[:50]!r} is not text of 1 to {_MAX_ID_CHARS} characters."
            )
        check_text(id, what="The recurring id")
        check_method(method)
        _most_caught_up(misfire)
        _check_overlap(overlap)
        payload = decode_json(encode_json(payload, what="The payload"))  # the caller may change his
        created_at = now or datetime.now(UTC)
        try:
            schedule = CronSchedule(cron, tz=tz)
            next_run_at = _first_firing(schedule, id=id, after=created_at, may_be_over=from_code)
        except UnknownZone:
            if not from_code:
                raise
            _first_firing(CronSchedule(cron), id=id, after=created_at, may_be_over=True)
            next_run_at = None
            # Of whoever calls that which calls this: the line of the decorator.
            warnings.warn(f"The recurring template {id!r}: {zone_trouble(tz)}", stacklevel=3)
        return cls(
            id=id, cron=cron, method=method, payload=payload, queue=check_queue_name(queue),
            priority=check_priority(priority), tz=tz, misfire=misfire, overlap=overlap,
            jitter=_jitter(jitter), next_run_at=next_run_at, created_at=created_at,
        )  # fmt: skip

    def from_now_on(self, now: datetime) -> RecurringJob:
        """The template as declared now, by the clock of the storage: what was due between its making and its
        declaration is no missed firing, and neither is what the clock of the machine that made it says.
        Raises `UnknownZone` where this machine does not know its zone."""
        return replace(self, created_at=now, next_run_at=self.schedule.next_after(now))

    @property
    def schedule(self) -> CronSchedule:
        """The parsed schedule; raises `ConfigurationError` when the stored cron no longer parses."""
        return CronSchedule(self.cron, tz=self.tz)

    def firing_other_than_stored(self, now: datetime) -> datetime | None:
        """The schedule's next firing after `now`, when that is not `next_run_at`: the clock was set back
        since, or the zone has other rules. None: `next_run_at` holds. Raises `ConfigurationError` as
        `schedule` does."""
        if not self.enabled or self.next_run_at is None or self.next_run_at <= now:
            return None
        upcoming = self.schedule.next_after(now)
        return upcoming if upcoming != self.next_run_at else None

    def firings_to_make(self, now: datetime) -> list[datetime]:
        """Those of the firings from `next_run_at` to `now` that get a job, in order: as `misfire` says.
        Raises `ConfigurationError` when a stored field cannot be read."""
        _check_overlap(self.overlap)
        limit, first = _most_caught_up(self.misfire), self.next_run_at
        if first is None or first > now:
            return []
        if self.misfire == "fire_once":
            return [first]
        newest = self.schedule.newest(limit or 1, first=first, until=now) or [first]
        if self.misfire == "skip":
            return [firing for firing in newest if now - firing <= ON_TIME]
        return newest

    def is_behind(self, now: datetime) -> bool:
        """Whether it has several firings to catch up: which, `firings_to_make` computes from up to thousands
        of looks at the schedule. Raises `ConfigurationError` when a stored field cannot be read."""
        if _most_caught_up(self.misfire) is None or self.next_run_at is None or self.next_run_at > now:
            return False
        following = self.schedule.next_after(self.next_run_at)
        return following is not None and following <= now

    def delay_of(self, firing: datetime) -> timedelta:
        """By how much the job of a firing is put off: a part of `jitter`, whichever server fires it."""
        part = zlib.crc32(f"{self.id} {firing.isoformat()}".encode()) / 2**32
        return self.jitter * part

    def labels_of(self, firing: datetime) -> Iterator[datetime]:
        """Under which instants a firing may be stored: the first that is free is taken.

        An instant that has had its job comes again only when the clock was set back. A template that
        fires in each hour of each day then goes on, or it would rest until the clock has caught up. Any other
        does not run twice for the same instant.
        """
        yield firing
        if self.schedule.fires_each_hour:
            for repeat in range(1, _MOST_REPEATS):
                yield firing + repeat * _NEXT_LABEL

    def to_json(self) -> Mapping[str, JsonValue]:
        """The template as `--json` prints it."""
        return {
            "id": self.id,
            "cron": self.cron,
            "tz": self.tz,
            "method": self.method,
            "payload": self.payload,
            "queue": self.queue,
            "priority": self.priority,
            "misfire": self.misfire,
            "overlap": self.overlap,
            "jitter_s": self.jitter.total_seconds(),
            "source": self.source,
            "app": self.app,
            "enabled": self.enabled,
            "next_run_at": iso(self.next_run_at),
            "waiting_for": iso(self.waiting_for),
            "last_run_at": iso(self.last_run_at),
            "last_job_id": self.last_job_id,
            "last_job_state": None if self.last_job_state is None else str(self.last_job_state),
            "disabled_reason": self.disabled_reason,
        }

    @property
    def source(self) -> str:
        """Who made it: "code", "person" (or a call), "unknown"."""
        return "person" if self.app is None else "unknown" if self.app == UNKNOWN_APP else "code"


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """What storage did to follow the recurring templates of the code, as ids of templates."""

    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    refused: Mapping[str, str | None]
    """Left alone, because of another app, or of a person (None)."""
    taken: Mapping[str, str] = field(default_factory=dict)
    """Id to whom they were of: the app of the same "module:attribute" in another folder."""
    over: tuple[str, ...] = ()
    """Switched on, and never fire again."""
    lacking: Mapping[str, str] = field(default_factory=dict)
    """Left alone, because this machine does not know the zone, which is told."""


def firings_to_correct(
    templates: Iterable[RecurringJob], *, now: datetime
) -> list[tuple[RecurringJob, datetime]]:
    """The templates whose `next_run_at` is not what their schedule says, with the firing that is next."""
    found = []
    for template in templates:
        with suppress(ConfigurationError):  # told when it is due: it is disabled with the reason then
            upcoming = template.firing_other_than_stored(now)
            if upcoming is not None:
                found.append((template, upcoming))
    return found


def is_of(spec: str, app: str | None) -> bool:
    """Whether `app` is what an app without a name is called that was found by this "module:attribute"."""
    return bool(spec) and app is not None and app.startswith(f"{spec} in ")


def name_of_app(app: str | None) -> str | None:
    """An app without a name is known by its "module:attribute" and its folder: the former."""
    spec, found, _ = (app or "").partition(" in /")
    return spec if found and ":" in spec else app


def _first_firing(schedule: CronSchedule, *, id: str, after: datetime, may_be_over: bool) -> datetime | None:
    """None: the last one has passed, which `may_be_over` allows. Raises `ConfigurationError` where it does
    not, or there has never been one."""
    upcoming = schedule.next_after(after)
    if upcoming is None and not (may_be_over and schedule.next_after(_BEFORE_ALL)):
        raise ConfigurationError(
            f"The cron expression {schedule.text!r} of {id!r} never fires again up to the end of "
            f"{LAST_YEAR}, which is as far as is looked; check its date fields."
        )
    return upcoming


def _most_caught_up(misfire: str) -> int | None:
    """The limit of "catch_up(N)"; None: another policy. Raises `ConfigurationError` when it is none."""
    found = _CATCH_UP.fullmatch(misfire) if isinstance(misfire, str) else None
    if found and 1 <= int(found[1]) <= _MOST_CAUGHT_UP:
        return int(found[1])
    if misfire not in ("fire_once", "skip"):
        raise ConfigurationError(
            f'misfire is {shown(misfire)}; it must be "fire_once", "skip" or "catch_up(N)" with N from 1 to '
            f"{_MOST_CAUGHT_UP}."
        )
    return None


def _check_overlap(overlap: str) -> None:
    if overlap not in OVERLAPS:
        raise ConfigurationError(f'overlap is {shown(overlap)}; it must be "allow", "skip" or "queue".')


def _jitter(value: Duration) -> timedelta:
    jitter = parse_duration(value, what="jitter")
    if jitter > _LONGEST_JITTER:
        raise ConfigurationError(f"jitter is {shown(value)}; it must be at most a day.")
    return jitter
