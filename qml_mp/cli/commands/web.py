"""Web process: `qml-mp web`: the page over a storage; no app is imported."""

from __future__ import annotations

from pathlib import Path

import click

from qml_mp.cli.arguments import with_options
from qml_mp.cli.output import note
from qml_mp.cli.session import Command, Session, pass_session
from qml_mp.errors import ConfigurationError
from qml_mp.setting_kinds import Hosts, check_reach
from qml_mp.sources import load_web_token

_OPTIONS = (
    click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on."),
    click.option("--port", type=click.IntRange(0, 65535), default=8765, show_default=True,
                 help="0: any that is free."),
    click.option("--token-file", type=click.Path(dir_okay=False, path_type=Path),
                 help="People sign in with the token that is this file's one line (else $QML_MP_WEB_TOKEN)."),
    click.option("--auth-file", type=click.Path(dir_okay=False, path_type=Path),
                 help="People sign in with the user and password in this file of one line: user:password."),
    click.option("--read-only", is_flag=True, help="Nothing can be changed by the page."),
    click.option("--hide", multiple=True, metavar="KEY",
                 help="Mask values under such keys, too, besides password, token and secret."),
    click.option("--allow-host", multiple=True, metavar="NAME",
                 help="A name under which the page is reached."),
)  # fmt: skip


@click.command(cls=Command)
@with_options(*_OPTIONS)
@pass_session
def web(
    session: Session,
    host: str,
    port: int,
    token_file: Path | None,
    auth_file: Path | None,
    read_only: bool,
    hide: tuple[str, ...],
    allow_host: tuple[str, ...],
) -> None:
    """Show what is there on a page, and change it, in a browser.

    It needs the storage alone: where the app's code does not say plainly what its URL is, give --url or set
    QML_MP_URL. Beyond this machine it listens only when people have to sign in.
    """
    from qml_mp.web import HIDDEN, check_extra

    check_extra("`qml-mp web`")
    from qml_mp.web.assembly import assemble
    from qml_mp.web.serving import Address, serve, url_of
    from qml_mp.web.sign_in import Auth

    auth = Auth.of(_auth_argument(token_file, auth_file))
    ways = "a token (QML_MP_WEB_TOKEN, or --token-file) or a user and password (--auth-file)"
    check_reach(host, has_auth=auth.is_set, ways=ways)
    names = Hosts().check(allow_host, "--allow-host")
    storage = session.existing_storage(may_import=False)
    if session.doubt is not None:
        note(f"{session.doubt} The page shows {storage.display_url}.")
    page = assemble(storage, auth=auth, read_only=read_only, hide=(*HIDDEN, *hide), hosts=(host, *names))
    with Address(host=host, port=port).bind(option="--port") as listening:
        serve(
            page, listening, when_ready=lambda: note(f"the page is at {url_of(listening)} (Ctrl-C ends it)")
        )


def _auth_argument(token_file: Path | None, auth_file: Path | None) -> str | tuple[str, str] | None:
    if token_file is not None and auth_file is not None:
        raise click.UsageError("Give either --token-file or --auth-file.")
    if auth_file is not None:
        user, colon, password = _line_of(auth_file, "user:password").partition(":")
        if not (user and colon and password):
            raise ConfigurationError(f"{auth_file} must have one line, user:password.")
        return user, password
    return _line_of(token_file, "the token") if token_file is not None else load_web_token()


def _line_of(file: Path, what: str) -> str:
    """All that is in the file, which is one line."""
    try:
        text = file.read_text().strip()
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(f"{file} cannot be read: {error}.") from error
    lines = text.count("\n") + 1
    if lines > 1:
        raise ConfigurationError(f"{file} has {lines} lines; it must have one, {what}.")
    return text
