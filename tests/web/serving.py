"""Tests: `qml-mp web` as a process, and what a browser does with it over HTTP."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import unescape
from pathlib import Path

import httpx

from tests.processes.harness import ROOT, wait_until
from tests.storage.helpers import patient_url
from tests.warm import Process, launch

_TOKEN = re.compile(r'name="page_token" value="([0-9a-f]+)"')
_HEADER_TOKEN = re.compile(r"X-Page-Token&#34;: &#34;([0-9a-f]+)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Served:
    """A page that is served."""

    origin: str
    process: Process
    log: Path

    @contextmanager
    def visitor(self, **headers: str) -> Iterator[httpx.Client]:
        """A client with cookies of its own, which follows no redirects."""
        # There is no TLS; to be ready for it, each client would read the certificates of all authorities.
        with httpx.Client(
            base_url=self.origin, trust_env=False, verify=False, headers=headers, timeout=60
        ) as client:
            yield client


@contextmanager
def served(
    url: str,
    folder: Path,
    *flags: str,
    env: Mapping[str, str] | None = None,
    program: Sequence[str] = ("-m", "qml_mp"),
) -> Iterator[Served]:
    """Run `qml-mp web` within the block, on a port that the system picks."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("QML_MP_")}
    path = folder / "web.log"
    with path.open("wb") as log, open(os.devnull, "rb") as nothing:
        process = launch(
            [sys.executable, *program, "--url", patient_url(url), "web", "--port", "0", *flags],
            cwd=folder, env={**kept, "PYTHONPATH": str(ROOT), **(env or {})},
            stdin=nothing.fileno(), stdout=log.fileno(), stderr=log.fileno(),
        )  # fmt: skip

    def origin() -> str | None:
        text = path.read_text(errors="replace")
        assert process.poll() is None, text
        found = re.search(r"the page is at (http://\S+)/", text)
        return found and found[1]

    try:
        yield Served(origin=wait_until(origin, what="the page"), process=process, log=path)
    finally:
        process.kill()
        process.wait()


def token_of(page: str) -> str:
    """What the page's own forms prove themselves with."""
    found = _TOKEN.search(page) or _HEADER_TOKEN.search(page)
    assert found is not None, page
    return found[1]


def sentence_of(response: httpx.Response) -> str:
    """What a refusal says."""
    found = re.search(r"<h1>.*?</h1>\s*<p>(.*?)</p>", response.text, re.DOTALL)
    return unescape(found[1]) if found else response.text.strip()
