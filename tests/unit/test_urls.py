"""Tests: where a PostgreSQL URL leads, and what people see of a URL: never a part of a password."""

from __future__ import annotations

import json
import traceback
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qml_mp.errors import ConfigurationError, QmlError
from qml_mp.storage.open import open_storage
from qml_mp.storage.postgres.target import parse_target
from qml_mp.storage.shown_url import shown_url, without_passwords
from qml_mp.views.storage_name import storage_name, without_its_place

PIECE = "Zq7X"  # of a password; no text of ours or of the driver has it
FORMS = (
    "postgresql://u:{}@127.0.0.1:1/db",
    "postgres://u:{}@127.0.0.1:1,localhost:1/db?sslmode=disable",
    "postgresql://u:{}@127.0.0.1:1",
    "postgresql://u:{}@127.0.0.1:1?schema=jobs",
    "postgresql://:{}@127.0.0.1:1/db",
    "postgresql://u:{}",
    "postgresql://u:{}/db",
    "postgresql://127.0.0.1:1/db?user=u&password={}",
    "postgresql://127.0.0.1:1?password={}",
    "postgresql://u@127.0.0.1:1/db?passwor%64={}&schema=jobs",
    "postgresql://u:x@127.0.0.1:1/db?sslpassword={}&sslmode=disable",
    "postgresql:///db?host=127.0.0.1&port=1&password={}",
    "Postgresql://u:{}@127.0.0.1:1/db",
    "postgresql+psycopg://u:{}@127.0.0.1:1/db",
    "postgresql:/u:{}@127.0.0.1:1/db",
    "postgre://u:{}@127.0.0.1:1/db",
    "host=127.0.0.1 port=1 user=u password={} dbname=db",
    "host=127.0.0.1 password='{}'",
    "u:{}@127.0.0.1",
    "sqlite://u:{}@127.0.0.1/db",
    "sqlite:u:{}@127.0.0.1",
    "postgresql+asyncpg://u:{}@127.0.0.1:1/db",
    "postgresql://127.0.0.1:1/db?shcema={}",
)


def passwords() -> st.SearchStrategy[str]:
    """Several pieces with anything between them."""
    between = st.text(st.sampled_from("@:/?#&=%+,;[]()'\"\\ ~é\n\0") | st.characters(codec=None), max_size=3)
    return st.lists(between, min_size=1, max_size=4).map(lambda texts: PIECE + PIECE.join(["", *texts, ""]))


def all_that_is_said(url: str) -> str:
    """Everything that opening and using the URL puts before a person."""
    said = [shown_url(url)]
    try:
        storage = open_storage(url)
        said.append(storage.display_url)
        storage.job_counts()
    except QmlError as error:
        said.append("".join(traceback.format_exception(error)))  # with the errors that it came from
        said.append(json.dumps(str(error)))
    return "\n".join(said)


@pytest.mark.fault(85)
@example(form="postgresql://127.0.0.1:1?password={}", password=f"{PIECE}@{PIECE}", quoted=False)
@given(form=st.sampled_from(FORMS), password=passwords(), quoted=st.booleans())
def test_no_part_of_a_password_is_ever_shown(form: str, password: str, quoted: bool) -> None:
    if quoted:
        password = quote(password, safe="", errors="surrogatepass")
    if (
        form.startswith("postgresql://u:{}") and "@" not in form
    ):  # one more makes a host of what follows it, and nobody can tell
        password = password.replace("@", "")

    assert PIECE not in all_that_is_said(form.format(password))


@pytest.mark.fault(85)
@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:secret@host:5432/db", "postgresql://me:***@host:5432/db"),
        ("postgresql://me:S3CR?ET@h/db", "postgresql://me:***@h/db"),
        ("postgresql://me:S3CR@E:T@host/db?sslmode=require", "postgresql://me:***@host/db?sslmode=require"),
        ("postgresql://me:S3CRET/1@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:S3C?R@ET@host/db", "postgresql://***"),
        ("postgresql://me:S3CRET", "postgresql://***"),
        ("postgresql://host:5432?password=S3CR@ET", "postgresql://***"),
        ("postgresql://host/db?user=me&password=S3CRET", "postgresql://host/db?user=me&password=***"),
        ("postgresql://host/db?passwor%64=S3CRET", "postgresql://host/db?password=***"),
        ("postgresql://host/db?password=S3&CRET", "postgresql://host/db?password=***&***"),
        ("postgresql://host/db?password=S3@CRET", "postgresql://host/db?password=***"),
        ("postgresql://host/db?sslpassword=S3CRET&x=1", "postgresql://host/db?sslpassword=***&***"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("postgresql://me%40corp:S3CRET@host/db", "postgresql://me%40corp:***@host/db"),
        ("postgresql:///db", "postgresql:///db"),
        ("postgresql:///db?host=/run/postgresql", "postgresql:///db?host=/run/postgresql"),
        ("postgresql://[::1]:5432,other:5433/db", "postgresql://[::1]:5432,other:5433/db"),
        ("postgresql://h/db?options=-c%20a%3Db", "postgresql://h/db?options=-c%20a%3Db"),
    ],
)
def test_passwords_are_masked_wherever_they_stand(url: str, shown: str) -> None:
    assert shown_url(url) == shown


@pytest.mark.fault(85)
@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("jobs.db", "jobs.db"),
        ("sqlite:jobs.db", "sqlite:jobs.db"),
        ("http://sqlite:S3CRET", "http://***"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("mysql://u:S3CRET@h/db", "mysql://***"),
        ("mysql://host/db", "mysql://host/db"),
        ("host=h password=S3CRET", "***"),
        ("postgresql:u:S3CRET", "***"),
    ],
)
def test_of_what_is_no_url_of_ours_only_what_is_plain_is_shown(url: str, shown: str) -> None:
    assert shown_url(url) == shown


@pytest.mark.fault(85)
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("No such command 'postgresql://u:S3CR'ET@h/db'.", "No such command 'postgresql://u:***@h/db'."),
        ("extra argument (postgresql://u:S3CR@ET@h)", "extra argument (postgresql://u:***@h)"),
        ("'postgresql://u:S3 CR ET@h/db' is none", "'postgresql://u:***@h/db' is none"),
        ("it is postgresql://u:S3CRET, or is it?", "it is postgresql://***, or is it?"),
        ("no URL: a::b // c", "no URL: a::b // c"),
        ("not 'postgresql://u:12/S3 CRET@h/db'; ask", "not 'postgresql://u:***@h/db'; ask"),
        ("extra argument (postgresql://u:12 S3CRET@h)", "extra argument (postgresql://u:***@h)"),
        ("extra argument (postgresql://u:S3@CR ET@h/db)", "extra argument (postgresql://u:***@h/db)"),
        ("it is postgresql://h:1/db?password=S3 CR@ET", "it is postgresql://h:1/db?password=***"),
        ("it is postgresql://u:S3:CR ET@h/db", "it is postgresql://u:***@h/db"),
        ("'postgresql://u:S3:CR ET@h/db' is none", "'postgresql://u:***@h/db' is none"),
        ("extra argument (postgresql://u:12/my S3CRET@h/db)", "extra argument (postgresql://u:***@h/db)"),
        ("extra argument (postgresql://u:1,S3CRET 2@h)", "extra argument (postgresql://u:***@h)"),
        ("'--x=postgresql://u:1/S3 CRET@h/db' is bad", "'--x=postgresql://u:***@h/db' is bad"),
        ("see postgresql://u:12345?S3 CRET@h/db now", "see postgresql://u:***@h/db now"),
        ("see postgresql://u:***@S3 CRET@h/db now", "see postgresql://u:***@h/db now"),
        ("see postgresql://u: S3CRET://@h/db now", "see postgresql://*** now"),
        ("postgresql://u:S3 CR@h/a and mysql://v:E T@h/b", "postgresql://***"),
    ],
)
def test_a_text_that_quotes_a_url_quotes_it_masked(text: str, shown: str) -> None:
    assert without_passwords(text) == shown


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("postgresql://db:5432/jobs", "PostgreSQL at {} is not available; ask admin@example.com."),
        ("postgresql://[::1]:5432/jobs", "PostgreSQL at {} is not available; ask admin@example.com."),
        ("postgresql://a:5432,b:5433/jobs", "at {}, as user@example.com"),
        ("postgresql://db:5432?schema=jobs", "at {}, as user@example.com"),
        ("postgresql://ada:***@b:5432/x", "Jobs go to postgresql://a/x, and not to {}. Ask ops@example.com."),
    ],
)
def test_a_sentence_behind_a_url_that_is_known_is_left_as_it_is(url: str, sentence: str) -> None:
    text = sentence.format(url)

    assert without_passwords(text, shown=url) == text


@pytest.mark.fault(85)
def test_what_only_begins_as_a_url_that_is_known_is_masked() -> None:
    text = "see postgresql://db:5432/jobs?password=S3CRET and postgresql://db: S3CRET@h"

    assert without_passwords(text, shown="postgresql://db:5432/jobs") == "see postgresql://***"


def test_the_driver_gets_a_password_with_a_question_mark_as_it_was_written() -> None:
    target = parse_target("postgresql://me:S3CR?ET@host/db?schema=jobs")

    assert target.conninfo == "postgresql://me:S3CR?ET@host/db"
    assert target.schema == "jobs"


def test_the_schema_is_taken_out_of_what_libpq_gets_and_kept_in_the_url() -> None:
    target = parse_target("postgresql://me@host/db?sslmode=require&schema=jobs&options=-c%20a%3Db")

    assert target.schema == "jobs"
    assert target.conninfo == "postgresql://me@host/db?sslmode=require&options=-c%20a%3Db"
    assert parse_target(target.url) == target


@pytest.mark.parametrize("name", ['a"b', "a.b", "1a", "", "pg_jobs", "ä", "a" * 57, "a;b", "a%b"])
def test_a_schema_name_that_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="schema name"):
        parse_target("postgresql:///db?schema=" + name.replace("%", "%25"))


def test_a_url_of_another_database_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="postgresql://"):
        parse_target("mysql://me:secret@host/db")


@pytest.mark.parametrize(
    "url", ["postgresql://me:pass@word@host/db", "postgresql://me:pass", "postgresql://h\0/db"]
)
def test_a_url_that_leads_nowhere_is_refused_with_the_way_to_write_it(url: str) -> None:
    with pytest.raises(ConfigurationError, match="@ is %40"):
        parse_target(url)


def test_a_target_that_is_printed_shows_no_password() -> None:
    assert "secret" not in repr(parse_target("postgresql://me:secret@host/db"))


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("sqlite:////srv/shop/jobs.db", "jobs.db (sqlite)"),
        ("sqlite:///jobs.db", "jobs.db (sqlite)"),
        ("memory://", "in memory (memory)"),
        ("postgresql://shop:***@db.example:5432/jobs?schema=qml", "jobs on db.example:5432 (postgresql)"),
        ("postgresql:///jobs", "jobs on this machine (postgresql)"),
        ("postgresql://", "the database on this machine (postgresql)"),
    ],
)
def test_a_storage_is_called_by_what_says_nothing_of_its_place(url: str, name: str) -> None:
    assert storage_name(url) == name


def test_a_sentence_about_a_file_names_the_file_and_not_its_folder() -> None:
    url = "sqlite:////srv/shop/jobs.db"
    sentence = "sqlite:////srv/shop/jobs.db does not answer: /srv/shop/jobs.db-wal cannot be opened."

    shown = without_its_place(sentence, url)

    assert shown == "jobs.db (sqlite) does not answer: jobs.db-wal cannot be opened."


def test_a_sentence_about_a_server_does_not_name_who_signs_in() -> None:
    url = "postgresql://shop@db.example/jobs"

    shown = without_its_place(f"{url} does not answer.", url)

    assert shown == "jobs on db.example (postgresql) does not answer."
