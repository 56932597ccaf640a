"""Tests: whether a server ends with the terminal that it was started from. A file stands for the terminal."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from qml_mp.supervisor.parts import signals
from qml_mp.supervisor.parts.signals import Terminal

AN_HOUR_S = 3600.0


@pytest.fixture(autouse=True)
def hangups_count() -> Iterator[None]:
    """Whoever runs the tests may have them ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    file = tmp_path / "tty"
    file.touch()
    monkeypatch.setattr(signals, "_TERMINAL", str(file))
    return file


def test_a_terminal_that_goes_long_after_a_reload_has_gone_without_a_hangup(
    there: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    terminal = Terminal()
    terminal.suspect(0.0)
    terminal.look(0.0)
    terminal.look(AN_HOUR_S)
    there.unlink()

    for later in (1, 2, 3):
        terminal.look(later * AN_HOUR_S)

    assert not terminal.is_gone
    assert "The terminal is gone without a hangup" in caplog.text


@pytest.mark.parametrize("looked_after_s", [0.1, AN_HOUR_S])
def test_a_terminal_that_is_gone_at_the_first_look_after_a_hangup_went_by_it(
    there: Path, looked_after_s: float
) -> None:
    terminal = Terminal()
    terminal.look(0.0)
    terminal.suspect(1.0)
    there.unlink()

    terminal.look(1.0 + looked_after_s)

    assert terminal.is_gone
