"""Tests: an app in whose processes one subscriber fails at every fact, and another never returns."""

from __future__ import annotations

import time

import qml_mp.child.main
import qml_mp.supervisor.run
from qml_mp.events.emitter import Emitter
from qml_mp.events.facts import Event
from qml_mp.events.log import log_event
from tests.processes.jobs_app import app as app


def fail(_: Event) -> None:
    raise RuntimeError("not today")


def stall(_: Event) -> None:
    while True:
        time.sleep(60)  # until it is broken off, and again


for module in (qml_mp.child.main, qml_mp.supervisor.run):
    vars(module)["new_emitter"] = lambda *_: Emitter(log_event, fail, stall)
