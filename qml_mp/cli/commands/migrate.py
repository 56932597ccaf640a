"""Client: `qml-mp migrate`: the storage's schema brought up to this version of the code."""

from __future__ import annotations

import click

from qml_mp.cli.output import json_option, print_json, say
from qml_mp.cli.session import Command, Session, pass_session


@click.command(cls=Command)
@json_option
@pass_session
def migrate(session: Session, as_json: bool) -> None:
    """Bring the storage's schema up to this version, under a lock; harmless when it is."""
    storage = session.storage()
    applied = storage.migrate()
    version = storage.schema_version()
    if as_json:
        print_json({"applied": list(applied), "version": version})
        return
    for number in applied:
        click.echo(f"applied migration {number}")
    say(f"{storage.display_url} has schema version {version}")
