"""Client: `qml-mp check`: whether a server of this code could start here, asked before a deploy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import click

from qml_mp.child.source import AppFacts, NamedProgram
from qml_mp.cli.app_import import take_over_settings
from qml_mp.cli.failure import exit_code_of, in_words
from qml_mp.cli.output import json_option, print_json, say, stdout_for_data, unheard
from qml_mp.cli.session import Command, Session, pass_session
from qml_mp.core.cron import is_known_zone, zone_trouble
from qml_mp.core.payload import JsonValue
from qml_mp.embedding.extras import check_served
from qml_mp.embedding.supervise import check_copyable
from qml_mp.errors import ConfigurationError, QmlError
from qml_mp.printable import printable_lines
from qml_mp.settings import ServerConfig
from qml_mp.sources import load_boot_timeout, load_config, load_url
from qml_mp.storage.memory_folder import MEMORY_URL
from qml_mp.storage.store import Storage
from qml_mp.supervisor.probe import probe_app
from qml_mp.views.servers import view_servers

_COLOURS = {"ok": "green", "warning": "yellow", "failed": "red"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One thing that was looked at."""

    what: str
    result: str
    text: str
    code: int = 0
    """The exit code that it means; 0 of what is fine, or only worth a look."""

    def to_json(self) -> dict[str, JsonValue]:
        return {"check": self.what, "result": self.result, "text": self.text}


@click.command(cls=Command)
@json_option
@pass_session
def check(session: Session, as_json: bool) -> int:
    """Say whether a server of this app could start here: settings, app, templates, storage, schema, queues.

    Nothing is written. The exit code is that of the first thing that failed, as `start` would have it:
    2, 3, 4 or 5. What is only worth a look is a warning, and 0; so is an app that nobody names, without which
    settings and storage alone are looked at.
    """
    code = 0
    for line in _lines(session):
        code = code or line.code
        with unheard():
            _tell(line, as_json=as_json, verbose=session.verbose)
    return code


def _tell(line: Line, *, as_json: bool, verbose: bool) -> None:
    if as_json:
        print_json(line.to_json())
        return
    click.echo(f"{line.what:<10}{click.style(f'{line.result:<9}', fg=_COLOURS[line.result])} ", nl=False)
    first, *more = printable_lines(line.text) or [""]
    say(first)
    for each in more if verbose else ():
        click.echo(f"  {each}", err=True)


def _lines(session: Session) -> Iterator[Line]:
    facts: AppFacts | None = None
    config: ServerConfig | None = None
    try:
        spec = session.named_app()
        if spec is None:
            yield Line(what="app", result="warning", text="none is named (-A, QML_MP_APP): no server starts")
        else:
            with stdout_for_data():
                facts = probe_app(NamedProgram(spec=spec), timeout=load_boot_timeout(flags={}))
            take_over_settings(facts)  # as `start` does
            yield Line(what="app", result="ok", text=f"{spec} imports. Methods: {_listed(facts.methods)}")
        # Not before: the code may mend what the environment says by itself.
        config = load_config(flags={}, code=None if facts is None else facts.config)
        check_served(config)
        if facts is not None and config.preload:
            check_copyable(NamedProgram(spec=facts.spec), threads=facts.threads)  # as `start` does
        yield Line(what="settings", result="ok", text=f"{config.worker_count} workers")
    except QmlError as error:
        is_setting = isinstance(error, ConfigurationError) and error.field != "app"
        yield _failed("settings" if is_setting else "app", error, session)
    if facts is not None:
        yield from _templates(facts)
    yield from _of_storage(session, facts, config)


def _templates(facts: AppFacts) -> Iterator[Line]:
    """They were parsed when the app declared them, with the zones of this machine."""
    firings = [each.next_run_at for each in facts.recurring if each.next_run_at is not None]
    text = "none"
    if facts.recurring:
        text = f"{len(facts.recurring)} parse{'s' if len(facts.recurring) == 1 else ''}"
    if firings:
        text += f"; the next firing is at {min(firings).isoformat(timespec='seconds')}"
    yield Line(what="templates", result="ok", text=text)
    for each in facts.recurring:
        if not is_known_zone(each.tz):
            yield Line(what="templates", result="warning", text=f"{each.id}: {zone_trouble(each.tz)}")
        elif each.next_run_at is None:
            text = f"{each.id} never fires again: its last firing has passed"
            yield Line(what="templates", result="warning", text=text)
    for template_id, why in facts.misfits.items():
        yield Line(what="templates", result="warning", text=f"{template_id} does not fit its function: {why}")


def _of_storage(session: Session, facts: AppFacts | None, config: ServerConfig | None) -> Iterator[Line]:
    if facts is not None and _is_in_memory(session.url, facts.url):
        text = f"{MEMORY_URL} is made by each start, and its jobs are gone when that server stops"
        yield Line(what="storage", result="warning", text=text)
        return
    try:
        storage = session.storage_at(facts.url) if facts is not None else session.storage(may_import=False)
        if session.doubt is not None:
            text = f"the app's is not known, for it does not import; {storage.display_url} may be another"
            yield Line(what="storage", result="warning", text=text)
        storage.check_rights()  # first: SQLite leaves a log beside a file that it may only read
        version = storage.schema_version()
        if session.doubt is not None and not version:
            return
        yield Line(what="storage", result="ok", text=f"{storage.display_url} answers")
        for caveat in storage.caveats:
            yield Line(what="storage", result="warning", text=caveat)
    except QmlError as error:
        failed = _failed("storage", error, session)
        yield failed if session.doubt is None else replace(failed, result="warning", code=0)
        return
    if not version:
        yield Line(what="schema", result="ok", text="there is none yet; the first start makes it")
        return
    try:
        storage.check_schema()
        yield Line(what="schema", result="ok", text=f"version {version}, as this code needs it")
        yield from _queues(storage, facts, config)
    except QmlError as error:
        yield _failed("schema", error, session)


def _is_in_memory(flag: str | None, code: str | None) -> bool:
    try:
        return load_url(flag=flag, code=code).text.startswith(MEMORY_URL)
    except ConfigurationError:  # told where the storage is opened
        return False


def _queues(storage: Storage, facts: AppFacts | None, config: ServerConfig | None) -> Iterator[Line]:
    """Whether somebody serves what the code and the stored jobs need."""
    if facts is None or config is None:
        return
    own = config.queues if "queues" in config.given else facts.queues
    servers = [view.info for view in view_servers(storage) if view.alive]
    unserved = [
        queue
        for queue in facts.queues
        if own and queue not in own and not any(server.serves(queue) for server in servers)
    ]
    known = set(facts.methods or ()).union(*(server.methods or () for server in servers))
    strange = sorted({each.method for each in storage.list_recurring_jobs() if each.enabled} - known)
    if unserved:
        yield Line(
            what="queues",
            result="warning",
            text=f"jobs for {', '.join(unserved)} would wait: no live server serves it, nor would this one",
        )
    if strange:
        yield Line(
            what="methods",
            result="warning",
            text=f"stored templates want {', '.join(strange)}, which neither this code nor a live server has",
        )
    if not unserved:
        yield Line(what="queues", result="ok", text=f"served would be {', '.join(own) or 'all'}")


def _failed(what: str, error: QmlError, session: Session) -> Line:
    """As `start` would say it; all of what there is to say of it is shown with -v."""
    told = in_words(error, verbose=session.verbose, more=session.more_about(error))
    text = "\n".join([told, *str(error).strip().splitlines()[1:]])
    return Line(what=what, result="failed", text=text, code=exit_code_of(error))


def _listed(names: tuple[str, ...] | None) -> str:
    return ", ".join(names or ()) or "none"
