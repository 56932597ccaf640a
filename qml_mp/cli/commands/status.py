"""Client: `qml-mp status`: the whole system at a glance."""

from __future__ import annotations

import click

from qml_mp.cli.commands.monitor import print_servers, print_workers
from qml_mp.cli.commands.queues import print_queues, view_queues
from qml_mp.cli.output import coloured, json_option, print_json, say
from qml_mp.cli.session import Command, Session, pass_session
from qml_mp.cli.snapshot import view_servers
from qml_mp.cli.waiting import waiting_in_words, waiting_to_json, without_a_server


@click.command(cls=Command)
@json_option
@pass_session
def status(session: Session, as_json: bool) -> None:
    """Show jobs by state, queues, servers and their workers."""
    storage = session.existing_storage()
    counts = {str(state): count for state, count in storage.job_counts().items()}
    queues = view_queues(storage)
    servers = view_servers(storage)
    waiting = without_a_server(storage.method_stats(), servers)
    if as_json:
        print_json(
            {
                "states": counts,
                "queues": [queue.to_json() for queue in queues],
                "servers": [server.to_json() for server in servers],
                "waiting_methods": [waiting_to_json(line) for line in waiting],
            }
        )
        return
    say(storage.display_url)
    click.echo("  ".join(f"{coloured(state)} {count}" for state, count in counts.items()))
    held = sum(queue.stats.held for queue in queues)
    if held:
        say(f"of the processing ones, workers hold {held} that they have not begun")
    if queues:
        click.echo()
        print_queues(queues)
    if servers:
        click.echo()
        print_servers(servers)
    for line in waiting_in_words(waiting, servers):
        say(line)
    rows = [(server.info.name, worker) for server in servers for worker in server.workers]
    if rows:
        click.echo()
        print_workers(rows)
