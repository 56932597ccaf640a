"""Tests: the screens of recurring templates over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from qml_mp import host
from qml_mp.core.recurring import RecurringJob
from qml_mp.storage.open import open_storage
from qml_mp.web import dashboard
from tests.storage.test_registry import server
from tests.web.asgi import Visitor
from tests.web.test_jobs_screens import text_of


@pytest.fixture
def shown(file_url: str) -> Iterator[Callable[[str], str]]:
    """What a person reads on a screen of a storage with three templates, and a server for two of them."""
    with closing(open_storage(file_url)) as storage:
        for template in (
            RecurringJob.new("nightly", "30 2 31 3 *", "quick", {"password": "hunter2"}, tz="Europe/Berlin"),
            RecurringJob.new("new-year", "0 0 1 1 *", "quick", queue="slow"),
            RecurringJob.new("nobody", "0 0 0 1 1 * 2098", "nobody-has-this"),
        ):
            storage.upsert_recurring_job(template)
        storage.register_server(replace(server("blue#1"), process=host.identity(), methods=("quick",)))
        visitor = Visitor(dashboard(storage))
        yield lambda path: text_of(visitor.get(path))


def test_firings_are_shown_in_the_zone_and_in_utc_with_what_the_clock_does(
    shown: Callable[[str], str],
) -> None:
    one = shown("/recurring/template?id=nightly")

    assert "at 02:30 on day 31 of the month in March" in one
    firing = "2030-03-31 03:00:00 CEST the wall time that is meant is skipped; it fires at the change"
    assert f"{firing} 2030-03-31 01:00:00 UTC" in one
    assert "hunter2" not in one


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", ["nightly", "new-year", "nobody"]),
        ("text=slow", ["new-year"]),
        ("standing=does+not+fire", ["nobody"]),
        ("source=code", []),
    ],
)
def test_templates_are_chosen_by_fields_that_stand_in_the_url(
    shown: Callable[[str], str], query: str, found: list[str]
) -> None:
    text = shown(f"/recurring?{query}")

    assert [name for name in ("nightly", "new-year", "nobody") if f"{name} " in text] == found
    assert ("No template is like that." in text) is (found == [])
    told = "no live server knows its method nobody-has-this"
    assert (told in text) is ("nobody" in found)


def test_a_template_that_is_not_there_is_said_so(shown: Callable[[str], str]) -> None:
    assert "No recurring template has the id '<none>'" in shown("/recurring/template?id=<none>")
