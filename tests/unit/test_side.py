"""Tests: what passes between a supervisor and the processes beside it, and when those are started again."""

from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import replace

import pytest

from qml_mp.core.history import MOST_NAMES, OTHER
from qml_mp.errors import ConfigurationError
from qml_mp.events.counts import EventCounts
from qml_mp.events.facts import TemplateFired
from qml_mp.ipc.side import ServerReport, SideArguments, SideWord
from qml_mp.setting_kinds import host_and_port
from qml_mp.settings import ServerConfig
from qml_mp.supervisor.parts.side_process import RestartPauses
from tests.unit.test_health import FINE


def test_a_report_arrives_as_it_was_sent_on_one_line() -> None:
    report = replace(FINE, deaths={"SIGKILL": 3}, firings={"a\nb\udc80": 1}, trouble="two\nlines")

    assert report.line().count(b"\n") == 1
    assert ServerReport.of(report.line()) == report


def test_the_first_line_arrives_as_it_was_sent() -> None:
    arguments = SideArguments(
        address="localhost:1", url="sqlite:///a.db", supervisor_pid=1, log_level=20,
        config=ServerConfig(metrics="localhost:1").plain(), token="secret",
    )  # fmt: skip

    read = SideArguments.of(arguments.line())

    assert (read.url, read.token) == (arguments.url, "secret")
    assert ServerConfig(**read.config) == ServerConfig(metrics="localhost:1")


@pytest.mark.parametrize("line", [b"", b"hello", b"[1]", b'{"log": [1]}', b'{"other": 1}', b"\xff"])
def test_what_a_library_prints_is_no_word_of_the_process(line: bytes) -> None:
    assert SideWord.of(line) is None


def test_what_it_logs_arrives_as_it_was_logged() -> None:
    code = (
        "import logging\n"
        "from qml_mp.side.link import SupervisorLink\n"
        "link = SupervisorLink()\n"
        "logging.basicConfig(level=logging.INFO, handlers=[link.log_handler()])\n"
        "logging.getLogger('qml_mp.metrics').warning('%s is away', 'storage')\n"
    )

    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, stdin=subprocess.DEVNULL, timeout=60, check=True
    )

    word = SideWord.of(ended.stdout.rstrip())
    assert word is not None
    assert word.log == (logging.WARNING, "qml_mp.metrics", "storage is away", None)


def test_pauses_double_up_to_a_bound_unless_the_life_between_was_long() -> None:
    pauses = RestartPauses()

    assert [pauses.after(0.5) for _ in range(3)] == [0.1, 0.2, 0.4]
    assert pauses.after(4.1) == 0.1
    assert [pauses.after(0.0) for _ in range(12)][-1] == 30.0
    assert pauses.after(299.0) == 30.0
    assert pauses.after(300.0) == 0.1


def test_methods_beyond_a_number_are_counted_together() -> None:
    counts = EventCounts()

    for number in range(MOST_NAMES + 50):
        counts.count(TemplateFired(template_id="t", job_id="1", method=f"m{number}", queue="default"))

    assert len(counts.firings) == MOST_NAMES + 1
    assert counts.firings[OTHER] == 50


@pytest.mark.parametrize(
    ("address", "parts"),
    [("127.0.0.1:9464", ("127.0.0.1", 9464)), ("[::1]:0", ("::1", 0)), ("db.example:1", ("db.example", 1))],
)
def test_an_address_is_a_host_and_a_port(address: str, parts: tuple[str, int]) -> None:
    assert host_and_port(ServerConfig(metrics=address).metrics or "") == parts


@pytest.mark.parametrize("address", ["", "9464", ":9464", "a:65536", "a:b", "http://a:1", "::1:80", "a b:1"])
def test_an_address_without_either_is_refused_with_an_example(address: str) -> None:
    with pytest.raises(ConfigurationError, match=r'it must be HOST:PORT such as "127\.0\.0\.1:9464"'):
        ServerConfig(web=address)
