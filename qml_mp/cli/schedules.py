"""Client: the schedule that a command names, by a template's id or as a cron expression."""

from __future__ import annotations

from contextlib import suppress

from qml_mp.cli.session import Session
from qml_mp.core.cron import CronSchedule
from qml_mp.core.recurring import RecurringJob
from qml_mp.errors import ConfigurationError, QmlError
from qml_mp.views.templates import get_template


def schedule_of(session: Session, what: str, tz: str | None) -> CronSchedule:
    """Of the template of that id, else of the expression.

    Raises `ConfigurationError` for what is neither, and `RecurringNotFound` for what can be no expression.
    """
    if len(what.split()) > 1 or what.startswith("@"):
        try:
            schedule = CronSchedule(what, tz=tz or "UTC")
        except ConfigurationError:
            template = _template_called(session, what, may_import=True)
            if template is None:
                raise
        else:
            template = None if tz else _template_called(session, what, may_import=False)
            if template is None:
                return schedule
    else:
        template = get_template(session.existing_storage(), what)
    if tz is not None and tz != template.tz:
        raise ConfigurationError(
            f"The template {what!r} is in the zone {template.tz}; --tz goes with a cron expression."
        )
    return template.schedule


def _template_called(session: Session, what: str, *, may_import: bool) -> RecurringJob | None:
    """The template that has for its id what could be an expression; None: there is none, or nobody can be
    asked, and an expression needs no storage."""
    with suppress(QmlError):
        return session.existing_storage(may_import=may_import).get_recurring_job(what)
    return None
