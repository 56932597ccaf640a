"""Client: an order and the job that belongs to it, committed together or not at all.

The caller's connection must lead to the database that the app's URL names; any other is refused.
Run it: python examples/transactional.py
"""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing
from typing import TYPE_CHECKING

from qml_mp import BackgroundJobServer, JobHandle, QmlApp, ServerConfig

if TYPE_CHECKING:
    import psycopg

app = QmlApp()

TABLES = """
CREATE TABLE orders (article TEXT NOT NULL);
CREATE TABLE stock (article TEXT PRIMARY KEY, pieces INTEGER NOT NULL CHECK (pieces >= 0));
INSERT INTO stock VALUES ('lamp', 1);
"""


@app.job()
def print_invoice(article: str) -> str:
    return f"invoice for one {article}"


def order(connection: sqlite3.Connection, article: str) -> JobHandle:
    """Sell a piece, with SQLite. Out of stock: `IntegrityError`, and neither order nor job was made."""
    with connection:  # commits at its end, or rolls back
        connection.execute("INSERT INTO orders VALUES (?)", (article,))
        handle = print_invoice.using(conn=connection).enqueue(article)
        connection.execute("UPDATE stock SET pieces = pieces - 1 WHERE article = ?", (article,))
    return handle


def order_in_postgres(connection: psycopg.Connection, article: str) -> JobHandle:
    """The same with PostgreSQL."""
    with connection.transaction():
        connection.execute("INSERT INTO orders VALUES (%s)", (article,))
        handle = print_invoice.using(conn=connection).enqueue(article)
        connection.execute("UPDATE stock SET pieces = pieces - 1 WHERE article = %s", (article,))
    return handle


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        app.attach(f"sqlite:///{folder}/shop.db")
        app.storage.migrate()  # once, as `qml-mp migrate` does: a transaction that is open cannot do it
        with closing(sqlite3.connect(f"{folder}/shop.db")) as connection:
            connection.executescript(TABLES)
            handle = order(connection, "lamp")
            try:
                order(connection, "lamp")
            except sqlite3.IntegrityError:
                print("out of stock")
        with BackgroundJobServer(ServerConfig(worker_count=1), app.storage, app.program):
            print(handle.wait(timeout="1m"))
        app.close()


if __name__ == "__main__":
    main()
