"""What a page calls a storage: nothing of it tells where a file lies, or who signs in."""

from __future__ import annotations

import pytest

from qml_mp.views.storage_name import storage_name, without_its_place


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
