"""Client: `qml-mp health`: whether the server of this machine can do its work, for probes of containers."""

from __future__ import annotations

from collections.abc import Sequence

import click

from qml_mp.cli.output import json_option, print_json, say, unheard
from qml_mp.cli.session import Command, Session, pass_session
from qml_mp.errors import QmlError
from qml_mp.units import n_workers
from qml_mp.views.concerns import name_of, problem_of, ready_workers
from qml_mp.views.liveness import Standing
from qml_mp.views.servers import ServerView, view_servers

_FAILED = 1


@click.command(cls=Command)
@click.option(
    "--server",
    "names",
    multiple=True,
    metavar="NAME|ID|PID",
    help="Which of this machine, or where none is called so, of others. Default: all of this machine.",
)
@json_option
@pass_session
def health(session: Session, names: tuple[str, ...], as_json: bool) -> int:
    """Say whether the servers of this machine can do their work: exit code 0, or 1 and why not.

    A server can when its process runs and was heard lately, a worker of it is ready, and the storage
    answers. The app is not imported: where its code does not say plainly what its URL is, as where its
    import sets QML_MP_URL, that has to be given by --url or QML_MP_URL.
    """
    is_healthy, sentence = _judge(session, names)
    with unheard():
        if as_json:
            print_json({"healthy": is_healthy, "text": sentence})
        else:
            say(f"{'healthy' if is_healthy else 'unhealthy'}: {sentence}")
    return 0 if is_healthy else _FAILED


def _judge(session: Session, names: Sequence[str]) -> tuple[bool, str]:
    try:
        storage = session.existing_storage(may_import=False)
        views = view_servers(storage)
    except QmlError as error:
        more = session.more_about(error)
        return False, " ".join(str(error).split()) + (f" {more}" if more else "")
    chosen = _chosen(views, names)
    if not chosen:
        who = f"is called {' or '.join(names)}" if names else "runs on this machine"
        doubt = "" if session.doubt is None else f". {session.doubt}"
        return False, f"no server {who} ({len(views)} in the registry of {storage.display_url}){doubt}"
    problems = [problem for view in chosen if (problem := problem_of(view)) is not None]
    return not problems, "; ".join(problems or map(_fine, chosen))


def _chosen(views: Sequence[ServerView], names: Sequence[str]) -> list[ServerView]:
    """Those that run here; with names, those of them that are called so, and whatever else is only where
    there are none: all servers of a deployment have one name, and no probe must fail because of another
    machine."""
    here = [view for view in views if view.liveness.standing is Standing.ALIVE]
    if not names:
        return here
    chosen = list[ServerView]()
    for name in names:
        named = [view for view in views if _is_called(view, name)]
        found = [view for view in named if view in here] or named
        chosen += [view for view in found if view not in chosen]
    return chosen


def _is_called(view: ServerView, name: str) -> bool:
    """A pid names nothing that cannot be looked up from here: it is the same in all containers."""
    is_looked_up = view.liveness.standing in (Standing.ALIVE, Standing.DEAD)
    return name in (view.info.id, view.info.name) or (is_looked_up and name == str(view.info.process.pid))


def _fine(view: ServerView) -> str:
    heard = f", {view.liveness.last_heard}" if view.info.heartbeat_enabled else ""
    paused = ", paused" if view.info.paused else ""
    return f"{name_of(view)}: {n_workers(ready_workers(view))}{heard}{paused}" + (
        f". {view.info.trouble}" if view.info.trouble else ""
    )
