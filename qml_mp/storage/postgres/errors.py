"""Every process: psycopg's errors turned into ours, with what to do next."""

from __future__ import annotations

import re

import psycopg

from qml_mp.errors import SchemaMismatch, StorageError, StorageUnavailable, StorageUnreachable
from qml_mp.storage.postgres.target import Target

# Classes (two characters) and single codes of Appendix A of the PostgreSQL manual after which the
# same operation can succeed later. Everything else is a fault of the statement or of its data.
_TRY_LATER = (
    "08",     # the connection is lost
    "53",     # out of connections (53300), disk (53100) or memory
    "57P",    # shutting down, crashed or starting up
    "57014",  # statement_timeout
    "55P03",  # lock_timeout
    "40001", "40P01",  # serialization failure, deadlock
    "25006",  # read-only: a standby, or default_transaction_read_only
    "25P03",  # idle_in_transaction_session_timeout
    "58",     # the server's own disk failed it
)  # fmt: skip
# Of these: what every other operation would meet too. The rest concerns the one statement alone.
_UNREACHABLE = ("08", "53300", "57P")
_HELD_UP = ("55P03", "40001", "40P01")
_TOO_LONG = "57014"
_READ_ONLY = "25006"
_OUT_OF_STEP = (
    "26000",  # a prepared statement that the server does not have
    "0A000",  # "cached plan must not change result type": the tables were altered
)
_NO_SUCH_TABLE = ("42P01", "3F000")  # table, schema
_NOT_AS_NEEDED = (*_NO_SUCH_TABLE, "42703", "42883")  # column, function
_NO_PRIVILEGE = "42501"

# A failed connection has no SQLSTATE, so it is told by its words; other languages are taken for an outage.
_REFUSALS = (
    (r"no password supplied", "Put the password into the URL (or into PGPASSWORD or ~/.pgpass)."),
    (r"authentication failed|failed for user", "Put the right user and password into the URL."),
    (r"no pg_hba.conf entry|pg_hba.conf rejects", "Let this user and host in by the server's pg_hba.conf."),
    (r"role .* does not exist", "Put an existing role into the URL, or create this one (createuser)."),
    (r"is not permitted to log in", "Give the role the right: ALTER ROLE … LOGIN."),
    (r"database .* does not exist", "Put an existing database into the URL, or create this one (createdb)."),
    (r"permission denied for database", "Give the role the right: GRANT CONNECT ON DATABASE …"),
    (r"not currently accepting connections", "Put another database into the URL, or open this one."),
    (
        r"certificate verify failed|certificate file|server certificate for|support SSL|invalid ssl",
        "Correct the ssl parameters of the URL or the server.",
    ),
)
_REACH = "See that the server runs and can be reached from here; trying again can help."
NO_WRITES = "It is a standby, or default_transaction_read_only is on. Name the primary, or turn that off."
"""What to do about a server that takes no writes."""
_LOCKED = "Another session keeps it waiting (pg_stat_activity shows which); trying again can help."
_TOO_MUCH = (
    "It had more to do than a statement has time for, or the server is overloaded; asking for less, or "
    "trying again, can help."
)
_CROWDED = (
    "All its connections are in use: end some, raise max_connections or the limit of the role, database or "
    "pooler, or run fewer workers."
)
_CROWDED_WORDS = r"too many (clients|connections)|connection slots are reserved|no more connections allowed"

_ADVICE = {
    **dict.fromkeys(_HELD_UP, _LOCKED),
    _TOO_LONG: _TOO_MUCH,
    _READ_ONLY: NO_WRITES,
    "25P03": "The process lay still amid a transaction for too long; trying again can help.",
    "53": "It has run out of something that it needs: its own log says more.",
    "53100": "Its disk is full: make room there.",
    "53200": "It is out of memory: give it more, or have fewer sessions use it.",
    "53300": _CROWDED,
    "58": "Its own disk or system has failed it: its own log says more.",
}
"""By code, else by class."""


class NoReply(psycopg.OperationalError):
    """The server did not reply within the limit."""


def is_out_of_step(error: psycopg.Error) -> bool:
    """Whether the server refused a statement, before doing anything, because it does not know it as this
    connection does."""
    return error.sqlstate in _OUT_OF_STEP


def has_missed_table(error: psycopg.Error) -> bool:
    """Whether a table of ours was not there; those of a user's trigger are told with a context."""
    return error.sqlstate in _NO_SUCH_TABLE and error.diag.context is None


def is_cured_by_another_connection(error: psycopg.Error) -> bool:
    """Whether the fault is that of the one connection, and not a limit that the statement ran into."""
    if not error.sqlstate:
        return _is_about_the_connection(error) and not isinstance(error, NoReply)
    return is_out_of_step(error) or error.sqlstate.startswith(_UNREACHABLE)


def translate(error: psycopg.Error, *, what: str, target: Target) -> StorageError:
    """The error to raise instead. `what` is the operation in words, e.g. "claiming a job"."""
    code = error.sqlstate or ""
    said = _first_line(error)
    where = target.display_url
    unreachable = code.startswith(_UNREACHABLE) or (not code and _is_about_the_connection(error))
    if unreachable or code.startswith(_TRY_LATER):
        kind = StorageUnreachable if unreachable else StorageUnavailable
        problem = kind(f"PostgreSQL at {where} is not available for {what}: {said} {_advice(error)}")
        problem.took_too_long = code == _TOO_LONG
        return problem
    if is_out_of_step(error):
        return StorageUnavailable(
            f"The connection to PostgreSQL at {where} was out of step with the server at {what}: {said} "
            "It is made anew; try again. If this comes again, a pooler stands between that gives each "
            "transaction another session: do not say pooler=session in the URL."
        )
    if code in _NOT_AS_NEEDED:
        return SchemaMismatch(
            f"The schema {target.schema!r} at {where} is not what this version of qml-mp needs: {said} "
            "Run `qml-mp migrate` with this URL first."
        )
    if code == _NO_PRIVILEGE:
        return StorageError(
            f"PostgreSQL at {where} does not permit {what}: {said} Grant the role the rights on schema "
            f"{target.schema!r}, or use the URL of a role that has them."
        )
    return StorageError(f"PostgreSQL at {where} failed at {what}: {said} (SQLSTATE {code or 'none'})")


def refuses_values(error: BaseException | None) -> bool:
    """Whether the error (the driver's, or ours made of it) is about the values or a constraint of the rows:
    the same ones will be refused again, and others may be taken."""
    if isinstance(error, StorageError):
        error = error.__cause__
    return isinstance(error, psycopg.Error) and (error.sqlstate or "").startswith(("22", "23"))


def refuses_rows(error: BaseException | None) -> bool:
    """Whether a constraint, or a trigger or view of the user's, refuses the rows: others may be taken."""
    if isinstance(error, StorageError):
        error = error.__cause__
    is_users = isinstance(error, psycopg.Error) and (error.sqlstate or "").startswith(("44", "45", "P0"))
    return is_users or refuses_values(error)


def could_not_connect(error: psycopg.Error, *, target: Target) -> StorageError:
    """The error to raise when no connection could be made. A refused login is an outage to a program that
    runs, which may outlive a changed password; to a person it says what to change."""
    refusal = next((hint for words, hint in _REFUSALS if re.search(words, str(error))), None)
    if error.sqlstate or (refusal is None and target.is_plain):
        return translate(error, what="connecting", target=target)
    # The driver's words quote parts of the URL.
    said = f": {_first_line(error)}" if target.is_plain else "."
    if refusal is None:
        return StorageUnreachable(
            f"PostgreSQL at {target.display_url} is not available{said} {_advice(error)}"
        )
    return StorageUnreachable(
        f"PostgreSQL at {target.display_url} refuses the connection{said} {refusal} "
        "Until this is changed, every try will fail."
    )


def _advice(error: psycopg.Error) -> str:
    """What to do about an outage."""
    code = error.sqlstate or ""
    if not code and re.search(_CROWDED_WORDS, str(error)):
        return _CROWDED
    return _ADVICE.get(code) or _ADVICE.get(code[:2], _REACH)


def _is_about_the_connection(error: psycopg.Error) -> bool:
    return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)


def _first_line(error: psycopg.Error) -> str:
    text = error.diag.message_primary or str(error) or type(error).__name__
    line = " ".join(text.split())
    return line if line.endswith(".") else f"{line}."
