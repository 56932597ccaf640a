"""Client: `qml-mp audit`: what people have asked of servers and changed."""

from __future__ import annotations

from collections.abc import Sequence

import click

from qml_mp.cli.fitting import fitted, terminal_width
from qml_mp.cli.output import cell_text, json_option, local_time, note, print_json, print_table, short
from qml_mp.cli.session import Command, Session, pass_session
from qml_mp.core.acts import Act


@click.command(cls=Command)
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many.")
@click.option("--after", metavar="ID", help="Go on after this one, which the page before names on stderr.")
@json_option
@pass_session
def audit(session: Session, limit: int, after: str | None, as_json: bool) -> None:
    """List what was asked of servers and changed, newest first: when, by whom, from where, what came of it.

    It is kept for `audit_ttl`, 30 days if that is not set.
    """
    page = session.existing_storage().list_acts(limit=limit, after=after)
    if as_json:
        for act in page.acts:
            print_json(act.to_json())
    else:
        _print(page.acts)
    if page.next_cursor is not None:
        note(f"there are more; go on with --after {page.next_cursor}")


def _print(acts: Sequence[Act]) -> None:
    columns: dict[str, Sequence[object]] = {
        "WHEN": [local_time(act.asked_at) for act in acts],
        "WHO": [act.by.who for act in acts],
        "FROM": [act.by.where for act in acts],
        "WHAT": [act.what for act in acts],
        "OF": [short(act.subject, 60) for act in acts],
        "STATE": [str(act.state) for act in acts],
        "TOLD": [short(act.in_words.splitlines()[0], 80) for act in acts],
    }
    headers, rows = fitted(
        columns, width=terminal_width(), drop=("FROM", "OF", "STATE"),
        shrink={"TOLD": 12, "WHO": 10, "WHAT": 8},
    )  # fmt: skip
    below = None if "OF" in headers else [f"  {cell_text(subject)}" for subject in columns["OF"]]
    print_table(headers, rows, below=below)
