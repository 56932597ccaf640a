"""Anywhere: the template of a recurring job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from qml_mp.core.cron import CronSchedule
from qml_mp.core.cron_fields import LAST_YEAR
from qml_mp.core.payload import JsonValue, check_text, encode_json
from qml_mp.errors import ConfigurationError
from qml_mp.settings import DEFAULT_QUEUE, check_queue_name

_MAX_ID_CHARS = 200
_FREQUENT = timedelta(hours=1)
_MOST_REPEATS = 10
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
    tz: str = "UTC"
    """IANA name of the zone in whose wall time `cron` is meant."""
    enabled: bool = True
    next_run_at: datetime | None = None
    last_run_at: datetime | None = None
    created_at: datetime
    disabled_reason: str | None = None
    """Why qml-mp itself disabled the template (its cron no longer parses)."""

    @classmethod
    def new(
        cls,
        id: str,
        cron: str,
        method: str,
        payload: JsonValue = None,
        queue: str = DEFAULT_QUEUE,
        *,
        tz: str = "UTC",
        now: datetime | None = None,
    ) -> RecurringJob:
        """A validated template whose first firing is the next one after `now`.

        Raises `ConfigurationError` for a bad cron, zone, id or queue, `InvalidJob` for the payload.
        """
        if not isinstance(id, str) or not 1 <= len(id) <= _MAX_ID_CHARS:
            raise ConfigurationError(
                f"The recurring id {str(id)[:50]!r} is not text of 1 to {_MAX_ID_CHARS} characters."
            )
        check_text(id, what="The recurring id")
        check_text(method, what="The method name")
        check_queue_name(queue)
        encode_json(payload, what="The payload")
        created_at = now or datetime.now(UTC)
        next_run_at = CronSchedule(cron, tz=tz).next_after(created_at)
        if next_run_at is None:
            raise ConfigurationError(
                f"The cron expression {cron!r} of {id!r} never fires again up to the end of {LAST_YEAR}, "
                "which is as far as is looked; check its date fields."
            )
        return cls(
            id=id, cron=cron, method=method, payload=payload, queue=queue, tz=tz, next_run_at=next_run_at,
            created_at=created_at,
        )  # fmt: skip

    @property
    def schedule(self) -> CronSchedule:
        """The parsed schedule; raises `ConfigurationError` when the stored cron no longer parses."""
        return CronSchedule(self.cron, tz=self.tz)

    def firing_sooner_than_stored(self, now: datetime) -> datetime | None:
        """The schedule's next firing after `now`, when that is sooner than `next_run_at`: the clock was set
        back since. None: `next_run_at` holds. Raises `ConfigurationError` as `schedule` does."""
        if not self.enabled or self.next_run_at is None or self.next_run_at <= now:
            return None
        upcoming = self.schedule.next_after(now)
        return upcoming if upcoming is not None and upcoming < self.next_run_at else None

    def labels_of_firing(self) -> Iterator[datetime]:
        """Under which instants the firing at `next_run_at` may be stored: the first that is free is taken.

        An instant that has had its job comes again only when the clock was set back. A template that
        fires at least once an hour then goes on, or it would rest until the clock has caught up. A rarer
        one does not run twice for the same instant.
        """
        if self.next_run_at is None:
            return
        yield self.next_run_at
        following = self.schedule.next_after(self.next_run_at)
        if following is not None and following - self.next_run_at <= _FREQUENT:
            for repeat in range(1, _MOST_REPEATS):
                yield self.next_run_at + repeat * _NEXT_LABEL

    def to_json(self) -> Mapping[str, JsonValue]:
        """The template as `--json` prints it."""
        return {
            "id": self.id,
            "cron": self.cron,
            "tz": self.tz,
            "method": self.method,
            "payload": self.payload,
            "queue": self.queue,
            "enabled": self.enabled,
            "next_run_at": None if self.next_run_at is None else self.next_run_at.isoformat(),
            "last_run_at": None if self.last_run_at is None else self.last_run_at.isoformat(),
            "disabled_reason": self.disabled_reason,
        }
