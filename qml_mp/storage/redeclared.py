"""Every process: what becomes of a stored template of a recurring job that is declared again."""

from __future__ import annotations

from qml_mp.core.payload import encode_json
from qml_mp.core.recurring import UNKNOWN_APP, RecurringJob, is_of
from qml_mp.storage.database import Values
from qml_mp.storage.rows import Row
from qml_mp.storage.storable import microseconds

_SAID = ("cron", "tz", "method", "payload", "queue", "priority", "misfire", "overlap", "jitter_us")


def declared_values(template: RecurringJob) -> Values:
    """A template as it is inserted."""
    return {
        "id": template.id,
        "cron": template.cron,
        "tz": template.tz,
        "method": template.method,
        "payload": encode_json(template.payload, what="The payload"),
        "queue": template.queue,
        "priority": template.priority,
        "misfire": template.misfire,
        "overlap": template.overlap,
        "jitter_us": microseconds(template.jitter),
        "app": template.app,
        "enabled": template.enabled,
        "next_run_at": template.next_run_at,
        "created_at": template.created_at,
    }


def may_replace(held: Row, app: str | None, spec: str) -> bool:
    """Its own, what nobody knows whose it is, what belongs to an app without a name, if it is an app, and
    what the app of this `spec` has declared in another folder."""
    owner = held["app"]
    return owner in (app, UNKNOWN_APP) or (owner == "" and app is not None) or is_of(spec, owner)


def redeclared(held: Row, declared: Values) -> Values | None:
    """What becomes of a stored template that is declared; None: it stays as it is.

    A template that qml-mp itself switched off gets another chance once anything is different that can keep it
    from firing.
    """
    same = {name: held[name] == declared[name] for name in _SAID}
    was_disabled, unchanged = held["disabled_reason"] is not None, all(same.values())
    if unchanged and held["app"] == declared["app"]:
        return None
    keeps_firing = same["cron"] and same["tz"] and not was_disabled
    return {
        **declared,
        "enabled": bool(held["enabled"]) or (was_disabled and not unchanged),
        "next_run_at": held["next_run_at"] if keeps_firing else declared["next_run_at"],
        "disabled_reason": held["disabled_reason"] if unchanged else None,
    }


def is_over(held: Row, stored: Row) -> bool:
    """Whether what was found or inserted, and is stored so now, is switched on and never fires again."""
    return bool(stored["enabled"]) and stored["next_run_at"] is None and held["waiting_for"] is None
