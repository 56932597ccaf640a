"""Supervisor: what `ps` shows of it."""

from __future__ import annotations

import sys

import setproctitle

from qml_mp.printable import printable


def show_supervisor_title(label: str, workers: int) -> None:
    """ "qml-mp: supervisor [tasks:app] 8 workers". Not on macOS, where it can kill forked children."""
    if sys.platform != "darwin":
        setproctitle.setproctitle(printable(f"qml-mp: supervisor [{label}] {workers} workers"))
