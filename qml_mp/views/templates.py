"""Client and web process: recurring templates as people see them, and what they do to single ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from qml_mp.core.cron import CronSchedule
from qml_mp.core.recurring import RecurringJob, name_of_app
from qml_mp.errors import ConfigurationError, RecurringNotFound
from qml_mp.storage.store import Storage
from qml_mp.storage.template_jobs import TemplateJob
from qml_mp.views.firings import Firing, firing_at, next_firings
from qml_mp.views.servers import ServerView


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateView:
    """A template, and what is known of it."""

    template: RecurringJob
    words: str | None
    """None: another program has written what cannot be read."""
    firings: Sequence[Firing]
    """The next ones; () while it is disabled."""
    jobs: Sequence[TemplateJob]
    """The newest of its own, the newest first."""
    trouble: str | None
    """Why it does not fire although somebody may expect it to; None: nothing is known."""

    @property
    def source(self) -> str:
        """ "code of shop", "person", "unknown"; without the folder that an app without a name is known by."""
        app = name_of_app(self.template.app)
        return f"code of {app}" if app and self.template.source == "code" else self.template.source


def methods_known(
    servers: Sequence[ServerView], templates: Sequence[RecurringJob]
) -> Mapping[str, bool | None]:
    """Of each template by id, whether a live server knows its method; None: no server is alive."""
    live = [view.info for view in servers if view.alive]
    return {each.id: any(info.knows(each.method) for info in live) if live else None for each in templates}


def words_of(template: RecurringJob) -> str | None:
    """What its schedule means; None: it cannot be read, and is disabled when it is due."""
    try:
        return template.schedule.words
    except ConfigurationError:
        return None


def trouble_of(template: RecurringJob, servers: Sequence[ServerView]) -> str | None:
    """Why it does not fire. Nothing is said while no server is alive."""
    if template.disabled_reason is not None:
        return f"was disabled: {template.disabled_reason}"
    live = [view.info for view in servers if view.alive]
    if template.enabled and live and not any(info.fires(template.method) for info in live):
        return f"does not fire: no live server knows its method {template.method}"
    return None


def view_templates(
    storage: Storage,
    templates: Sequence[RecurringJob],
    servers: Sequence[ServerView],
    *,
    now: datetime,
    firings: int,
    jobs: int,
) -> list[TemplateView]:
    """These templates, each with up to so many firings and jobs. One statement for all of them."""
    newest = storage.newest_jobs_of([each.id for each in templates], limit=jobs) if templates else {}
    return [
        _view(
            each,
            jobs=newest[each.id],
            trouble=trouble_of(each, servers),
            now=now,
            firings=firings,
        )
        for each in templates
    ]


def get_template(storage: Storage, recurring_id: str) -> RecurringJob:
    """Raises `RecurringNotFound`."""
    template = storage.get_recurring_job(recurring_id)
    if template is None:
        raise template_not_found(recurring_id)
    return template


def run_template(storage: Storage, recurring_id: str) -> str:
    """Enqueue one job of it now, whatever its schedule says; the job's id. Raises `RecurringNotFound`."""
    job_id = storage.run_recurring_now(recurring_id)
    if job_id is None:
        raise template_not_found(recurring_id)
    return job_id


def enable_template(storage: Storage, recurring_id: str) -> Firing:
    """Switch it on, from its next firing after now, which is given. One that is on stays as it is, and its
    firing is the one that is stored, also when that is due. Raises `RecurringNotFound`, and
    `ConfigurationError` for one that never fires again."""
    template, now = get_template(storage, recurring_id), storage.now()
    if template.enabled and template.next_run_at is not None:
        return _firings_of(template.schedule, template.next_run_at, now=now, count=1)[0]
    upcoming = next_firings(template.schedule, now=now, count=1)
    if not upcoming:
        raise ConfigurationError(
            f"The cron expression {template.cron!r} of {recurring_id!r} never fires again; "
            "replace it with `qml-mp recurring add`."
        )
    if not storage.set_recurring_enabled(recurring_id, True, next_run_at=upcoming[0].at, of=template):
        return enable_template(storage, recurring_id)  # it was removed, replaced or enabled since it was read
    return upcoming[0]


def disable_template(storage: Storage, recurring_id: str) -> None:
    """Switch it off; it stays. Raises `RecurringNotFound`."""
    if not storage.set_recurring_enabled(recurring_id, False, next_run_at=None):
        raise template_not_found(recurring_id)


def remove_template(storage: Storage, recurring_id: str) -> RecurringJob:
    """Remove it, and give what it was; jobs already enqueued from it stay. Raises `RecurringNotFound`."""
    template = get_template(storage, recurring_id)
    if not storage.remove_recurring_job(recurring_id):
        raise template_not_found(recurring_id)
    return template


def template_not_found(recurring_id: str) -> RecurringNotFound:
    return RecurringNotFound(
        f"No recurring template has the id {recurring_id!r}; `qml-mp recurring list` shows them."
    )


def _view(
    template: RecurringJob, *, jobs: Sequence[TemplateJob], trouble: str | None, now: datetime, firings: int
) -> TemplateView:
    words, found = None, list[Firing]()
    try:
        schedule = template.schedule
        words = schedule.words
        if template.enabled and template.next_run_at is not None:
            found = _firings_of(schedule, template.next_run_at, now=now, count=firings)
    except ConfigurationError:
        pass  # another program has written it
    return TemplateView(template=template, words=words, firings=found, jobs=jobs, trouble=trouble)


def _firings_of(schedule: CronSchedule, stored: datetime, *, now: datetime, count: int) -> list[Firing]:
    """Beginning with the one that is stored, which may be due already."""
    first = firing_at(schedule, stored, before=min(now, stored))
    return [first, *next_firings(schedule, now=max(now, stored), count=count - 1)]
