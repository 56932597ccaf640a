"""Tests: what the page refuses, each with a sentence that says why."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.cli.command import Qml, is_one_error
from tests.web.serving import Served, sentence_of, served, token_of

_MIB = 1024**2


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """That of an SQLite file: nothing here depends on the backend."""
    folder = tmp_path_factory.mktemp("page")
    url = f"sqlite:///{folder}/jobs.db"
    assert Qml(folder=folder)("--url", url, "migrate").code == 0
    with served(url, folder) as page:
        yield page


@pytest.fixture
def visitor(page: Served) -> Iterator[httpx.Client]:
    with page.visitor() as client:
        yield client


@pytest.fixture
def token(visitor: httpx.Client) -> str:
    """A visitor's own."""
    return token_of(visitor.get("/").text)


def test_a_change_is_made_with_the_pages_own_token(visitor: httpx.Client, token: str) -> None:
    answer = visitor.post("/sign-out", data={"page_token": token})

    assert answer.status_code == 303


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
    ],
)
def test_a_change_that_another_site_asks_for_is_refused(
    visitor: httpx.Client, token: str, headers: dict[str, str]
) -> None:
    answer = visitor.post("/sign-out", data={"page_token": token}, headers=headers)

    assert answer.status_code == 403
    assert sentence_of(answer) == "This change was asked for by another site, and nothing was changed."


def test_a_proxy_that_does_not_pass_the_host_on_is_told_of(visitor: httpx.Client, token: str) -> None:
    """Other sites are known by `Sec-Fetch-Site` alone where a browser sends it."""
    headers = {"Origin": "https://ops.example:44", "Sec-Fetch-Site": "same-origin", "Host": "127.0.0.1:8"}

    answer = visitor.post("/sign-out", data={"page_token": token}, headers=headers)

    assert answer.status_code == 403
    told = "The browser was at 'https://ops.example:44', and the Host header that came here is '127.0.0.1:8'"
    assert told in sentence_of(answer)
    assert sentence_of(answer).endswith("Nothing was changed.")


def test_a_change_of_the_same_origin_is_taken(visitor: httpx.Client, page: Served, token: str) -> None:
    headers = {"Origin": page.origin, "Sec-Fetch-Site": "same-origin"}

    answer = visitor.post("/sign-out", data={"page_token": token}, headers=headers)

    assert answer.status_code == 303


@pytest.mark.parametrize("given", [None, "", "0" * 64, "\u00e9"])
def test_a_change_without_the_pages_token_is_refused(
    visitor: httpx.Client, token: str, given: str | None
) -> None:
    answer = visitor.post("/sign-out", data={} if given is None else {"page_token": given})

    assert answer.status_code == 403
    assert "The proof is missing or old that this page itself asked for the change" in sentence_of(answer)


def test_the_token_of_another_visitor_is_refused(visitor: httpx.Client, page: Served, token: str) -> None:
    with page.visitor() as other:
        others = token_of(other.get("/").text)

    answer = visitor.post("/sign-out", data={"page_token": others})

    assert answer.status_code == 403


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8765", "localhost.evil.example", "127.0.0.1.evil.example"]
)
def test_a_name_that_is_not_the_pages_is_refused(visitor: httpx.Client, host: str) -> None:
    answer = visitor.get("/", headers={"Host": host})

    assert answer.status_code == 421
    name = host.partition(":")[0]
    assert f"This page is not known under the name '{name}'" in sentence_of(answer)
    assert f"--allow-host {name}" in sentence_of(answer)


@pytest.mark.parametrize("host", ["", "a b", "<script>", "a,b", "[::1", "host:port"])
def test_a_host_that_is_none_is_refused(visitor: httpx.Client, host: str) -> None:
    answer = visitor.get("/", headers={"Host": host})

    assert answer.status_code == 400
    assert "Host" in sentence_of(answer) or "Invalid HTTP" in answer.text


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:8765", "192.0.2.7"])
def test_own_names_and_addresses_are_taken(visitor: httpx.Client, host: str) -> None:
    assert visitor.get("/", headers={"Host": host}).status_code == 200


def test_a_name_that_is_allowed_is_taken(file_url: str, tmp_path: Path) -> None:
    with served(file_url, tmp_path, "--allow-host", "jobs.example") as page, page.visitor() as visitor:
        assert visitor.get("/", headers={"Host": "jobs.example"}).status_code == 200
        assert visitor.get("/", headers={"Host": "evil.example"}).status_code == 421


def test_what_changes_something_is_no_get(visitor: httpx.Client) -> None:
    answer = visitor.get("/sign-out")

    assert answer.status_code == 405
    assert sentence_of(answer).startswith("This address changes something, which needs POST")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(visitor: httpx.Client, method: str) -> None:
    answer = visitor.request(method, "/")

    assert answer.status_code == 405
    assert sentence_of(answer) == f"{method} is not used here: reading is GET, changing is POST."


@pytest.mark.parametrize("is_announced", [True, False])
def test_a_body_that_is_too_large_is_refused(visitor: httpx.Client, token: str, is_announced: bool) -> None:
    body = b"page_token=" + token.encode() + b"&a=" + b"x" * (3 * _MIB)
    parts = (body[start : start + 65536] for start in range(0, len(body), 65536))
    form = {"Content-Type": "application/x-www-form-urlencoded"}

    answer = visitor.post("/sign-out", content=body if is_announced else parts, headers=form)

    assert answer.status_code == 413
    assert sentence_of(answer) == "The form is larger than 2 MiB. Nothing was changed."


def test_a_form_of_too_many_fields_is_refused(visitor: httpx.Client, token: str) -> None:
    answer = visitor.post("/sign-out", data={"page_token": token, "id": ["x"] * 6000})

    assert answer.status_code == 400
    assert sentence_of(answer) == "The form is no UTF-8, or has more than 5000 fields."


def test_a_body_of_a_reading_request_is_refused(visitor: httpx.Client) -> None:
    answer = visitor.request("GET", "/", content=b"x")

    assert answer.status_code == 400
    assert sentence_of(answer) == "A request that only reads has no body."


def test_a_body_that_is_no_form_is_refused(visitor: httpx.Client, token: str) -> None:
    answer = visitor.post("/sign-out", json={"page_token": token})

    assert answer.status_code == 415
    assert "application/x-www-form-urlencoded" in sentence_of(answer)


def test_an_address_that_is_too_long_is_refused(visitor: httpx.Client) -> None:
    answer = visitor.get("/?a=" + "x" * 9000)

    assert answer.status_code == 414
    assert sentence_of(answer) == "The address is longer than 8 KiB."


def test_requests_that_come_too_slowly_are_ended(page: Served) -> None:
    beginnings = (
        b"POST /sign-out HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 100\r\n\r\npage_token=",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
    )

    with ThreadPoolExecutor(len(beginnings)) as pool:  # each takes as long as the page waits
        form, head = pool.map(partial(send_slowly, page), beginnings)

    assert b"408" in form.partition(b"\r\n")[0]
    assert "The form did not come within 10 s. Nothing was changed." in form.decode()
    assert b"408" in head.partition(b"\r\n")[0]
    assert "The head of the request did not come within 10 s." in head.decode()


def send_slowly(page: Served, beginning: bytes) -> bytes:
    """What is answered to a request that does not end: a byte now and then keeps nothing open."""
    where = urlsplit(page.origin)
    with socket.create_connection((where.hostname or "", where.port or 0)) as connection:
        connection.sendall(beginning)
        connection.settimeout(0.5)
        received = b""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                part = connection.recv(65536)
            except TimeoutError:
                with suppress(ConnectionError):  # what was answered meanwhile is read next
                    connection.sendall(b"x")
                continue
            except ConnectionResetError:
                break
            if not part:
                break
            received += part
    return received


def test_nothing_is_changed_by_a_page_for_reading(file_url: str, tmp_path: Path) -> None:
    with served(file_url, tmp_path, "--read-only") as page, page.visitor() as visitor:
        home = visitor.get("/")
        answer = visitor.post("/queues/pause", data={"name": "default", "page_token": token_of(home.text)})

    assert "read only" in home.text
    assert answer.status_code == 403
    assert sentence_of(answer) == "This page is for reading only: it was started with read_only."


def test_unknown_addresses_are_not_there(visitor: httpx.Client) -> None:
    answer = visitor.get("/nothing/here")

    assert answer.status_code == 404
    assert sentence_of(answer) == "There is no such page here."


@pytest.mark.parametrize("path", ["/static/../site.py", "/static/%2e%2e/site.py", "/static/..%2fsite.py"])
def test_no_file_beside_those_of_the_page_is_given(page: Served, path: str) -> None:
    where = urlsplit(page.origin)
    with socket.create_connection((where.hostname or "", where.port or 0)) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        received = b"".join(iter(lambda: connection.recv(65536), b""))

    assert b" 404 " in received.partition(b"\r\n")[0]


@pytest.mark.parametrize("path", ["/", "/nothing", "/static/page.css", "/sign-in"])
def test_every_answer_has_the_headers_that_make_it_safe(visitor: httpx.Client, path: str) -> None:
    headers = visitor.get(path).headers

    assert headers["content-security-policy"] == (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    )
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert "server" not in headers


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7"])
def test_beyond_loopback_it_does_not_listen_without_auth(file_url: str, tmp_path: Path, host: str) -> None:
    ended = Qml(folder=tmp_path)("--url", file_url, "web", "--host", host, "--port", "0")

    assert ended.code == 2
    assert is_one_error(ended.err)
    assert f"The page would be open to everybody who can reach {host}" in ended.err
    assert "QML_MP_WEB_TOKEN" in ended.err


def test_a_port_in_use_is_a_sentence(page: Served, file_url: str, tmp_path: Path) -> None:
    port = str(urlsplit(page.origin).port)

    ended = Qml(folder=tmp_path)("--url", file_url, "web", "--port", port)

    assert ended.code == 2
    assert is_one_error(ended.err)
    assert f"The page cannot listen on 127.0.0.1:{port}: the port is in use" in ended.err
    assert "choose one by --port" in ended.err


@pytest.mark.parametrize("name", ["https://ops.example", "ops.example:443", "*.ops.example", ""])
def test_a_name_to_allow_that_no_browser_sends_is_refused(file_url: str, tmp_path: Path, name: str) -> None:
    ended = Qml(folder=tmp_path)("--url", file_url, "web", "--port", "0", "--allow-host", name)

    assert ended.code == 2
    assert is_one_error(ended.err)
    assert "--allow-host is" in ended.err
    assert "names without ports" in ended.err


@pytest.mark.parametrize("option", ["--auth-file", "--token-file"])
@pytest.mark.parametrize("content", ["ada:hunter-one\nbob:hunter-two\n", "\n# ada\r\nada:hunter-one\r\n"])
def test_a_file_of_more_than_one_line_is_refused(
    file_url: str, tmp_path: Path, option: str, content: str
) -> None:
    """What follows the first would be taken as a part of the password, which nobody could type."""
    (tmp_path / "secrets").write_bytes(content.encode())

    ended = Qml(folder=tmp_path)("--url", file_url, "web", option, str(tmp_path / "secrets"))

    assert ended.code == 2
    assert is_one_error(ended.err)
    assert f"{tmp_path}/secrets has 2 lines; it must have one, " in ended.err
    assert "hunter" not in ended.err


def test_a_token_that_can_be_guessed_is_refused(file_url: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hunter2\n")

    ended = Qml(folder=tmp_path)("--url", file_url, "web", "--token-file", str(tmp_path / "token"))

    assert ended.code == 2
    assert is_one_error(ended.err)
    assert "it needs 16 at least" in ended.err
    assert "hunter2" not in ended.err
