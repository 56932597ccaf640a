"""Client: `qml-mp recurring`: templates from which jobs are enqueued on a schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import click

from qml_mp.cli.arguments import read_payload, with_options
from qml_mp.cli.asking import note_change
from qml_mp.cli.fitting import fitted, terminal_width
from qml_mp.cli.output import (
    age,
    compact_json,
    json_option,
    local_time,
    note,
    print_json,
    print_table,
    say,
    short,
)
from qml_mp.cli.schedules import schedule_of
from qml_mp.cli.session import Group, Session, pass_session
from qml_mp.core.cron import CronSchedule, read_zone
from qml_mp.core.payload import JsonValue
from qml_mp.core.recurring import OVERLAPS, RecurringJob
from qml_mp.errors import ConfigurationError
from qml_mp.views.firings import next_firings
from qml_mp.views.servers import ServerView, view_servers
from qml_mp.views.templates import (
    disable_template,
    enable_template,
    get_template,
    methods_known,
    remove_template,
    run_template,
    trouble_of,
    words_of,
)

_POLICIES = (
    click.option(
        "--tz",
        default="UTC",
        show_default=True,
        metavar="ZONE",
        help="The zone in whose wall time CRON is meant.",
    ),
    click.option(
        "--misfire",
        default="fire_once",
        show_default=True,
        metavar="POLICY",
        help="Of firings missed while no server ran: fire_once, skip or 'catch_up(N)', the newest N.",
    ),
    click.option(
        "--overlap",
        type=click.Choice(OVERLAPS),
        default="allow",
        show_default=True,
        help="Of a firing while an earlier job has not ended: make another, none, or one once it has ended.",
    ),
    click.option(
        "--jitter", default="0s", show_default=True, metavar="DURATION", help="Start up to so much later."
    ),
)
_WHOLE_ID = 48
"""An id of so many characters is shown in full: it fits in 80, with the next firing."""
_QUOTE_IT = 'Quote an expression of several fields: "0 9 * * MON-FRI".'


@click.group(cls=Group)
def recurring() -> None:
    """Manage the templates of recurring jobs."""


@recurring.command(name="list")
@json_option
@pass_session
def list_templates(session: Session, as_json: bool) -> None:
    """List templates: who made each, its next firing and newest job."""
    storage = session.existing_storage()
    templates = storage.list_recurring_jobs()
    servers = view_servers(storage)
    if as_json:
        known = methods_known(servers, templates)
        for template in templates:
            print_json(_as_json(template, known))
        return
    columns: dict[str, Sequence[object]] = {
        "ID": [template.id for template in templates],
        "CRON": [short(template.cron, 17) for template in templates],
        "SOURCE": [template.source for template in templates],
        "NEXT": [_next(template) for template in templates],
        "LAST JOB": [_last_job(template) for template in templates],
    }
    print_table(
        *fitted(
            columns, width=terminal_width(), drop=("SOURCE", "LAST JOB"), shrink={"CRON": 9, "ID": _WHOLE_ID}
        )
    )
    for template in templates:
        _note_trouble(template, servers)


@recurring.command()
@click.argument("recurring_id", metavar="ID")
@json_option
@pass_session
def show(session: Session, recurring_id: str, as_json: bool) -> None:
    """Show a template: its policies, next firing and newest job."""
    storage = session.existing_storage()
    template = get_template(storage, recurring_id)
    servers = view_servers(storage)
    if as_json:
        print_json(_as_json(template, methods_known(servers, [template])))
        return
    for name, value in (
        ("fires", _meaning(template)),
        ("method", template.method),
        ("payload", compact_json(template.payload)),
        ("queue", f"{template.queue}, priority {template.priority}"),
        ("misfire", template.misfire),
        ("overlap", template.overlap),
        ("jitter", age(template.jitter)),
        ("source", template.source if not template.app else f"{template.source} of {template.app}"),
        ("next", _shown(template.next_run_at, template.tz) if template.enabled else "disabled"),
        (
            "waiting",
            template.waiting_for
            and f"{_shown(template.waiting_for, template.tz)} waits for the end of a job",
        ),
        ("last job", template.last_job_id and f"{_last_job(template)} ({template.last_job_id})"),
    ):
        if value:
            say(f"{name:<10}{value}")
    _note_trouble(template, servers)


@recurring.command()
@click.argument("recurring_id", metavar="ID")
@click.argument("cron")
@click.argument("method")
@click.argument("arguments", nargs=-1, metavar="[KEY=VALUE]…")
@click.option(
    "--payload", metavar="JSON|-", help="The whole payload of each job as JSON; - reads it from stdin."
)
@click.option("-q", "--queue", help="The queue; default: the method's own, else 'default'.")
@click.option(
    "--priority", type=int, metavar="N", help="Higher runs first; default: the method's own, else 0."
)
@with_options(*_POLICIES)
@pass_session
def add(
    session: Session,
    recurring_id: str,
    cron: str,
    method: str,
    arguments: tuple[str, ...],
    payload: str | None,
    queue: str | None,
    priority: int | None,
    **options: Any,  # the zone and the policies
) -> None:
    """Add or replace a template. E.g.: recurring add digest "0 9 * * MON-FRI" send_digest limit=20.

    A VALUE that is JSON is taken as such, any other as text. Quote the expression: a shell puts the names of
    files in place of its stars.
    """
    _check_cron(cron, tz=options["tz"])
    job = session.make_job(method, read_payload(payload, arguments), queue=queue, priority=priority)
    template = RecurringJob.new(
        recurring_id, cron, job.method, job.payload, job.queue, priority=job.priority, **options
    )
    with session.storage_to_write() as storage:
        template = template.from_now_on(storage.now())
        storage.upsert_recurring_job(template)
    note_change(storage, "add template", template.id, said=f"{template.cron} {template.method}")
    stored = get_template(storage, template.id)  # a switch, and the firing of the same schedule, have stayed
    if stored.enabled:
        say(f"{stored.id} fires {stored.schedule.words}, next at {_shown(stored.next_run_at, stored.tz)}")
    else:
        say(f"{stored.id} is disabled; `qml-mp recurring enable {stored.id}` switches it on")


@recurring.command()
@click.argument("recurring_id", metavar="ID")
@pass_session
def remove(session: Session, recurring_id: str) -> None:
    """Remove a template; jobs already enqueued from it stay."""
    storage = session.existing_storage()
    template = remove_template(storage, recurring_id)
    note_change(storage, "remove template", recurring_id)
    say(f"{recurring_id} removed")
    if template.app:
        note(f"the code of {template.app} adds it again at the next start; `recurring disable` keeps it off")


@recurring.command()
@click.argument("recurring_id", metavar="ID")
@pass_session
def run(session: Session, recurring_id: str) -> None:
    """Enqueue one job from a template now and print its id. The schedule stays as it is."""
    storage = session.existing_storage()
    job_id = run_template(storage, recurring_id)
    note_change(storage, "run template", recurring_id, said=f"job {job_id}")
    click.echo(job_id)


@recurring.command()
@click.argument("words", nargs=-1, required=True, metavar="CRON|ID")
@click.option(
    "-n", "--count", type=click.IntRange(1, 1000), default=5, show_default=True, help="How many firings."
)
@click.option("--tz", metavar="ZONE", help="The zone of CRON; default UTC. A template has its own.")
@json_option
@pass_session
def preview(session: Session, words: tuple[str, ...], count: int, tz: str | None, as_json: bool) -> None:
    """Print what an expression or a template means, and when it fires. Quote the expression."""
    if len(words) > 1:
        raise click.UsageError(f"One expression or one template is previewed. {_QUOTE_IT}")
    schedule = schedule_of(session, words[0], tz)
    firings = next_firings(schedule, now=datetime.now(UTC), count=count)
    if not as_json:
        say(schedule.words)
    for firing in firings:
        if as_json:
            local = firing.at.astimezone(ZoneInfo(schedule.tz)).isoformat()
            print_json({"at": firing.at.isoformat(), "local": local, "marks": list(firing.marks)})
        else:
            click.echo(f"{firing.local}{''.join(f'  ({mark})' for mark in firing.marks)}")
    if not firings:
        note("it never fires again")


@recurring.command()
@click.argument("recurring_id", metavar="ID")
@pass_session
def enable(session: Session, recurring_id: str) -> None:
    """Switch a template on, from its next firing after now."""
    storage = session.existing_storage()
    upcoming = enable_template(storage, recurring_id)
    note_change(storage, "enable template", recurring_id)
    say(f"{recurring_id} enabled; it fires next at {upcoming.local}")


@recurring.command()
@click.argument("recurring_id", metavar="ID")
@pass_session
def disable(session: Session, recurring_id: str) -> None:
    """Switch a template off; it stays, and can be enabled again."""
    storage = session.existing_storage()
    disable_template(storage, recurring_id)
    note_change(storage, "disable template", recurring_id)
    say(f"{recurring_id} disabled")


def _as_json(template: RecurringJob, known: Mapping[str, bool | None]) -> Mapping[str, JsonValue]:
    return {**template.to_json(), "words": words_of(template), "method_known": known[template.id]}


def _next(template: RecurringJob) -> str | None:
    """To the minute, so that a line with an id of 18 characters fits in 80."""
    if not template.enabled:
        return "disabled"
    if template.waiting_for is not None:
        return "after this job"
    instant = local_time(template.next_run_at)
    return instant and instant[:-3]


def _last_job(template: RecurringJob) -> str | None:
    """Its state; "gone" once it has been kept for as long as the settings say."""
    return None if template.last_job_id is None else str(template.last_job_state or "gone")


def _note_trouble(template: RecurringJob, servers: Sequence[ServerView]) -> None:
    trouble = trouble_of(template, servers)
    if trouble is not None:
        note(f"{template.id} {trouble}")


def _check_cron(cron: str, *, tz: str) -> None:
    """Raise `ConfigurationError` for what is no expression. Of one that was not quoted, the first field is
    here, and the next one where the method belongs."""
    try:
        CronSchedule(cron, tz=tz)
    except ConfigurationError as error:
        if len(cron.split()) > 1 or cron.startswith("@"):
            raise
        raise ConfigurationError(f"{error} {_QUOTE_IT}") from error


def _meaning(template: RecurringJob) -> str:
    words = words_of(template)
    if words is None:
        return f"{template.cron} in the zone {template.tz}; it cannot be read here"
    return f"{template.cron}: {words}"


def _shown(firing: datetime | None, tz: str) -> str:
    """In the zone; where that is not known, in UTC."""
    if firing is None:
        return "never"
    try:
        return firing.astimezone(read_zone(tz)).strftime("%Y-%m-%d %H:%M:%S %Z")
    except ConfigurationError:
        return f"{firing.astimezone(UTC):%Y-%m-%d %H:%M:%S UTC} (the zone {tz} is not known here)"
