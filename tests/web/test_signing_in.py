"""Tests: who may see the page, and how they say who they are."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from qml_mp.errors import ConfigurationError
from qml_mp.storage.open import open_storage
from qml_mp.web import dashboard
from qml_mp.web.sign_in import SESSION_S, Auth
from tests.unit.hand_clock import HandClock
from tests.web.asgi import Visitor
from tests.web.serving import Served, sentence_of, served, token_of

TOKEN = "a-token-that-nobody-guesses"
SESSION = Auth.of(TOKEN).cookie("session")


@pytest.fixture
def page(file_url: str, tmp_path: Path) -> Iterator[Served]:
    """One that asks for a token."""
    with served(file_url, tmp_path, env={"QML_MP_WEB_TOKEN": TOKEN}) as page:
        yield page


def sign_in(visitor: httpx.Client, **fields: str) -> httpx.Response:
    form = visitor.get("/sign-in")
    return visitor.post("/sign-in", data={"page_token": token_of(form.text), **fields})


def test_who_has_the_token_gets_where_he_wanted(page: Served) -> None:
    with page.visitor() as visitor:
        sent_away = visitor.get("/?a=1")
        form = visitor.get(sent_away.headers["location"])
        let_in = visitor.post(
            "/sign-in", data={"page_token": token_of(form.text), "secret": TOKEN, "next": "/?a=1"}
        )
        home = visitor.get(let_in.headers["location"])

    assert sent_away.status_code == 303
    assert sent_away.headers["location"] == "/sign-in?next=%2F%3Fa%3D1"
    assert 'name="next" value="/?a=1"' in form.text
    assert let_in.headers["location"] == "/?a=1"
    assert home.status_code == 200
    assert "Sign out" in home.text


def test_who_is_signed_in_already_gets_where_he_wanted(page: Served) -> None:
    """Of a form that he had opened before, or reloads."""
    with page.visitor() as visitor:
        sign_in(visitor, secret=TOKEN)

        to_the_job = visitor.get("/sign-in?next=%2Fjobs%3Fqueue%3Dimages")
        to_nowhere = visitor.get("/sign-in")
        to_another = visitor.get("/sign-in?next=%2F%2Fevil.example%2F")

    led = [answer.headers["location"] for answer in (to_the_job, to_nowhere, to_another)]
    assert led == ["/jobs?queue=images", "/", "/"]


def test_the_cookies_are_for_the_page_alone_and_for_links_to_it(page: Served) -> None:
    with page.visitor() as visitor:
        visit = visitor.get("/sign-in").headers["set-cookie"]
        session = sign_in(visitor, secret=TOKEN).headers["set-cookie"]

    for cookie in (visit, session):
        assert "HttpOnly" in cookie
        assert "samesite=lax" in cookie.lower()
        assert TOKEN not in cookie


def test_behind_https_the_cookies_are_never_sent_without(page: Served) -> None:
    with page.visitor(**{"X-Forwarded-Proto": "https"}) as visitor:
        form = visitor.get("/sign-in")
        visit = form.headers["set-cookie"]
        name, _, rest = visit.partition("=")
        visitor.cookies.set(name, rest.partition(";")[0])
        answer = visitor.post("/sign-in", data={"page_token": token_of(form.text), "secret": TOKEN})

    assert "Secure" in visit
    assert "Secure" in answer.headers["set-cookie"]


def test_what_a_stranger_gets_is_the_same_whatever_the_password(file_url: str) -> None:
    """Else he could try passwords by it at home, where nobody counts them."""

    def given(password: str) -> tuple[str, str]:
        """The name of his cookie, and what the form carries, for the same visit."""
        page = dashboard(storage, auth=("ada", password))
        cookie = Visitor(page).get("/sign-in").headers["set-cookie"].partition("=")[0]
        visitor = Visitor(page)
        visitor.cookies.set(cookie, "a-visit-of-a-stranger")
        return cookie, token_of(visitor.get("/sign-in").text)

    with closing(open_storage(file_url)) as storage:
        assert given("correct horse battery") == given("another long password")


@pytest.mark.parametrize("secret", ["", "wrong", TOKEN + "x", TOKEN.upper(), "\u00e9"])
def test_a_wrong_token_lets_nobody_in(page: Served, secret: str) -> None:
    with page.visitor() as visitor:
        answer = sign_in(visitor, secret=secret)
        home = visitor.get("/")

    assert answer.status_code == 403
    assert "That is not the token." in answer.text
    assert home.status_code == 303


@pytest.mark.parametrize(
    "change",
    [lambda v: v[:-1] + ("1" if v[-1] == "0" else "0"), lambda v: "9" + v, lambda v: v.replace(".", "")],
    ids=["its last digit", "its time", "its form"],
)
def test_a_cookie_that_somebody_made_is_worth_nothing(page: Served, change: object) -> None:
    assert callable(change)
    with page.visitor() as visitor:
        sign_in(visitor, secret=TOKEN)
        cookie = visitor.cookies[SESSION]
        visitor.cookies.delete(SESSION)
        visitor.cookies.set(SESSION, change(cookie))

        assert visitor.get("/").status_code == 303


def test_without_signing_in_nothing_is_shown_and_nothing_changed(page: Served) -> None:
    with page.visitor() as visitor:
        token = token_of(visitor.get("/sign-in").text)
        stream = visitor.get("/events")
        part = visitor.get("/", headers={"HX-Request": "true", "HX-Target": "figures"})
        change = visitor.post("/sign-out", data={"page_token": token})

    assert stream.status_code == 401
    assert (part.status_code, part.headers["hx-redirect"]) == (401, "/sign-in")
    assert change.status_code == 401
    assert sentence_of(change).startswith("You are not signed in (any more). Nothing was changed.")


def test_who_signs_out_has_to_sign_in_again(page: Served) -> None:
    with page.visitor() as visitor:
        sign_in(visitor, secret=TOKEN)
        visitor.post("/sign-out", data={"page_token": token_of(visitor.get("/").text)})

        assert visitor.get("/").status_code == 303


def test_of_a_page_for_reading_one_signs_out_too(file_url: str, tmp_path: Path) -> None:
    env = {"QML_MP_WEB_TOKEN": TOKEN}
    with served(file_url, tmp_path, "--read-only", env=env) as page, page.visitor() as visitor:
        sign_in(visitor, secret=TOKEN)
        home = visitor.get("/")
        answer = visitor.post("/sign-out", data={"page_token": token_of(home.text)})

        assert "Sign out" in home.text
        assert answer.status_code == 303
        assert visitor.get("/").status_code == 303


def test_of_two_pages_of_a_host_one_can_be_signed_in_to_both(file_url: str, tmp_path: Path) -> None:
    other = "another-that-nobody-guesses"
    with (
        served(file_url, tmp_path, env={"QML_MP_WEB_TOKEN": TOKEN}) as page,
        page.visitor() as visitor,
    ):
        sign_in(visitor, secret=TOKEN)
        with served(file_url, tmp_path, env={"QML_MP_WEB_TOKEN": other}) as beside:
            there = f"{beside.origin}/sign-in"  # another port, and the same cookies
            token = token_of(visitor.get(there).text)
            visitor.post(there, data={"page_token": token, "secret": other})

            assert visitor.get(f"{beside.origin}/").status_code == 200
            assert visitor.get("/").status_code == 200


def test_people_stay_signed_in_when_the_page_is_started_again(file_url: str, tmp_path: Path) -> None:
    env = {"QML_MP_WEB_TOKEN": TOKEN}
    with served(file_url, tmp_path, env=env) as page, page.visitor() as visitor:
        sign_in(visitor, secret=TOKEN)
        cookie = visitor.cookies[SESSION]

    with served(file_url, tmp_path, env=env) as page, page.visitor() as visitor:
        visitor.cookies.set(SESSION, cookie)

        assert visitor.get("/").status_code == 200


@pytest.mark.parametrize(
    ("began_s", "status"),
    [(-SESSION_S - 60, 303), (-SESSION_S + 60, 200), (90, 200), (3600, 200), (2 * SESSION_S, 303)],
    ids=["long ago", "today", "by a clock ahead", "before it was set back", "in a day"],
)
def test_a_session_is_one_for_its_time_by_other_clocks_too(file_url: str, began_s: int, status: int) -> None:
    """Whose beginning another machine, or this one, has written."""
    auth = Auth.of(TOKEN)
    began = f"{int(time.time()) + began_s}.any"
    with closing(open_storage(file_url)) as storage:
        visitor = Visitor(dashboard(storage, auth=TOKEN))
        visitor.cookies.set(SESSION, f"{began}.{auth.sign('session', began)}")

        assert visitor.get("/").status_code == status


@pytest.mark.parametrize(
    "there", ["//evil.example/", "https://evil.example/", "/\\evil.example", "javascript:x"]
)
def test_nobody_is_led_to_another_site(page: Served, there: str) -> None:
    with page.visitor() as visitor:
        answer = sign_in(visitor, secret=TOKEN, next=there)

    assert answer.headers["location"] == "/"


def test_a_user_and_a_password_are_asked_for(file_url: str, tmp_path: Path) -> None:
    (tmp_path / "auth").write_text("ada:a password: with a colon\n")
    with served(file_url, tmp_path, "--auth-file", str(tmp_path / "auth")) as page, page.visitor() as visitor:
        wrong_user = sign_in(visitor, user="eve", secret="a password: with a colon")
        wrong_password = sign_in(visitor, user="ada", secret="a password")
        right = sign_in(visitor, user="ada", secret="a password: with a colon")

    assert wrong_user.status_code == wrong_password.status_code == 403
    assert "That is not right: the user or the password." in wrong_user.text
    assert right.status_code == 303


def test_of_guesses_side_by_side_one_a_second_is_looked_at_and_the_log_tells_of_them(
    file_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = HandClock()
    monkeypatch.setattr("qml_mp.web.sign_in.SystemClock", lambda: clock, raising=False)
    password = "a long password"

    def told() -> list[str]:
        return [each.getMessage() for each in caplog.records if "refused" in each.getMessage()]

    async def statuses() -> tuple[list[int], int, list[str], int]:
        """Of the first wrong guesses to be answered, of the right one behind them, what was told until then,
        and of one much later."""
        transport = httpx.ASGITransport(app=page)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as visitor:
            token = token_of((await visitor.get("/sign-in")).text)

            async def guess(secret: str) -> int:
                fields = {"page_token": token, "user": "ada", "secret": secret}
                return (await visitor.post("/sign-in", data=fields)).status_code

            guesses = [asyncio.create_task(guess(f"guess {number}")) for number in range(40)]
            first = [await each for _, each in zip(range(30), asyncio.as_completed(guesses), strict=False)]
            right, lines = await guess(password), told()
            clock.seconds = 3600  # the next wrong guess whose turn comes is told too
            later = await guess(password)
            for each in guesses:
                each.cancel()
            return first, right, lines, later

    with closing(open_storage(file_url)) as storage, caplog.at_level(logging.WARNING, logger="qml_mp.web"):
        page = dashboard(storage, auth=("ada", password))
        first, right, lines, later = asyncio.run(statuses())

    assert first.count(403) <= 11  # the clock stands, so these are all who get a turn
    assert right == 429
    assert later == 303
    assert len(lines) == 1
    assert "127.0.0.1" in lines[0]


def test_a_password_that_can_be_guessed_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"password of the page has 4 characters; it needs 12"):
        Auth.of(("ada", "1234"))


def test_with_a_token_it_listens_beyond_loopback(file_url: str, tmp_path: Path) -> None:
    env = {"QML_MP_WEB_TOKEN": TOKEN}
    with served(file_url, tmp_path, "--host", "0.0.0.0", env=env) as page:
        port = page.origin.rpartition(":")[2]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as visitor:
            assert visitor.get("/").status_code == 303
            assert visitor.get("/", headers={"Host": "evil.example"}).status_code == 421


@pytest.mark.parametrize("given", ["short", 7, ("ada",), ("ada", ""), ("", "secret"), b"bytes"])
def test_an_auth_that_is_none_is_refused_with_the_accepted_forms(given: object) -> None:
    with pytest.raises(ConfigurationError, match="token"):
        Auth.of(given)  # type: ignore[arg-type]


def test_an_auth_shows_no_secret_when_it_is_printed() -> None:
    assert TOKEN not in repr(Auth.of(TOKEN))
