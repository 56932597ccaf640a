"""Tests: a program that forks while another of its threads uses the storage."""

from __future__ import annotations

import subprocess
import sys

import pytest

from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.harness import ROOT, few
from tests.storage.helpers import patient_url

WITHIN_S = 120.0
PREPARE = """
import os, signal, sys, threading, time
from qml_mp import QmlApp

app = QmlApp(sys.argv[1])

@app.job()
def work() -> None: ...

def child_enqueues() -> None:
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)  # one that waits for ever dies of it
        code = 1
        try:
            work.enqueue()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    if status:
        sys.exit(f"the child ended with {os.waitstatus_to_exitcode(status)}")
"""
DURING_THE_FIRST_USE = """
opening, forked = threading.Event(), threading.Event()

class Slow:  # an import that takes as long as the fork, unless that waits for it
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[2]:
            opening.set()
            forked.wait(0.5)

sys.meta_path.insert(0, Slow())
thread = threading.Thread(target=work.enqueue)
thread.start()
opening.wait()
child_enqueues()
thread.join()
"""
DURING_MANY_USES = """
def enqueue_until_told() -> None:
    while not told.is_set():
        work.enqueue()

told = threading.Event()
thread = threading.Thread(target=enqueue_until_told)
thread.start()
for _ in range(40):
    child_enqueues()
told.set()
thread.join()
"""

pytestmark = pytest.mark.fault(87)


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PREPARE + code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WITHIN_S, check=False)


@few("module", ["qml_mp.storage.open"], nightly=["qml_mp.sources", "qml_mp.storage.sqlite.database"])
def test_a_child_forked_during_a_threads_first_enqueue_enqueues(
    storage: Storage, url: str, module: str
) -> None:
    done = run(DURING_THE_FIRST_USE, patient_url(url), module)

    assert done.returncode == 0, done.stderr
    assert storage.job_counts()[StateName.ENQUEUED] == 2


def test_children_forked_while_a_thread_enqueues_enqueue(storage: Storage, url: str) -> None:
    done = run(DURING_MANY_USES, patient_url(url))

    assert done.returncode == 0, done.stderr
    assert storage.job_counts()[StateName.ENQUEUED] > 40
