"""Client: `qml-mp migrate`: the storage's schema brought up to this version of the code."""

from __future__ import annotations

import click

from qml_mp.cli.asking import called, likely_servers
from qml_mp.cli.output import json_option, note, print_json, say
from qml_mp.cli.session import Command, Session, pass_session


@click.command(cls=Command)
@json_option
@pass_session
def migrate(session: Session, as_json: bool) -> None:
    """Bring the storage's schema up to this version, under a lock; harmless when it is.

    Stop the servers before: those that still run have the older version, and are named.
    """
    storage = session.storage()
    applied = storage.migrate()
    version = storage.schema_version()
    if applied and applied[0] > 1:  # a connection that is open goes on, so what runs may not notice for hours
        for server in likely_servers(storage):
            note(f"{called(server)} still runs, with code for an older schema: stop it, and start it anew")
    if as_json:
        print_json({"applied": list(applied), "version": version})
        return
    for number in applied:
        click.echo(f"applied migration {number}")
    say(f"{storage.display_url} has schema version {version}")
