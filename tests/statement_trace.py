"""Tests: `python -m tests.statement_trace ARGUMENTS`: the command `qml-mp`, all of whose processes write the
statements that they send to storage into the folder `$QML_MP_TRACE`, a file for each connection.

The drivers themselves tell: SQLite by its trace callback, libpq by its trace of the protocol.
"""

from __future__ import annotations

import os
import re
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from psycopg import pq

from qml_mp.cli.main import main as run
from qml_mp.storage.postgres import connection as postgres_connection
from qml_mp.storage.postgres import waker as postgres_waker
from qml_mp.storage.postgres.link import Link, open_link
from qml_mp.storage.sqlite import connection as sqlite_connection
from qml_mp.storage.sqlite.opening import connect

TRACE = "QML_MP_TRACE"
# Of libpq: "F" is what the client sends; then come length, kind, and what belongs to it, line breaks and all.
_SENT = re.compile(
    r"""^F\t\d+\t(?:
        Query\t\ "(?P<query>.*?)"\n(?=[FB]\t|\Z)
        | Parse\t\ "(?P<name>\w*)"\ "(?P<text>.*?)"\ \d
        | Bind\t\ "\w*"\ "(?P<bound>\w*)"
        | (?P<execute>Execute)\t )""",
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)


def statements(folder: Path) -> dict[int, list[str]]:
    """All that were sent so far by each process, of each connection in its order."""
    sent: dict[int, list[str]] = {}
    for file in sorted(folder.iterdir()):
        sent.setdefault(int(file.suffix[1:]), []).extend(_statements_in(file))
    return sent


def _statements_in(file: Path) -> Iterator[str]:
    prepared: dict[str, str] = {}
    bound = ""
    for message in _SENT.finditer(file.read_text(errors="replace")):
        match message.groupdict():
            case {"query": str(text)}:
                yield text
            case {"name": str(name), "text": str(text)}:
                prepared[name] = text
            case {"bound": str(name)}:
                bound = prepared[name]
            case _:
                yield bound


def _new_file(folder: Path) -> int:
    """A descriptor, which stays open as long as the process."""
    descriptor, _ = tempfile.mkstemp(dir=folder, suffix=f".{os.getpid()}")
    return descriptor


def main() -> None:
    """Run the command."""
    folder = Path(os.environ[TRACE])

    def traced_connect(path: str, *, busy_timeout_s: float) -> sqlite3.Connection:
        connection = connect(path, busy_timeout_s=busy_timeout_s)
        fd = _new_file(folder)

        def write(text: str) -> None:
            os.write(fd, f'F\t0\tQuery\t "{" ".join(text.split())}"\n'.encode())

        connection.set_trace_callback(write)
        return connection

    def traced_link(*arguments: Any, **options: Any) -> Link:
        link = open_link(*arguments, **options)
        link.pgconn.trace(_new_file(folder))
        link.pgconn.set_trace_flags(pq.Trace.SUPPRESS_TIMESTAMPS)
        return link

    sqlite_connection.connect = traced_connect  # type: ignore[attr-defined]
    for module in (postgres_connection, postgres_waker):
        module.open_link = traced_link  # type: ignore[attr-defined]
    run()


if __name__ == "__main__":
    main()
