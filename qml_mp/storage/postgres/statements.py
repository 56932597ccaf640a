"""Every process, no I/O: queries made ready for one schema."""

from __future__ import annotations

from psycopg import sql

from qml_mp.storage.postgres.target import Target


class Statements:
    """Statements with the schema's quoted name in the place of `{s}`, each rendered once."""

    def __init__(self, target: Target) -> None:
        self._schema = sql.Identifier(target.schema)
        self._rendered: dict[str, bytes] = {}

    def __getitem__(self, template: str) -> bytes:
        statement = self._rendered.get(template)
        if statement is None:
            statement = self._rendered[template] = sql.SQL(template).format(s=self._schema).as_bytes(None)
        return statement
