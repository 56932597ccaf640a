"""Every process: what becomes of a stored template of a recurring job that is declared again."""

from __future__ import annotations

from qml_mp.core.recurring import UNKNOWN_APP, is_of
from qml_mp.storage.database import Values
from qml_mp.storage.rows import Row

_SAID = ("cron", "tz", "method", "payload", "queue", "misfire", "overlap", "jitter_us")


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
