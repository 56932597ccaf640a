"""What the tests of the page are told by: a page on which something is wrong fails its test."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Page, Route

from qml_mp.core.job import Job
from qml_mp.core.payload import JsonValue
from qml_mp.errors import InvalidJob
from tests.browser.hostile import REFUSED, TEXTS
from tests.browser.watching import PHONE, Watched, watching

ORIGIN = "http://page.example"
CSP = "default-src 'none'; script-src 'self'"


@pytest.fixture
def show(plain_page: Page) -> Iterator[Callable[[str], Watched]]:
    """Shows a page of this text, which nobody else serves."""

    def shown(html: str) -> Watched:
        def answer(route: Route) -> None:
            found = route.request.url == f"{ORIGIN}/"
            route.fulfill(
                status=200 if found else 404,
                headers={"Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": CSP},
                body=f'<!doctype html><html lang="en"><title>t</title><main>{html}</main></html>',
            )

        plain_page.route("**/*", answer)
        watched.open("/")
        return watched

    with watching(plain_page, ORIGIN) as watched:
        yield shown


def test_a_page_without_fault_has_no_problem(show: Callable[[str], Watched]) -> None:
    watched = show("<h1>Jobs</h1><p>none</p>")

    watched.check()
    assert watched.barriers() == []
    assert watched.overflow() == []


@pytest.mark.parametrize(
    ("html", "told"),
    [
        ("<script>window.owned=1</script>", "CSP violation: script-src"),
        ('<p style="color:red">x</p>', "CSP violation: style-src"),
        ("<img src=https://evil.example/x alt=x>", "a request to somebody else|CSP violation: img-src"),
        ("<script src=/nothing.js></script>", "404: GET"),
    ],
)
def test_what_is_wrong_fails_the_test(show: Callable[[str], Watched], html: str, told: str) -> None:
    watched = show(html)

    with pytest.raises(AssertionError, match=told):
        watched.check()


def test_a_script_that_ran_fails_the_test(show: Callable[[str], Watched]) -> None:
    watched = show("x")
    watched.page.evaluate("window.owned = 1")

    with pytest.raises(AssertionError, match="a script ran"):
        watched.check()


def test_what_a_screen_reader_cannot_use_and_what_sticks_out_is_told(show: Callable[[str], Watched]) -> None:
    watched = show(f"<button></button><p>{'x' * 200}</p>")
    watched.page.set_viewport_size(PHONE)

    assert any("button-name" in each for each in watched.barriers())
    assert watched.overflow()


def test_the_table_of_hostile_texts_has_no_doubles_and_is_storable() -> None:
    assert len(set(TEXTS)) == len(TEXTS) == 40
    assert all(1 <= len(text) <= 200 and "\0" not in text and text.encode() for text in TEXTS)
    assert not set(REFUSED) & set(TEXTS)


@pytest.mark.parametrize("text", REFUSED, ids=ascii)
def test_what_no_storage_takes_is_refused_before_it_comes_to_a_page(text: str) -> None:
    payloads: list[JsonValue] = [text, {"text": text}, {text: 1}]

    with pytest.raises(InvalidJob):
        Job.new(text)
    for payload in payloads:
        with pytest.raises(InvalidJob):
            Job.new("work", payload)
