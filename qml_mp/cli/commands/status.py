"""Client: `qml-mp status`: the whole system at a glance."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import click

from qml_mp.cli.commands.monitor import print_servers, print_workers
from qml_mp.cli.commands.queues import print_queues
from qml_mp.cli.fitting import terminal_width
from qml_mp.cli.output import coloured, json_option, print_json, say, say_in_lines
from qml_mp.cli.session import Command, Session, pass_session
from qml_mp.cli.text_width import width_of
from qml_mp.cli.watching import show_once_or_watch, watch_option
from qml_mp.views.queues import up_to
from qml_mp.views.snapshot import Counting, Snapshot, look
from qml_mp.views.waiting import waiting_in_words, waiting_to_json, without_a_server


@click.command(cls=Command)
@watch_option
@json_option
@pass_session
def status(session: Session, watch: timedelta | None, as_json: bool) -> None:
    """Show jobs by state, queues, servers and their workers, and what waits for no server."""
    storage = session.existing_storage()
    counting = Counting()

    def show() -> None:
        seen = look(storage, counting)
        if as_json:
            print_json(_to_json(seen))
        else:
            _print(storage.display_url, seen)

    show_once_or_watch(show, watch, as_json=as_json)


def _to_json(seen: Snapshot) -> dict[str, object]:
    waiting = without_a_server(seen.methods, seen.servers)
    return {
        "states": seen.counts,
        "queues": [queue.to_json() for queue in seen.queues],
        "servers": [server.to_json() for server in seen.servers],
        "waiting_methods": [waiting_to_json(line) for line in waiting],
        **({} if seen.most is None else {"counted_up_to": seen.most}),
    }


def _in_lines(parts: Sequence[str]) -> list[str]:
    """Side by side, in as many lines as the terminal's width makes of them."""
    width = terminal_width()
    lines = [parts[0]]
    for part in parts[1:]:
        longer = f"{lines[-1]}  {part}"
        if width is None or width_of(click.unstyle(longer)) <= width:
            lines[-1] = longer
        else:
            lines.append(part)
    return lines


def _print(url: str, seen: Snapshot) -> None:
    say(url)
    for line in _in_lines(
        [f"{coloured(state)} {up_to(count, seen.most)}" for state, count in seen.counts.items()]
    ):
        click.echo(line)
    held = sum(queue.stats.held for queue in seen.queues)
    if held:
        say(f"of the processing ones, workers hold {held} that they have not begun")
    if seen.queues:
        click.echo()
        print_queues(seen.queues, most=seen.most)
    if seen.servers:
        click.echo()
        print_servers(seen.servers)
    waiting = without_a_server(seen.methods, seen.servers)
    for line in waiting_in_words(seen.methods, waiting, seen.servers, most=seen.most):
        say_in_lines(line)
    rows = [(server.info.name, worker) for server in seen.servers for worker in server.workers]
    if rows:
        click.echo()
        print_workers(rows)
